"""Losses, in float32 or better whatever the autocast: half precision makes the asymmetric loss NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .machine.precision import full_precision


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    weights: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss, summed over batch and classes; the focal weight carries no gradient.

    logits (B, C) real, targets (B, C) in {0, 1}, or less than 0 for unknown, which adds nothing. With p =
    sigmoid(logit) and p_m = max(p − clip, 0): L = −Σ y (1 − p)^γ+ log p + (1 − y) p_m^γ− log(1 − p_m). Source: Ridnik
    et al., ICCV 2021, eq. 7. weights (B, C): factors of the terms, 1 by default.
    """
    logits, targets = full_precision(logits), targets.to(torch.promote_types(logits.dtype, torch.float32))
    known, targets = targets >= 0, targets.clamp(min=0)
    positive = torch.sigmoid(logits)
    negative = (1 - positive + clip).clamp(max=1)  # 1 − p_m
    log_likelihood = targets * positive.clamp(min=1e-8).log() + (1 - targets) * negative.clamp(min=1e-8).log()
    with torch.no_grad():
        truth = positive * targets + negative * (1 - targets)
        weight = (1 - truth) ** (gamma_pos * targets + gamma_neg * (1 - targets))
        weight = weight * known if weights is None else weight * known * weights
    return -(log_likelihood * weight).sum()


def binary_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """−Σ y log σ(z / T) + (1 − y) log(1 − σ(z / T)), summed over batch and classes.

    logits z (B, C) real, targets y (B, C) in [0, 1], such as another model's probabilities, or less than 0 for unknown,
    which adds nothing.
    """
    logits = full_precision(logits) / temperature
    targets = targets.to(logits.dtype)
    terms = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    return (terms * (targets >= 0)).sum()


def token_distillation(old: Tensor, new: Tensor) -> Tensor:
    """1 − cosine of the concatenated session embeddings, averaged over the batch.

    old (B, T − 1, D) from the frozen model, new (B, ≥ T − 1, D): tokens of later sessions are left out.
    Source: Dong et al., ICCV 2023, eq. 7.
    """
    old, new = full_precision(old), full_precision(new[:, : old.shape[1]])
    return (1 - F.cosine_similarity(old.flatten(1), new.flatten(1))).mean()


def pod_spatial(old: Sequence[Tensor], new: Sequence[Tensor]) -> Tensor:
    """Pooled-output distillation (POD), the spatial kind, averaged over stages and batch.

    old, new: the same stages' maps (B, c, h, w) of the frozen and of the learning model. Each map is squared and summed
    along its width and along its height; the two sums of all channels form one unit vector per image, and the loss is
    the distance between old and new vectors. Source: Douillard et al., PODNet, ECCV 2020, eq. 5.
    """

    def pooled(stage: Tensor) -> Tensor:
        energy = full_precision(stage).square()
        return F.normalize(torch.cat([energy.sum(dim=3).flatten(1), energy.sum(dim=2).flatten(1)], dim=1))

    distances = [(pooled(a) - pooled(b)).norm(dim=1).mean() for a, b in zip(old, new, strict=True)]
    return torch.stack(distances).mean()
