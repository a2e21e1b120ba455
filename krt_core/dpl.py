"""Dynamic pseudo labels (DPL): the threshold above which the old model's opinion becomes a label.

As published, a single threshold walks in fixed steps until the old model names about as many old classes per image as
are expected: μ · C_old / C_total, where μ is the mean number of labels per image. Source: Dong et al., ICCV 2023,
section 3.2. `find_thresholds` also offers an exact rule and one threshold per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

START, STEP, TOLERANCE, MAX_STEPS = 0.8, 0.005, 0.1, 100  # as published


@dataclass(frozen=True)
class ThresholdRecord:
    """How a threshold was found; kept in the run's ``state.json``."""

    threshold: float  # the mean over classes where each has its own
    target: float  # expected pseudo labels per image
    found: float  # pseudo labels per image at the threshold
    steps: int
    converged: bool  # False: no threshold met the band, this is the closest one visited
    per_class: tuple[float, ...] = ()  # thresholds of the old classes, where each has its own

    def as_dict(self) -> dict:
        return asdict(self)

    @property
    def values(self) -> np.ndarray:
        """(1,) or (C_old,) thresholds, to be compared with probabilities (B, C_old)."""
        return np.array(self.per_class or (self.threshold,))


def search_threshold(
    probabilities: np.ndarray,
    target: float,
    start: float = START,
    step: float = STEP,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> ThresholdRecord:
    """Walk from ``start`` until the mean number of probabilities above the threshold is within ``tolerance`` of
    ``target``.

    probabilities (n, C_old) are the old model's scores of the session's training images. Where the walk meets no such
    threshold (few images or saturated scores can jump across the whole band), the closest one visited is returned with
    ``converged=False``; the published code raises there. Raises ValueError on an empty matrix.
    """
    values = _sorted(probabilities)

    def per_image(threshold: float) -> float:
        above = len(values) - np.searchsorted(values, np.asarray(threshold, values.dtype), side="right")
        return float(above / len(probabilities))

    threshold, visited = start, []
    for steps in range(max_steps + 1):
        found = per_image(threshold)
        visited.append((abs(found - target), steps, threshold, found))
        if abs(found - target) < tolerance:
            return ThresholdRecord(float(threshold), target, found, steps, True)
        threshold += step if found > target else -step  # summed, not multiplied: the published values, to the last bit
    _, steps, threshold, found = min(visited)
    return ThresholdRecord(float(threshold), target, found, steps, False)


def exact_threshold(probabilities: np.ndarray, target: float) -> ThresholdRecord:
    """The threshold above which lie as many probabilities per image as expected: a quantile, without a walk.

    It stands midway between two neighbouring scores; among equal scores it stands at the nearer end of the tie.
    Raises ValueError on an empty matrix.
    """
    values = _sorted(probabilities)
    wanted = target * len(probabilities)  # scores to lie above
    cuts = np.flatnonzero(np.diff(values) > 0) + 1  # a threshold can only stand between different scores
    cuts = np.concatenate([[0], cuts, [len(values)]])
    cut = int(cuts[np.abs(len(values) - cuts - wanted).argmin()])
    lowest = 0.0 if values[0] > 0 else -1.0  # a score of exactly 0 lies above no threshold of 0
    below, above = (values[cut - 1] if cut else lowest), (values[cut] if cut < len(values) else 1.0)
    found = (len(values) - cut) / len(probabilities)
    return ThresholdRecord(float((float(below) + float(above)) / 2), target, found, 0, abs(found - target) < TOLERANCE)


def find_thresholds(
    probabilities: np.ndarray,
    target: float,
    rule: str = "published",
    shares: np.ndarray | None = None,
    last: ThresholdRecord | None = None,
) -> ThresholdRecord:
    """This session's threshold or thresholds.

    probabilities (n, C_old); target expected pseudo labels per image; rule "published" (the walk, from the last
    session's value) or "exact" (the quantile); shares (C_old,) of the target that fall to each class: with them every
    class gets a threshold of its own by the same rule, the published tolerance divided among the classes.
    """
    if shares is None:
        if rule == "exact":
            return exact_threshold(probabilities, target)
        return search_threshold(probabilities, target, last.threshold if last else START)
    starts: Sequence[float] = last.per_class if last else ()
    records = []
    for column, share in enumerate(shares.tolist()):
        scores = probabilities[:, column : column + 1]
        if rule == "exact":
            records.append(exact_threshold(scores, target * share))
        else:
            start = starts[column] if column < len(starts) else START
            records.append(search_threshold(scores, target * share, start, tolerance=TOLERANCE / len(shares)))
    values = tuple(record.threshold for record in records)
    return ThresholdRecord(
        float(np.mean(values)), target, sum(record.found for record in records),
        max(record.steps for record in records), all(record.converged for record in records), values,
    )  # fmt: skip


def _sorted(probabilities: np.ndarray) -> np.ndarray:
    if probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(f"probabilities must be a non-empty (n, C_old) matrix, got shape {probabilities.shape}")
    return np.sort(probabilities, axis=None)
