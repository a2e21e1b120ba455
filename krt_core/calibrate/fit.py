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

FEWEST = 5  # images that show a class, and that do not: from fewer, one image more or less moves a threshold too far
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

    Classes with fewer than `FEWEST` images of a kind are fitted as one with the rarest others of these; where even they
    have too few together, and where no image shows a class, it stays as it is.
    """
    logits, classes = logit(scores), labels.shape[1]
    shown, absent = (labels > 0).sum(axis=0), (labels == 0).sum(axis=0)
    few = np.minimum(shown, absent) < FEWEST
    among = few | _rarest(shown, few)
    enough = all(counts[among].sum() >= FEWEST for counts in (shown, absent))
    fitted = ~few | (enough & (shown > 0))
    a, b, curves = np.ones(classes), np.zeros(classes), [np.zeros((2, 1))] * classes
    together = _fitted(logits[:, among], labels[:, among], kind) if (few & fitted).any() else None
    for c in np.flatnonzero(fitted):
        own = together if few[c] else _fitted(logits[:, [c]], labels[:, [c]], kind)
        assert own is not None  # nosec B101
        a[c], b[c], curves[c] = own
    made = replace(Calibration.none(classes), a=a, b=b, fitted=fitted, images=float(len(labels)), shown=shown * 1.0)
    return Fitted(replace(made, curves=tuple(curves)) if kind == "isotonic" else made, few, among)


def _rarest(shown: np.ndarray, few: np.ndarray) -> np.ndarray:
    """(C,) bool: the rarest classes that bring those with too few to `SHARED` images."""
    order = np.lexsort((shown, ~few))  # those with too few, then the others by rising number
    before = np.concatenate([[0], np.cumsum(shown[order])[:-1]])
    chosen = np.zeros(len(shown), bool)
    chosen[order[before < SHARED]] = few.any()
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

    fitted = IsotonicRegression().fit(logits, targets(labels)).predict(logits)
    steps, step_of = np.unique(fitted, return_inverse=True)
    centres = np.bincount(step_of, logits) / np.bincount(step_of)
    return np.stack([centres, np.log(steps) - np.log1p(-steps)])
