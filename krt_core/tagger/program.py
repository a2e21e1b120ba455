"""The model of a run as one program: normalisation, network, the method's answer and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..methods import Method
from ..model import Network
from ..runs.calibration import EPS, Calibration

LIMIT = math.log(1 - EPS) - math.log(EPS)  # of a logit: scores are kept so far from 0 and 1


class Program(nn.Module):
    """Images (B, 3, S, S) float32 in [0, 1] → probabilities and scores (B, C) float32, columns in learning order."""

    def __init__(self, network: Network, method: Method, calibration: Calibration):
        super().__init__()
        self.network, self.method, self.classes = network, method, len(calibration.a)
        own = {name: value for name, value in vars(method).items() if isinstance(value, nn.Module)}
        self.own = nn.ModuleDict(own)  # what of the method is part of the program
        self.calibrated = bool(calibration.fitted.any())
        for name in ("a", "b"):
            self.register_buffer(name, torch.tensor(getattr(calibration, name), dtype=torch.float32))
        self.register_buffer("fitted", torch.tensor(calibration.fitted))
        self.curved = bool(calibration.curves)
        if self.curved:
            for name, values in zip(("corner", "height", "bends", "turns"), hinges(calibration.curves), strict=True):
                self.register_buffer(name, values)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.method.scores(self.network, images)[:, : self.classes].float()
        if not self.calibrated:
            return scores.clone(), scores
        # As `Calibration.probabilities`, which has float64: here the logit is cut, not the score, whose distance from 1
        # float32 rounds by 3 %.
        logit = (scores.log() - torch.log1p(-scores)).clamp(-LIMIT, LIMIT)
        u = self.a * logit + self.b
        if self.curved:
            turned = (self.turns * torch.relu(u.unsqueeze(-1) - self.bends)).sum(dim=-1)
            u = self.height + (u - self.corner) + turned
        return torch.where(self.fitted, torch.sigmoid(u), scores), scores


def hinges(curves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Curves of straight pieces by their corners (2, k), with slope 1 beyond their ends, as sums of hinges: g(u) =
    height + (u − corner) + Σ turns · max(u − bends, 0), with corner and height (C,), bends and turns (C, most)."""
    most = max(corners.shape[1] for corners in curves)
    bends, turns = np.zeros((len(curves), most)), np.zeros((len(curves), most))
    for row, (x, y) in enumerate(curves):
        slopes = np.concatenate([[1.0], np.diff(y) / np.diff(x), [1.0]])
        bends[row, : len(x)], turns[row, : len(x)] = x, np.diff(slopes)
    ends = np.array([corners[:, 0] for corners in curves]).T
    return tuple(torch.tensor(values, dtype=torch.float32) for values in (*ends, bends, turns))  # type: ignore[return-value]
