"""Dynamic pseudo labels (DPL): the threshold above which the old model's opinion becomes a label.

A single threshold walks in fixed steps until the old model names about as many old classes per image as are expected:
μ · C_old / C_total, where μ is the mean number of labels per image. Source: Dong et al., ICCV 2023, section 3.2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

START, STEP, TOLERANCE, MAX_STEPS = 0.8, 0.005, 0.1, 100  # as published


@dataclass(frozen=True)
class ThresholdRecord:
    """How a threshold was found; kept in the run's ``state.json``."""

    threshold: float
    target: float  # expected pseudo labels per image
    found: float  # pseudo labels per image at the threshold
    steps: int
    converged: bool  # False: no threshold met the band, this is the closest one visited

    def as_dict(self) -> dict:
        return asdict(self)


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
    if probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(f"probabilities must be a non-empty (n, C_old) matrix, got shape {probabilities.shape}")
    values = np.sort(probabilities, axis=None)

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
