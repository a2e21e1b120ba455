"""F1 at other thresholds than the published one: at 0.5, at those that validation images chose, and at those of a
calibration, with what the scores are worth as probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from ...errors import RunError
from ...metrics import F1_THRESHOLD
from ...runs.folder import Run
from .paper_table import Line, known, mean_and_std

HALF = 0.5
Chosen = Mapping[str, tuple[float, float]]  # run folder → the thresholds of CF1 and OF1 that validation images chose
CALIBRATED = ("CF1_calibrated", "OF1_calibrated", "ECE", "ECE_calibrated")  # as `Run.calibrated` has them
COLUMNS = ("CF1_at_0.5", "OF1_at_0.5", "CF1_chosen", "OF1_chosen", "CF1_threshold", "OF1_threshold", *CALIBRATED)


def f1_of(run: Run, chosen: Chosen) -> dict[str, float | None]:
    """`COLUMNS` of a finished run, after its last session, in percent and points; None where it is not known."""
    found: dict[str, float | None] = dict.fromkeys(COLUMNS)
    with contextlib.suppress(RunError):  # scores that were deleted, or are damaged: what else is known is still told
        at_half = run.f1(HALF)
        found |= {"CF1_at_0.5": round(at_half["CF1"], 4), "OF1_at_0.5": round(at_half["OF1"], 4)}
        for key, threshold in zip(("CF1", "OF1"), chosen.get(str(run.folder), ()), strict=False):
            found |= {f"{key}_chosen": round(run.f1(threshold)[key], 4), f"{key}_threshold": round(threshold, 4)}
        found |= {key: round(value, 4) for key, value in run.calibrated().items()}
    return found


def f1_cells(lines: Sequence[Line], chosen: Chosen) -> list[tuple[Line, dict[str, str]]]:
    """Of each line of ours its CF1 and OF1 at every threshold, mean ± standard deviation over its runs."""
    rows, calibrated = [], False
    for line in lines:
        runs = [*line.rows, *(f1_of(run, chosen) for run in line.runs)]
        values = {key: known([r.get(key) for r in runs]) for key in COLUMNS}
        cells = {f"{key} at {F1_THRESHOLD}": mean_and_std(line.values[key]) for key in ("CF1", "OF1")}
        cells |= {f"{key} at {HALF}": mean_and_std(values[f"{key}_at_0.5"]) for key in ("CF1", "OF1")}
        if chosen:
            for key in ("CF1", "OF1"):
                cells[f"{key} chosen"] = mean_and_std(values[f"{key}_chosen"])
                cells[f"threshold of {key}"] = mean_and_std(values[f"{key}_threshold"][:1], 2)  # one for all runs
        for key in CALIBRATED:
            cells[key.replace("_", " ")] = mean_and_std(values[key])
            calibrated |= len(values[key]) > 0
        rows.append((line, cells))
    if calibrated:
        return rows
    beside = {key.replace("_", " ") for key in CALIBRATED}
    return [(line, {name: cell for name, cell in cells.items() if name not in beside}) for line, cells in rows]
