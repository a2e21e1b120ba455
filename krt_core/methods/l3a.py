"""L3A: ridge regression with pseudo labels and weights for rare classes, in closed form, without exemplars.

Zhang et al., *L3A: Label-Augmented Analytic Adaptation for Multi-Label Class Incremental Learning*, ICML 2025. Of an
image with the backbone's embedding x (channels,):

- random expansion: φ = ReLU(Vx), V (d, channels) fixed and without bias
- pseudo labels: a label of an old class that the session does not show counts as 1 where sigmoid(φᵀW_old) > 0.7, W_old
  being the last session's regression, else as 0. Regression values lie near 0 and 1, so that means above 0.85
- weights: ω = mean over the image's labels, pseudo ones among them, of v_k; v_k ∝ n_k^−½ with mean 1, n_k images of the
  session with class k
- the head: W = (Σ ωφφᵀ + λI)⁻¹ Σ ωφyᵀ over all images of all sessions; of classes to come a y reads 0. The paper
  updates R = (Σ ωφφᵀ + λI)⁻¹ and W session by session, recursive least squares; here the sums are kept and solved,
  which gives the same W (and lets processes add up what each has seen)

There is no intercept, as in the paper, and λ is added as it is. Deviations: V is drawn from N(0, 1/channels), the
paper's scale is not documented; regression values v become logits 8 (v − ½), which orders them the same but moves the
threshold that F1 is taken at (the paper's 0.525 is v > 0.10, our 0.8 is v > 0.67). The backbone stands still from the
first image on; ``model.freeze=first`` trains it by the epochs of ``train`` in the first session, the paper's way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Experiment
from ..options import L3AOptions
from .base import Context
from .ridge import Ridge, rare_weights
from .statistics import Statistics


class L3A(Ridge):
    Options = L3AOptions
    paper = "Zhang et al., ICML 2025"
    stores = "sums over all images: Σφφᵀ, Σφyᵀ and, not used, Σφ, Σy"
    knows_unknown = True

    def __init__(self, options: L3AOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.share = ""  # λ is a plain number

    def solution(self, sums: Statistics) -> tuple[Tensor, Tensor]:
        W = torch.zeros_like(sums.Q)
        for group in (group for group in sums.groups if group.columns):
            ridge = group.G + self.penalty * torch.eye(len(group.G), dtype=group.G.dtype)
            W[:, group.columns] = torch.cholesky_solve(sums.Q[:, group.columns], torch.linalg.cholesky(ridge))
        return W, torch.zeros_like(sums.q)

    def _said(self, embedded: Tensor, sums: Statistics) -> Tensor | None:
        if self.options.old != "pseudo":
            return None
        W, _ = self.solution(sums)
        return (torch.sigmoid(embedded @ W) > self.options.threshold).to(embedded)

    def _weights(self, context: Context, labels: Tensor) -> Tensor:
        return rare_weights(context, labels) if self.options.weights == "rare" else labels.new_ones(len(labels))
