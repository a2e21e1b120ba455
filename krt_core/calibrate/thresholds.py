"""The threshold of a class on its calibrated probability, by what the probabilities themselves lead one to expect.

Where p is the probability that an image shows a class, the images above a threshold hold Σ p right ones, so that
precision, recall and F1 at every threshold follow from the probabilities (Lewis, *Evaluating and Optimizing Autonomous
Text Classification Systems*, SIGIR 1995). The labels of the few images that show a class say the same with more chance
in it: docs/calibration.md has both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import Calibrate


@dataclass(frozen=True)
class Aimed:
    """A threshold, what is expected there of the aim, and whether that is what was asked for."""

    threshold: float
    expected: float
    held: bool = True


def aimed_threshold(probabilities: np.ndarray, weights: np.ndarray, config: Calibrate) -> Aimed:
    """Named is what is above it. probabilities (n,) of one class, n ≥ 1; weights (n,): for how many images each stands.

    aim "f1": the highest F1; "precision": the lowest threshold with a precision of at least ``at``, or where there is
    none the one with the highest; "recall": the highest threshold with such a recall.

    >>> aimed_threshold(np.array([0.9, 0.6, 0.1]), np.ones(3), Calibrate(aim="precision", at=0.7)).threshold
    0.35
    """
    order = np.argsort(-probabilities, kind="stable")
    p, weight = probabilities[order].astype(np.float64), weights[order]
    last = np.append(p[1:] < p[:-1], True)  # of images with one probability: all are named, or none
    right, named = np.cumsum(weight * p)[last], np.cumsum(weight)[last]
    expected = {
        "f1": 2 * right / (named + right[-1]),
        "precision": right / named,
        "recall": right / right[-1],
    }[config.aim]
    enough = np.flatnonzero(expected >= config.at) if config.aim != "f1" else np.zeros(0, int)
    best = int(expected.argmax())
    if len(enough):
        best = int(enough[-1] if config.aim == "precision" else enough[0])
    steps = np.append(p[last], 0.0)
    threshold = float(steps[best] + steps[best + 1]) / 2
    return Aimed(threshold, float(expected[best]), config.aim == "f1" or len(enough) > 0)


def threshold_for(probabilities: np.ndarray, share: float) -> float:
    """The highest threshold above which at least such a share of the images lie; probabilities (n,), n ≥ 1.

    >>> round(threshold_for(np.array([0.9, 0.6, 0.2, 0.1]), 0.5), 2)
    0.4
    """
    p = np.sort(probabilities.astype(np.float64))[::-1]
    last = p[int(np.ceil(share * len(p) - 1e-9)) - 1]
    return float((last + p[p < last].max(initial=0)) / 2)
