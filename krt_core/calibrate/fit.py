"""A calibration of each class from scores and labels of images that the model has not learned from.

Platt's two numbers, with the targets that he gives them and a slope that is never negative (Platt, *Probabilistic
Outputs for Support Vector Machines*, 1999); or isotonic regression (Zadrozny and Elkan, KDD 2002) of what they leave,
with a straight line between the centres of its steps, so that it rises everywhere (centred isotonic regression: Oron
and Flournoy, *Statistics in Biopharmaceutical Research*, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..runs.calibration import Calibration, logit, sigmoid

FEWEST = 5  # images that show a class, and that do not: from fewer, one image more or less moves all too far
SHARED = 20  # images that show a class, which those with too few and the rarest others must have together
LEAST_SLOPE = 0.01  # of the calibrated logit, per standard deviation of the scores' own: it rises, so that AP stays


@dataclass(frozen=True)
class Fitted:
    """A calibration without thresholds; ``few`` (C,) bool: of classes that share one, of those ``among`` (C,) bool."""

    calibration: Calibration
    few: np.ndarray
    among: np.ndarray


def fit(scores: np.ndarray, labels: np.ndarray, kind: str = "platt") -> Fitted:
    """kind "platt" or "isotonic"; scores (n, C) in [0, 1], labels (n, C): 1 or True, 0, and -1 for unknown, left out.

    Classes that fewer than `FEWEST` images show are fitted as one, with the rarest others; where even they have too few
    together, and where no image or nearly every image shows a class, it stays as it is.
    """
    logits, classes = logit(scores), labels.shape[1]
    shown, absent = (labels > 0).sum(axis=0), (labels == 0).sum(axis=0)
    able = (shown > 0) & (absent >= FEWEST)
    few = able & (shown < FEWEST)
    among = _rarest(shown, few, able)
    fitted = able & (~few | (shown[among].sum() >= FEWEST))
    a, b, curves = np.ones(classes), np.zeros(classes), [np.zeros((2, 1))] * classes
    together = _fitted(logits[:, among], labels[:, among], kind) if (few & fitted).any() else None
    for c in np.flatnonzero(fitted):
        own = together if together and few[c] else _fitted(logits[:, [c]], labels[:, [c]], kind)
        a[c], b[c], curves[c] = own
    made = replace(Calibration.none(classes), a=a, b=b, fitted=fitted, images=float(len(labels)), shown=shown * 1.0)
    return Fitted(replace(made, curves=tuple(curves)) if kind == "isotonic" else made, few & fitted, among)


def _rarest(shown: np.ndarray, few: np.ndarray, able: np.ndarray) -> np.ndarray:
    """(C,) bool: those with too few images, and the rarest others that bring them to `SHARED`; none where none has."""
    chosen = few.copy()
    for c in np.argsort(shown, kind="stable"):
        if few.any() and able[c] and shown[chosen].sum() < SHARED:
            chosen[c] = True
    return chosen


def _fitted(logits: np.ndarray, labels: np.ndarray, kind: str) -> tuple[float, float, np.ndarray]:
    """Slope, offset and curve for all pairs of the columns together."""
    known = labels >= 0
    z, y = logits[known], labels[known] > 0
    a, b = platt(z, y)
    return a, b, isotonic(a * z + b, y) if kind == "isotonic" else np.zeros((2, 1))


def targets(labels: np.ndarray) -> np.ndarray:
    """(n,) what probabilities are fitted to: (P + 1) / (P + 2) of P images that show the class, 1 / (N + 2) of N others
    (Platt, 1999), so that no few of them are ever certain."""
    positives = np.count_nonzero(labels)
    return np.where(labels, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))


def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope a > 0 and offset b of p = sigmoid(a · logit + b) with the least log loss; logits (n,), labels (n,) bool."""
    from scipy.optimize import minimize

    aim, centre, spread = targets(labels), logits.mean(), logits.std() or 1.0
    x = (logits - centre) / spread

    def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
        u = ab[0] * x + ab[1]
        off = sigmoid(u) - aim
        return (np.logaddexp(0, u) - aim * u).mean(), np.array([(off * x).mean(), off.mean()])

    start = [1.0, np.log(aim.mean() / (1 - aim.mean()))]
    bounds = [(LEAST_SLOPE, None), (None, None)]
    a, b = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-15}).x
    return float(a / spread), float(b - a * centre / spread)


def isotonic(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Corners (2, k) of a curve from logits (n,) to those of isotonic regression, both rows rising."""
    from sklearn.isotonic import IsotonicRegression

    z = np.sort(logits)
    fitted = IsotonicRegression().fit(logits, targets(labels)).predict(z)
    step = np.append(0, np.cumsum(np.diff(fitted) > 1e-9))  # equal but for rounding is one
    centres, levels = (np.bincount(step, values) / np.bincount(step) for values in (z, fitted))
    return np.stack([centres, np.log(levels) - np.log1p(-levels)])
