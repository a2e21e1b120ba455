"""Probabilities that mean something: per class from its scores, and the threshold above which a class counts as named.

p = sigmoid(a · logit(score) + b) for each class (Platt, *Advances in Large Margin Classifiers*, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..machine.home import atomic_write
from . import shapes
from .files import read_json, to_json

EPS = 1e-6  # scores are kept so far from 0 and 1


@dataclass(frozen=True)
class Calibration:
    """Of the classes seen so far, in learning order: slopes ``a`` (C,), offsets ``b`` (C,), ``thresholds`` (C,) on the
    calibrated probabilities, and ``fitted`` (C,) bool: which were fitted; the others are left as they are."""

    a: np.ndarray
    b: np.ndarray
    thresholds: np.ndarray
    fitted: np.ndarray

    @classmethod
    def none(cls, classes: int) -> Calibration:
        """Scores as they are, thresholds of one half."""
        return cls(np.ones(classes), np.zeros(classes), np.full(classes, 0.5), np.zeros(classes, bool))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(n, C) float32 of scores (n, C) in [0, 1]."""
        kept = np.clip(scores.astype(np.float64), EPS, 1 - EPS)
        p = 1 / (1 + np.exp(-(self.a * (np.log(kept) - np.log1p(-kept)) + self.b)))
        return np.where(self.fitted, p, scores).astype(np.float32)

    def write(self, path: Path) -> None:
        atomic_write(path, to_json({key: value.tolist() for key, value in vars(self).items()}, indent=1))

    @classmethod
    def read(cls, path: Path, way_out: str) -> Calibration | None:
        """None where there is no such file; RunError where it is damaged."""
        content = read_json(path, way_out, shapes.CALIBRATION)
        if content is None:
            return None
        return cls(*(np.array(content[key]) for key in ("a", "b", "thresholds", "fitted")))
