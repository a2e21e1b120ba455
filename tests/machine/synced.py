"""Batch norm with statistics over several processes on the CPU, where PyTorch's SyncBatchNorm does not run: with it two
processes can be compared with one without GPUs."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from krt_core.model.norm import replace_norms


def synchronise(model: nn.Module) -> None:
    """As `krt_core.model.norm.synchronise`."""
    replace_norms(model, SyncedBatchNorm)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm (and timm's activation after it) with mean and variance over the images of all processes, on the CPU,
    where PyTorch's own SyncBatchNorm does not run."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.act(self.drop(super().forward(x)))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        images = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = _AllReduce.apply(torch.cat([wide.sum(dim=(0, 2, 3)), images]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = _AllReduce.apply(centred.square().sum(dim=(0, 2, 3))) / count
        normed = centred * ((variance + self.eps).rsqrt() * self.weight)[:, None, None] + self.bias[:, None, None]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        return self.act(self.drop(normed.to(x.dtype)))


class _AllReduce(torch.autograd.Function):
    """Sum over processes, in both directions."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
