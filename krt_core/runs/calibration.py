"""Probabilities that mean something: per class from its scores, and the threshold above which a class counts as named.

p = sigmoid(u) with u = a · logit(score) + b for each class (Platt, *Advances in Large Margin Classifiers*, 1999), or
p = sigmoid(g(u)) with a rising curve g of straight pieces (isotonic). Either way a higher score has a higher p, so that
AP is what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..machine.home import atomic_write
from . import shapes
from .files import damaged, read_json, to_json

EPS = 1e-12  # scores are kept so far from 0 and 1
PER_CLASS = ("a", "b", "thresholds", "fitted", "shown")


def logit(scores: np.ndarray) -> np.ndarray:
    """log(s / (1 − s)) in float64 of scores in [0, 1]."""
    kept = np.clip(scores.astype(np.float64), EPS, 1 - EPS)
    return np.log(kept) - np.log1p(-kept)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


@dataclass(frozen=True)
class Calibration:
    """Of the classes seen so far, in learning order: slopes ``a`` (C,), offsets ``b`` (C,), ``thresholds`` (C,) on the
    calibrated probabilities, and ``fitted`` (C,) bool: which were fitted; the others are left as they are.

    curves: of each class, if any, the corners (2, k) of g, rows u and g(u), both rising; beyond its ends g goes on with
    slope 1. images, shown (C,): for how many images the probabilities are, and how many of these show each class, by
    which `for_images` goes on when more are seen.
    """

    a: np.ndarray
    b: np.ndarray
    thresholds: np.ndarray
    fitted: np.ndarray
    curves: tuple[np.ndarray, ...] = ()
    images: float = 0
    shown: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def none(cls, classes: int) -> Calibration:
        """Scores as they are, thresholds of one half."""
        whole = np.ones(classes), np.zeros(classes), np.full(classes, 0.5), np.zeros(classes, bool)
        return cls(*whole, shown=np.zeros(classes))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(n, C) float32 of scores (n, C) in [0, 1]."""
        return np.where(self.fitted, sigmoid(self.logits(logit(scores))), scores).astype(np.float32)

    def logits(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) calibrated logits of the scores' own (n, C)."""
        u = self.a * logits + self.b
        for column, corners in enumerate(self.curves):
            u[:, column] = along(corners, u[:, column])
        return u

    def moved(self, slope: np.ndarray, offset: np.ndarray) -> Calibration:
        """For logits of which slope (C,) · logit + offset (C,) is what they were before."""
        return replace(self, a=self.a * slope, b=self.a * offset + self.b)

    def for_images(self, images: float) -> Calibration:
        """For more images, none of which that are new shows one of these classes more often: odds times
        [n / (N − n)] / [n / (m − n)] with n images of m until now, and of N from now on, that show the class."""
        where = self.fitted & (self.shown < self.images)
        before, after = (np.where(where, total - self.shown, 1) for total in (self.images, images))
        log_odds = np.log(before / np.maximum(after, 1e-9))
        if not self.curves:
            return replace(self, b=self.b + log_odds, images=images)
        raised = (np.stack([x, y + more]) for (x, y), more in zip(self.curves, log_odds, strict=True))
        return replace(self, curves=tuple(raised), images=images)

    def then(self, other: Calibration) -> Calibration:
        """These classes and after them those of another, for the same images."""
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in PER_CLASS}
        curves = self.all_curves() + other.all_curves() if self.curves or other.curves else ()
        return Calibration(**joined, curves=curves, images=other.images)

    def first(self, classes: int) -> Calibration:
        """The first so many classes."""
        kept = {name: getattr(self, name)[:classes] for name in PER_CLASS}
        return replace(self, **kept, curves=self.curves[:classes])

    def all_curves(self) -> tuple[np.ndarray, ...]:
        return self.curves or (np.zeros((2, 1)),) * len(self.a)  # of one corner: g(u) = u

    def write(self, path: Path) -> None:
        content = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        content["curves"] = [corners.tolist() for corners in self.curves]
        atomic_write(path, to_json(content, indent=1))

    @classmethod
    def read(cls, path: Path, classes: int, way_out: str) -> Calibration | None:
        """None where there is no such file; RunError where it is damaged, or of another number of classes."""
        content = read_json(path, way_out, shapes.CALIBRATION)
        if content is None:
            return None
        if missing := {"a", "b", "thresholds", "fitted"} - content.keys():
            raise damaged(path, f"it lacks {', '.join(sorted(missing))}", way_out)
        numbers = {key: np.array(content.get(key) or [0.0] * classes, np.float64) for key in PER_CLASS}
        curves = content.get("curves", [])
        faults = {
            f"it must hold {classes} classes": {*map(len, [*numbers.values(), *([curves] if curves else [])])}
            != {classes},
            "a number in it is none": not all(np.isfinite(values).all() for values in numbers.values()),
            "a slope is not positive": (numbers["a"] <= 0).any(),
            "a curve in it does not rise": not all(map(rises, curves)),
        }
        if why := [fault for fault, is_so in faults.items() if is_so]:
            raise damaged(path, why[0], way_out)
        made = tuple(np.array(corners, np.float64) for corners in curves)
        return cls(**{**numbers, "fitted": numbers["fitted"] > 0}, curves=made, images=content.get("images", 0))


def rises(corners: list[list[float]]) -> bool:
    """Are these the two rows of a rising curve?"""
    two = len(corners) == 2 and len(corners[0]) == len(corners[1]) > 0
    return two and all(np.isfinite(row).all() and (np.diff(row) > 0).all() for row in corners)


def along(corners: np.ndarray, u: np.ndarray) -> np.ndarray:
    """g(u) of a curve by its corners (2, k)."""
    x, y = corners
    return np.interp(u, x, y) + np.minimum(u - x[0], 0) + np.maximum(u - x[-1], 0)
