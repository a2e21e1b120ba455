"""What a backbone, or its first layers, that stand still make of images, and the name of all that decides it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import Experiment
from ..data.features import BLOCK, FeatureStore, Teller, feature_store, say_sizes, wanted
from ..data.room import Want
from ..data.store import ImageStore
from ..machine.device import Runtime
from ..machine.precision import full_precision
from ..options import is_dotted
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
    most: int = BLOCK  # images at a time

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

    def __call__(self, images: Tensor) -> Tensor:
        """Of images (B, 3, S, S) on the device, on the CPU."""
        pieces = [self.of(piece).cpu() for piece in images.split(self.most)]
        with torch.autocast("cpu", enabled=False):  # whose bfloat16 does not put float16 together
            return torch.cat(pieces)

    @torch.inference_mode()
    def of(self, images: Tensor) -> Tensor:
        """Of images (B, 3, S, S) on the device, there."""
        with self.runtime.autocast():
            features = self.network.backbone.below(images) if self.what == "cut" else self.network.backbone(images)
        if self.what == "means":
            features = full_precision(features).mean(dim=(2, 3), keepdim=True)
        return features.to(self.dtype)


def kept_features(
    network: Network, runtime: Runtime, method: Any, experiment: Experiment, tell: Teller,
    train: ImageStore | FeatureStore, test: ImageStore | FeatureStore, own: Path,
) -> tuple[FeatureStore, FeatureStore]:  # fmt: skip
    """Stores of features in place of the stores of training and test images. Of a backbone that stands still: whole
    maps where the head "ica" or the method needs them, else their means; of one whose first layers do: what these make.
    Says how large they are; DataError where the disk has no room for them. own: folder for those of a backbone that
    the run itself has learned, which no other run can use; the others are for all runs."""
    learned = network.still and experiment.model.freeze == "first"
    what = _what(network, method, experiment) if network.still else "cut"
    train, test = (store.images if isinstance(store, FeatureStore) else store for store in (train, test))
    make = replace(features_of(network, runtime, what), most=experiment.train.eval_batch_size)
    stores = _stores(make, experiment, train, test, own if learned else None, tell)
    if runtime.world.main:
        if what == "maps" and _unsaid(network, method, experiment):
            tell.log(f"features: whole maps, since {experiment.method} does not say needs_maps = False")
        say_sizes(stores, tell.log)
    if experiment.train.augment != "none" and not experiment.data.views and not method.has_own("fit"):
        tell.log(
            f"features: training augments anew at every use (train.augment={experiment.train.augment}), so its images "
            "pass the backbone in each epoch; with data.views=N, or augment=none, they do so once"
        )
    return stores


def seen_in_tests(
    network: Network, runtime: Runtime, method: Any, experiment: Experiment, session: int
) -> Features | None:  # fmt: skip
    """Makes what a run's heads were given of images in its tests after a session (0 is the first): the features that
    `kept_features` keeps; None: the images themselves. The network is made to stand still where it did then."""
    freeze = experiment.model.freeze
    if freeze == "all" or method.has_own("fit") or (freeze == "first" and session):
        network.freeze_backbone()
    if not experiment.data.features or not (network.still or experiment.model.tune_from):
        return None
    what = _what(network, method, experiment) if network.still else "cut"
    return Features(for_inference(network, runtime.dtype), runtime, what, "not kept")


def room_wanted(
    network: Network, runtime: Runtime, method: Any, experiment: Experiment, train: ImageStore, test: ImageStore,
    own: Path, begun: bool,
) -> list[Want]:  # fmt: skip
    """What the disk is yet to set aside for all features of a run, as `kept_features` will make them. begun: is the
    first session done, so that those of a backbone that it teaches may be there?"""
    model, stores = experiment.model, []
    if experiment.data.features and model.tune_from:
        stores += _stores(_planned(network, runtime, "cut"), experiment, train, test)
    what = _what(network, method, experiment)
    if experiment.data.features and (model.freeze == "all" or (model.freeze == "none" and method.has_own("fit"))):
        stores += _stores(_planned(network, runtime, what), experiment, train, test)
    if experiment.data.features and model.freeze == "first" and not begun:
        stores += _stores(Features(network, runtime, what, "weights to come"), experiment, train, test, own)
    return wanted(stores)


def _planned(network: Network, runtime: Runtime, what: What) -> Features:
    """Of the right name and size, for looking only."""
    return Features(network, runtime, what, _digest(network, runtime, what))


def _what(network: Network, method: Any, experiment: Experiment) -> What:
    maps = network.kind == "ica" or method.needs_maps or _unsaid(network, method, experiment)
    return "maps" if maps else "means"


def _unsaid(network: Network, method: Any, experiment: Experiment) -> bool:
    """Does a method from outside the package leave open whether the means of maps are enough for it?"""
    return network.kind != "ica" and method.needs_maps is None and is_dotted(experiment.method)


def _stores(
    make: Features, experiment: Experiment, train: ImageStore, test: ImageStore, folder: Path | None = None,
    tell: Teller | None = None,
) -> tuple[FeatureStore, FeatureStore]:  # fmt: skip
    """Of training images, in views where there are any, and of test images."""
    how = experiment.train.augment, experiment.data.views
    return feature_store(train, make, *how, tell, folder), feature_store(test, make, tell=tell, folder=folder)


def features_of(network: Network, runtime: Runtime, what: What) -> Features:
    """How to make the features of a network whose backbone, or what is below its cut, stands still."""
    return Features(for_inference(network, runtime.dtype), runtime, what, _digest(network, runtime, what))


def _digest(network: Network, runtime: Runtime, what: What) -> str:
    """Of everything that decides features beside the images."""
    import timm

    backbone = network.backbone
    digest = hashlib.sha256()
    used = backbone.state_below() if what == "cut" else backbone.state_dict()
    for name, tensor in sorted(used.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    # repr tells of how the body computes: of two networks with the same weights one may pad otherwise
    said = (
        VERSION, repr(backbone.body), backbone.mean, backbone.std, backbone.image_size, runtime.dtype,
        {"maps": True, "means": False}.get(what, backbone.tune_from), runtime.device.type, timm.__version__,
        torch.__version__.split("+")[0],
    )  # fmt: skip
    digest.update(repr(said).encode())
    return digest.hexdigest()[:16]
