"""A copy of a network for looking only: batch norm folded into convolutions, weights cast once, not at each use."""

from __future__ import annotations

import copy
import functools
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone import Backbone
from .network import Network


def for_inference(network: Network, dtype: torch.dtype) -> Network:
    """The network in eval mode without gradients, as fast as it can be under autocast to ``dtype``.

    In float32 and float64 it stays as it is, to the last bit. In half precision batch norm behind a convolution is
    folded into it, which changes float32 outputs by rounding only; a backbone where that does not hold (layers that are
    not called in the order they are declared) is left unfolded.
    """
    if not network.still:
        made = copy.deepcopy(network).eval().requires_grad_(False)
        _prepare(made.backbone, network.backbone, dtype)
        return made
    if dtype not in network.looking:  # made once: all copies share it
        looking = network.looking[dtype] = copy.deepcopy(network.backbone).eval().requires_grad_(False)
        looking.later = functools.partial(_prepare, original=network.backbone, dtype=dtype)  # if it sees images at all
    shared = {id(network.backbone): network.looking[dtype], id(network.looking): network.looking}
    return copy.deepcopy(network, shared).eval().requires_grad_(False)


def _prepare(backbone: Backbone, original: Backbone, dtype: torch.dtype) -> None:
    if dtype not in (torch.bfloat16, torch.float16):
        return
    if original.foldable is None:
        original.foldable = _folding_is_exact(backbone)
    if original.foldable:
        _fold(backbone)
    for module in backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)


def _fold(parent: nn.Module) -> None:
    children = list(parent.named_children())
    for _, child in children:
        _fold(child)
    for (name, conv), (norm_name, norm) in itertools.pairwise(children):
        if _is_pair(conv, norm):
            setattr(parent, name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))  # timm's norms hold their activation


def _is_pair(conv: nn.Module, norm: nn.Module) -> bool:
    plain = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return plain and conv.out_channels == norm.num_features and norm.track_running_stats


@torch.no_grad()
def _folding_is_exact(backbone: Backbone) -> bool:
    """Does it hold for this architecture, whatever the statistics? Tried with random ones on a random image.

    On the CPU and in float64: where GPUs round the operands of float32 products to ten bits, as TF32 does, sums in
    another order differ by more than a wrong folding may.
    """
    plain, random = copy.deepcopy(backbone).to("cpu", torch.float64), torch.Generator().manual_seed(0)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
    folded = copy.deepcopy(plain)
    _fold(folded)
    image = torch.rand(1, 3, 64, 64, generator=random, dtype=torch.float64)
    try:
        with torch.autocast("cpu", enabled=False):
            wanted, found = plain(image), folded(image)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):  # takes images of one size only
        return False
    return bool((wanted - found).abs().max() <= 1e-6 * wanted.abs().max())
