"""What a backbone, or its first layers, that stand still make of images, and the name of all that decides it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import Experiment
from ..data.features import FeatureStore, Teller, say_sizes
from ..data.store import ImageStore
from ..machine.device import Runtime
from ..machine.precision import full_precision
from .inference import for_inference
from .network import Network

What = Literal["maps", "means", "cut"]  # last maps, their means, or what the first layer that learns is given
VERSION = 1  # another one where the same weights would give other features


@dataclass(frozen=True)
class Features:
    """Makes feature maps, or their means, of images; see `krt_core.data.features.FeatureStore`."""

    network: Network  # for looking only
    runtime: Runtime
    what: What
    digest: str  # of everything that decides them beside the images

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, h, w) of one image."""
        backbone = self.network.backbone
        shapes = {"maps": (backbone.channels, *backbone.grid), "means": (backbone.channels, 1, 1), "cut": backbone.cut}
        return shapes[self.what]

    @property
    def dtype(self) -> torch.dtype:
        """Maps are kept as the network gives them; means, where it computes in half precision, in float16, which
        rounds less than bfloat16."""
        half = self.runtime.dtype in (torch.bfloat16, torch.float16)
        return torch.float16 if half and self.what == "means" else self.runtime.dtype

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Of images (B, 3, S, S) on the device, on the CPU."""
        with self.runtime.autocast():
            features = self.network.backbone.below(images) if self.what == "cut" else self.network.backbone(images)
        if self.what == "means":
            features = full_precision(features).mean(dim=(2, 3), keepdim=True)
        return features.to("cpu", self.dtype)


def kept_features(
    network: Network, runtime: Runtime, method: Any, experiment: Experiment, tell: Teller,
    train: ImageStore | FeatureStore, test: ImageStore | FeatureStore, own: Path,
) -> tuple[FeatureStore, FeatureStore]:  # fmt: skip
    """Stores of features in place of the stores of training and test images. Of a backbone that stands still: whole
    maps where the head "ica" or the method needs them, else their means; of one whose first layers do: what these make.
    Says how large they are; DataError where the disk has no room for them. own: folder for those of a backbone that
    the run itself has learned, which no other run can use; the others are for all runs."""
    learned = network.still and experiment.model.freeze == "first"
    if network.still:
        make = features_of(network, runtime, "maps" if network.kind == "ica" or method.needs_maps else "means")
    else:
        make = features_of(network, runtime, "cut")
    augment, views = experiment.train.augment, experiment.data.views
    train, test = (store.images if isinstance(store, FeatureStore) else store for store in (train, test))
    folder = own if learned else None
    stores = FeatureStore(train, make, augment, views, tell, folder), FeatureStore(test, make, tell=tell, folder=folder)
    if runtime.world.main:
        say_sizes(stores, tell.log)
    if augment != "none" and not views and not method.has_own("fit"):
        tell.log(
            f"features: training augments anew at every use (train.augment={augment}), so its images pass the backbone "
            "in each epoch; with data.views=N, or augment=none, they do so once"
        )
    return stores


def features_of(network: Network, runtime: Runtime, what: What) -> Features:
    """How to make the features of a network whose backbone, or what is below its cut, stands still."""
    import timm

    backbone = network.backbone
    digest = hashlib.sha256()
    used = backbone.state_below() if what == "cut" else backbone.state_dict()
    for name, tensor in sorted(used.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    said = (
        VERSION,
        repr(backbone.body),
        backbone.mean,
        backbone.std,
        backbone.image_size,
        runtime.dtype,
        {"maps": True, "means": False}.get(what, backbone.tune_from),
        runtime.device.type,
        timm.__version__,
        torch.__version__.split("+")[0],
    )  # fmt: skip  (of two networks with the same weights one may pad otherwise: repr tells)
    digest.update(repr(said).encode())
    return Features(for_inference(network, runtime.dtype), runtime, what, digest.hexdigest()[:16])
