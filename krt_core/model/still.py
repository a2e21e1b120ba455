"""What a backbone that stands still makes of images, and the name of all that decides it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import Experiment
from ..data.features import FeatureStore, Teller, say_sizes
from ..data.store import ImageStore
from ..machine.device import Runtime
from ..machine.precision import full_precision
from .inference import for_inference
from .network import Network

VERSION = 1  # another one where the same weights would give other features


@dataclass(frozen=True)
class Features:
    """Makes feature maps, or their means, of images; see `krt_core.data.features.FeatureStore`."""

    network: Network  # for looking only
    runtime: Runtime
    maps: bool  # whole maps (B, channels, h, w), or their means (B, channels, 1, 1)?
    digest: str  # of everything that decides them beside the images

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one image."""
        return (self.network.backbone.channels, *(self.network.backbone.grid if self.maps else (1, 1)))

    @property
    def dtype(self) -> torch.dtype:
        """Maps are kept as the network gives them; means, where it computes in half precision, in float16, which
        rounds less than bfloat16."""
        half = self.runtime.dtype in (torch.bfloat16, torch.float16)
        return torch.float16 if half and not self.maps else self.runtime.dtype

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Of images (B, 3, S, S) on the device, on the CPU."""
        with self.runtime.autocast():
            features = self.network.backbone(images)
        if not self.maps:
            features = full_precision(features).mean(dim=(2, 3), keepdim=True)
        return features.to("cpu", self.dtype)


def kept_features(
    network: Network, runtime: Runtime, method: Any, experiment: Experiment, tell: Teller,
    train: ImageStore, test: ImageStore,
) -> tuple[FeatureStore, FeatureStore]:  # fmt: skip
    """Stores of features in place of the stores of training and test images, of a network whose backbone stands still:
    whole maps where the head "ica" or the method needs them, else their means. Says how large they are; DataError where
    the disk has no room for them."""
    make = features_of(network, runtime, network.kind == "ica" or method.needs_maps)
    augment, views = experiment.train.augment, experiment.data.views
    stores = FeatureStore(train, make, augment, views, tell), FeatureStore(test, make, tell=tell)
    if runtime.world.main:
        say_sizes(stores, tell.log)
    if augment != "none" and not views and not method.has_own("fit"):
        tell.log(
            f"features: training augments anew at every use (train.augment={augment}), so its images pass the backbone "
            "in each epoch; with data.views=N, or augment=none, they do so once"
        )
    return stores


def features_of(network: Network, runtime: Runtime, maps: bool) -> Features:
    """How to make the features of a network whose backbone stands still."""
    import timm

    backbone = network.backbone
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    said = (
        VERSION, type(backbone.body).__name__, backbone.mean, backbone.std, backbone.image_size, runtime.dtype, maps,
        runtime.device.type, timm.__version__, torch.__version__.split("+")[0],
    )  # fmt: skip
    digest.update(repr(said).encode())
    return Features(for_inference(network, runtime.dtype), runtime, maps, digest.hexdigest()[:16])
