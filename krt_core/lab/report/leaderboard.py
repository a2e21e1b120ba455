"""The leaderboard of a setting: its lines, those of papers apart, filtered by buffer and backbone, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .paper_table import HIGHER_IS_BETTER, Line, Setting, mean_and_std

ALL = "all"


def buffers_of(setting: Setting) -> list[str]:
    """What its methods may store, as `Line.buffer` says it; bounds aside."""
    return list(dict.fromkeys(line.buffer for line in setting.lines if not line.bound))


def backbones_of(setting: Setting) -> list[str]:
    """What its backbones do, as `Line.backbone` says it."""
    return list(dict.fromkeys(line.backbone for line in setting.lines))


def chosen_lines(setting: Setting, buffer: str = ALL, backbone: str = ALL) -> list[Line]:
    """Our lines with this buffer and backbone; bounds, which need no buffer, by their backbone alone."""
    return [
        line
        for line in setting.lines
        if (buffer == ALL or line.bound or line.buffer == buffer) and (backbone == ALL or line.backbone == backbone)
    ]


def leaderboard(
    setting: Setting, lines: Sequence[Line], metric: str = "average_mAP", published: bool = True
) -> pd.DataFrame:
    """A line per method, best by ``metric`` first: mean ± standard deviation (n − 1) over its runs, and its distance in
    points of ``metric`` to the best upper bound here. Published lines, where wanted, come last and say their source;
    they are never ranked among ours."""

    def mean(line: Line) -> float:
        return float(line.values[metric].mean()) if len(line.values[metric]) else np.nan

    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    ours = sorted(lines, key=lambda line: -sign * mean(line) if np.isfinite(mean(line)) else np.inf)
    bounds = [mean(line) for line in lines if line.bound and not line.oracle and np.isfinite(mean(line))]
    bound = (max if sign > 0 else min)(bounds) if bounds else np.nan
    sessions = len(setting.classes.sessions)
    rows = [_row(line, mean(line) - bound, sessions) for line in ours]
    if published:
        rows += [_row(line, np.nan, sessions) for line in setting.published]
    return pd.DataFrame(rows)


def _row(line: Line, from_bound: float, sessions: int) -> dict[str, str]:
    seconds = line.values["seconds"] if not line.published else ()
    return {
        "method": line.label + " (bound)" * line.bound,
        "buffer": line.buffer,
        "backbone": line.backbone,
        **{key.replace("_", " "): mean_and_std(line.values[key]) for key in HIGHER_IS_BETTER},
        "from the bound": f"{from_bound:+.1f}".replace("-", "−") if np.isfinite(from_bound) else "–",
        "stored": line.stored,
        "s / session": f"{np.median(seconds) / sessions:.1f}" if len(seconds) else "–",
        "runs": line.replicates,
        "source": f"published: {line.cited}" if line.published else f"recorded: {line.recorded}" * bool(line.recorded),
    }
