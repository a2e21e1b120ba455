"""Optimiser, schedule and the seeds that make a training repeatable."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .config import Train


def make_optimiser(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Adam with decay on matrices only: none on biases, norms and other 1-D parameters."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in trainable if p.dim() <= 1 or name.endswith(".bias")]
    decayed = [p for name, p in trainable if not (p.dim() <= 1 or name.endswith(".bias"))]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return torch.optim.Adam(groups, lr=1e-5)  # the schedule sets the rate


def make_schedule(optimiser: torch.optim.Optimizer, config: Train, first: bool, steps: int):
    """OneCycle over one session of ``steps`` steps an epoch, stepped after every batch."""
    peak = config.base_lr if first else config.lr
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak, steps_per_epoch=steps, epochs=config.epochs, pct_start=config.warmup
    )


def set_seed(*numbers: int) -> None:
    """Seed torch from several numbers, such as (seed, session, epoch)."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
