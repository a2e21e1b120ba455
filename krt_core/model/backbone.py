"""A timm network that yields one feature map."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..machine.cpu import depthwise_in_float32
from ..machine.loading import loading
from .cut import above, below, cut_shape, layers_before
from .norm import use_inplace_abn

Channels = float | tuple[float, ...]


class Backbone(nn.Module):
    """Images (B, 3, S, S) in [0, 1] → feature map (B, channels, h, w).

    ``mean`` and ``std``, a number or one per channel, are applied inside, so that every part of the workbench sees
    images in [0, 1].
    """

    def __init__(
        self, body: nn.Module, channels: int, grid: tuple[int, int], mean: Channels = 0.0, std: Channels = 1.0
    ):
        super().__init__()
        self.body, self.channels, self.grid = body, channels, grid
        self.mean, self.std = mean, std
        # float64, so that a network in double precision has all their digits; not in files, where they never were
        self.register_buffer("shift", torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(std, dtype=torch.float64).view(-1, 1, 1), persistent=False)
        self.image_size: int | None = None  # pixels; None if nobody said
        self.compiled = False  # run through torch.compile? The heads, which grow, are never compiled
        self.later: Callable[[Backbone], None] | None = None  # what is to be done to it before it sees its first image
        self.foldable: bool | None = None  # can batch norm be folded away? found out when first asked (inference.py)
        self.tune_from = ""  # the first layer that learns; those before it stand still
        self.cut: tuple[int, ...] = ()  # (channels, h, w) of what it is given

    def forward(self, images: Tensor) -> Tensor:
        """Of images, or of what `below` has made of them."""
        work = _compiled() if self.compiled else _map_of
        return work(*self._begin(images))

    def below(self, images: Tensor) -> Tensor:
        """What the first layer that learns is given of images: (B, *cut)."""
        return below(self.body, self.tune_from, self._normalise(images), _map_of)

    def state_below(self) -> dict[str, Tensor]:
        """Weights and statistics of the layers that `below` runs."""
        paths = tuple(f"{path}." for path in layers_before(self.body, self.tune_from))
        return {name: tensor for name, tensor in self.body.state_dict().items() if name.startswith(paths)}

    def made(self, images: Tensor) -> bool:
        """Are these no images but their last maps, or the maps' means?"""
        return images.shape[1] == self.channels and tuple(images.shape[1:]) != self.cut

    def rest(self) -> None:
        """The layers before ``tune_from`` learn nothing, and their running statistics stand still."""
        for path in layers_before(self.body, self.tune_from) if self.tune_from else ():
            self.body.get_submodule(path).requires_grad_(False).eval()

    def _begin(self, images: Tensor) -> tuple[nn.Module, Tensor]:
        """What is to be run, and on what."""
        if self.later is not None:
            self.later, later = None, self.later
            later(self)
        if self.cut and tuple(images.shape[1:]) == self.cut:
            return above(self.body, self.tune_from), images
        return self.body, self._normalise(images)

    def with_stages(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The feature map and the outputs of the backbone's stages, each (B, c_i, h_i, w_i), the stem left out."""
        body, images = self._begin(images)
        if not hasattr(body, "forward_features"):  # features_only: every stage up to the chosen stride
            stages = body(images)
            return stages[-1], tuple(stages[1:] if len(stages) > 1 else stages)
        if not hasattr(body, "forward_intermediates"):
            raise ConfigError(
                f"model.backbone: timm's {type(body).__name__} does not show its stages, which are asked for. "
                "Set model.stride, or choose another backbone."
            )
        reductions = [info["reduction"] for info in body.feature_info]
        keep = [index for index, reduction in enumerate(reductions) if reduction > 2]
        features, stages = body.forward_intermediates(images, indices=keep)
        return _as_map(body, features), tuple(stages)

    def _normalise(self, images: Tensor) -> Tensor:
        if not np.any(self.mean) and np.all(np.equal(self.std, 1)):
            return images
        return (images - self.shift.to(images.dtype)) / self.scale.to(images.dtype)


def make_backbone(config: Any, image_size: int) -> Backbone:
    """Create the timm model that a ``model`` section names, without weights.

    Parameters on which its map does not depend (a last norm that only a classifier would use) are set not to learn: no
    gradient would ever come to them, for which several processes would wait. Raises ConfigError for a name unknown to
    timm, and for a model that gives no map of images of this size.
    """
    with loading():
        import timm

    base = config.backbone.split(".")[0]
    if base not in timm.list_models():
        raise ConfigError(
            f"model.backbone: timm has no model {config.backbone!r}.{did_you_mean(base, timm.list_models())}"
        )
    try:
        body = make_body(config, image_size)
        with torch.enable_grad():
            features = _map_of(body.eval(), torch.zeros(1, 3, image_size, image_size))
    except ConfigError:
        raise
    except Exception as error:  # timm's models assert, index and compute their way to many kinds of it
        reason = (str(error).splitlines() or [""])[0] or "an assertion in it"
        raise ConfigError(
            f"model.backbone: {config.backbone} gives no map of images of {image_size} pixels "
            f"({type(error).__name__}: {reason}). Choose another data.image_size, model.stride or model.backbone."
        ) from None
    _let_rest(body, features)
    body.train()
    if config.norm == "inplace_abn":
        use_inplace_abn(body, config.backbone)
    depthwise_in_float32(body)
    backbone = Backbone(body, features.shape[1], (features.shape[2], features.shape[3]), *_normalisation(config))
    backbone.image_size = image_size
    if config.tune_from:
        image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        backbone.cut, backbone.tune_from = cut_shape(body.eval(), config.tune_from, image, _map_of), config.tune_from
        body.train()
        backbone.rest()
    return backbone


def make_body(config: Any, image_size: int, pretrained: bool = False) -> nn.Module:
    """The timm model of a ``model`` section. Raises ConfigError for a stride that it lacks, and what timm raises."""
    if not config.stride:
        try:
            return _create(config, image_size, pretrained=pretrained, num_classes=0, global_pool="")
        except AssertionError:  # some cannot do without pooling, which is not used here
            return _create(config, image_size, pretrained=pretrained, num_classes=0)
    strides = _create(config, image_size, features_only=True).feature_info.reduction()
    if config.stride not in strides:
        raise ConfigError(f"model.stride: {config.backbone} has maps at {strides}, not at {config.stride}.")
    indices = tuple(range(strides.index(config.stride) + 1))
    return _create(config, image_size, pretrained=pretrained, features_only=True, out_indices=indices)


def _create(config: Any, image_size: int, **options: Any) -> nn.Module:
    """timm's model, told the image size if it must be, as those with a position for each patch."""
    import timm

    trained = timm.get_pretrained_cfg(config.backbone)
    if "vit" in config.backbone or (trained and trained.fixed_input_size):
        try:
            return timm.create_model(config.backbone, img_size=image_size, **options)
        except TypeError:  # it takes any size after all, or no other than its own
            pass
    return timm.create_model(config.backbone, **options)


def _let_rest(body: nn.Module, features: Tensor) -> None:
    """No gradient for the parameters that the features were not computed from."""
    used, todo = set(), [features.grad_fn] if features.grad_fn else []
    seen = set(todo)
    while todo:
        step = todo.pop()
        used.add(id(getattr(step, "variable", None)))
        new = {before for before, _ in step.next_functions if before is not None} - seen
        seen |= new
        todo += new
    for parameter in body.parameters() if seen else ():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _normalisation(config: Any) -> tuple[Channels, Channels]:
    """Mean and std of a ``model`` section: what it says, else what timm's weights were trained with, else 0 and 1."""
    import timm

    mean, std = 0.0, 1.0
    if config.weights == "timm" and (trained := timm.get_pretrained_cfg(config.backbone)):
        mean, std = trained.mean, trained.std
    return mean if config.mean is None else config.mean, std if config.std is None else config.std


def _map_of(body: nn.Module, images: Tensor) -> Tensor:
    """The last feature map as (B, channels, h, w), whatever layout the timm model uses."""
    if not hasattr(body, "forward_features"):
        return body(images)[-1]  # features_only
    return _as_map(body, body.forward_features(images))


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    """One compiled function for all backbones: a copy of one that was compiled before costs nothing."""
    return torch.compile(_map_of)


def _as_map(body: nn.Module, features: Tensor) -> Tensor:
    if isinstance(features, Tensor) and features.dim() == 3:  # transformers: (B, prefix + N, channels)
        features = features[:, getattr(body, "num_prefix_tokens", 0) :]
        side = math.isqrt(features.shape[1])
        if side * side == features.shape[1]:
            return features.transpose(1, 2).unflatten(2, (side, side))
    elif isinstance(features, Tensor) and features.dim() == 4:
        return features.permute(0, 3, 1, 2) if getattr(body, "output_fmt", "NCHW") == "NHWC" else features
    found = f"a tensor {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
    raise ConfigError(f"model.backbone: timm's {type(body).__name__} gives {found}, no map. Choose another backbone.")
