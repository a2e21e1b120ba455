"""A backbone cut in two: first layers that stand still, so that what they make of an image can be kept, and the rest.

The last layers hold most of a network's weights and take the least of its time, as their maps are small: of
EfficientNet-lite0 ``blocks.5`` and what follows have 79 % of the weights and cost a sixth of a training step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean

Run = Callable[[nn.Module, Tensor], Tensor]  # body and images → last feature map


class _Reached(Exception):
    def __init__(self, given: Tensor):
        self.given = given


def layers_before(body: nn.Module, name: str) -> Iterator[str]:
    """The layers that come before the one called ``name`` ("blocks.5"): "conv_stem", "bn1", "blocks.0", ..."""
    parent, path = body, ""
    for part in name.split("."):
        for before in parent._modules:
            if before == part:
                break
            yield path + before
        parent, path = parent.get_submodule(part), f"{path}{part}."


def below(body: nn.Module, name: str, images: Tensor, run: Run) -> Tensor:
    """What the layer ``name`` is given when the body sees images."""

    def stop(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _Reached(given[0])

    hook = body.get_submodule(name).register_forward_pre_hook(stop)
    try:
        run(body, images)
    except _Reached as reached:
        return reached.given
    finally:
        hook.remove()
    raise ConfigError(f"model.tune_from: images pass {type(body).__name__} without reaching {name}.")


def above(body: nn.Module, name: str) -> nn.Module:
    """The body without the layers before ``name``, whose input it takes. Its layers are those of the body."""
    top = parent = _shallow(body)
    for part in name.split("."):
        for before in parent._modules:
            if before == part:
                break
            parent._modules[before] = nn.Identity()
        inner = parent._modules[part] = _shallow(parent.get_submodule(part))
        parent = inner
    return top


def _shallow(module: nn.Module) -> nn.Module:
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made


@torch.no_grad()
def cut_shape(body: nn.Module, name: str, images: Tensor, run: Run) -> tuple[int, ...]:
    """(channels, h, w) of what the layer ``name`` is given of images (1, 3, S, S). ConfigError where the body has no
    such layer, or is more than one layer after the other there."""
    where = f"model.tune_from: {type(body).__name__}"
    try:
        layer = body.get_submodule(name)
    except AttributeError:
        known = [path for path, _ in body.named_modules() if path and path.count(".") < 2]
        layers = ", ".join(path for path, _ in body.named_children())
        raise ConfigError(f"{where} has no layer {name!r}, but {layers}.{did_you_mean(name, known)}") from None
    if not any(layers_before(body, name)):
        raise ConfigError(f"{where} begins with {name}: nothing would stand still. Leave model.tune_from empty.")
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        raise ConfigError(f"{where}: {name} is the norm of the layer before it. Cut between blocks.")
    try:
        given, whole = below(body, name, images, run), run(body, images)
        apart = run(above(body, name), given)
        exact = given.dim() == 4 and torch.allclose(apart, whole, rtol=1e-3, atol=1e-4)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError):
        exact = False
    if not exact:
        raise ConfigError(
            f"{where} cannot be cut before {name}: its layers there are not simply one after the other. Choose another "
            "layer, or leave model.tune_from empty to have the whole backbone learn."
        )
    shape = tuple(given.shape[1:])
    if shape in (tuple(images.shape[1:]), tuple(whole.shape[1:])):
        raise ConfigError(f"{where}: what {name} is given looks like an image, or like the last map. Cut elsewhere.")
    return shape
