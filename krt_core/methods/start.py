"""Where a linear head starts: from the ridge regression of its session instead of from chance.

A head drawn by chance sends chance back into a backbone that was good already; on a few thousand photos that costs
more than the training gains. Kumar et al., *Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution*, ICLR 2022, fit the head first for that reason.
"""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .base import Context
from .ridge import PENALTIES, can_be_left_out, collected, set_head
from .statistics import Statistics


@torch.no_grad()
def start_from_ridge(context: Context) -> None:
    """Give the classes of the session the weights of a ridge regression on its images; the penalty is chosen by leaving
    each of them out in turn. ConfigError where the head is not a linear one."""
    if context.model.kind != "linear":
        raise ConfigError(
            "train.head_start=ridge is for linear heads: set the method's head=linear, or head_start=random."
        )
    session, world = context.session, context.world
    embedded, labels, _ = collected(context)
    labels = labels[:, session.columns]
    known, weights = labels >= 0, labels.new_ones(len(labels))
    labels = labels.clamp(min=0)
    sums = Statistics(context.model.width)
    sums.widen(session.stop - session.start, shares=True)
    sums.part(torch.from_numpy(world.gather(known.numpy())))
    sums.add(embedded, labels, known, weights)
    world.add_up(sums.tensors)
    told = can_be_left_out(context, sums.q)
    errors = torch.zeros(len(PENALTIES), labels.shape[1], dtype=torch.float64)
    for columns in sums.together(range(labels.shape[1])):
        rows = known[:, columns[0]]
        found = sums.solve(columns).press(embedded[rows], labels[rows][:, columns], weights[rows], PENALTIES)
        errors[:, columns] = found
    world.add_up([errors])
    variance = (sums.q * (1 - sums.frequency)).clamp(min=1e-12)
    curve = (errors / variance)[:, told].sum(dim=1)
    penalty = PENALTIES[int(curve.argmin())] if told.any() else 1.0
    set_head(context.model.heads[-1], *sums.solution(penalty))
    context.log(f"the head starts from ridge regression, λ = {penalty:.3g} of the mean diagonal")
