"""Batch norm in its variants: in place (less memory), frozen, or with statistics over all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError

ABN_EPS = 1e-5  # what InPlaceABN adds to |weight|


class InPlaceBatchNorm(nn.BatchNorm2d):
    """Batch norm and activation by inplace_abn, which keeps one tensor for backward where two are usual.

    It has the parameters of the layer it replaces, so checkpoints are the same: inplace_abn computes with |w| + 1e-5,
    hence w = weight − 1e-5. Equal for weights above 1e-5, as every published TResNet has them; smaller ones, which a
    random start may bring, count as their distance above it.
    Source: Rota Bulò et al., CVPR 2018.
    """

    def __init__(self, norm: nn.BatchNorm2d, activation: str, slope: float):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.activation, self.slope = activation, slope
        self.synced = False  # are statistics taken over all processes?
        self.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        from inplace_abn import functions

        if self.training:
            self.num_batches_tracked.add_(1)
        if x.dtype == torch.bfloat16 or (x.dtype == torch.float16 and not x.is_cuda):
            x = x.float()  # inplace_abn does not know these
        arguments = (self.weight - ABN_EPS, self.bias, self.running_mean, self.running_var, self.training)
        settings = (self.momentum, self.eps, self.activation, self.slope)
        if self.synced and self.training:
            return functions.inplace_abn_sync(x, *arguments, *settings, dist.group.WORLD)
        return functions.inplace_abn(x, *arguments, *settings)


def use_inplace_abn(body: nn.Module, name: str) -> None:
    """Replace every norm of a timm model by `InPlaceBatchNorm`.

    Raises ConfigError if inplace_abn is not installed or the model has activations it does not know.
    """
    try:
        import inplace_abn  # noqa: F401
    except ImportError:
        raise ConfigError(
            "model.norm=inplace_abn needs its package, which is built from source: `make setup` tries to, "
            "docs/install.md has the steps. model.norm=batch_norm computes the same with more memory."
        ) from None

    def replacement(norm: nn.BatchNorm2d) -> nn.Module:
        act = getattr(norm, "act", None)  # a norm without timm's activation may be followed by one that works in place
        if isinstance(act, nn.LeakyReLU):
            return InPlaceBatchNorm(norm, "leaky_relu", act.negative_slope)
        if isinstance(act, nn.Identity):
            return InPlaceBatchNorm(norm, "identity", 0.01)
        raise ConfigError(f"model.norm=inplace_abn is for TResNet; {name} has other layers: use model.norm=batch_norm.")

    replace_norms(body, replacement)


def synchronise(model: nn.Module) -> None:
    """Take batch-norm statistics over all processes from now on; parameters and their names stay.

    Raises ConfigError on the CPU, where PyTorch cannot.
    """
    if not next(model.parameters()).is_cuda:
        raise ConfigError(
            "train.batch_norm=sync in several processes needs GPUs: on the CPU take one process, or set "
            "train.batch_norm=frozen."
        )
    inplace = [module for module in model.modules() if isinstance(module, InPlaceBatchNorm)]
    for module in inplace:
        module.synced = True
    if not inplace:
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(model)


def takes_statistics(model: nn.Module) -> bool:
    """Does a layer normalise by the images of a batch while the model learns?"""
    was = model.training
    model.train()
    taken = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in model.modules())
    model.train(was)
    return taken


def replace_norms(model: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, make(module).to(module.weight).train(module.training))
