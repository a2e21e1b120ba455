"""The curves: seconds, memory, handles and temporary files, and bytes of each session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from krt_core.lab.figures.figure import new_figure, style_of


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each quantity, a line for each method; tenths of the sessions are drawn by their medians."""
    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "processor seconds of a session": lambda line: line["processor"],
        "memory after a session (MB)": lambda line: line["memory_mb"],
        "bytes of a session (MB)": lambda line: sum(line["bytes"].values()) / 1e6,
        "open handles (lines), temporary files (crosses)": lambda line: line["handles"],
    }
    figure, axes = new_figure(9.5, 6.2, 2, 2, sharex=True)
    for axis, (title, value) in zip(axes.flat, panels.items(), strict=True):
        for i, result in enumerate(results):
            lines = result["sessions"]
            x, y = ([np.median(part) for part in np.array_split(values, 20)] for values in (
                [line["session"] + 1 for line in lines], [value(line) for line in lines]))  # fmt: skip
            style = {**style_of(i), "marker": style_of(i)["marker"]}
            axis.plot(x, y, ms=4, mec="0.3", mew=0.4, label=result["method"], **style)
            if "handles" in title:
                crosses = [(line["session"] + 1, line["temporary_files"]) for line in lines[::10]]
                axis.plot(*zip(*crosses, strict=True), "x", color="0.3", ms=5, clip_on=False)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    classes = results[0]["sessions"][-1]["classes"]
    for axis in axes[-1]:
        axis.set_xlabel(f"session ({classes // len(results[0]['sessions'])} classes each)")
    axes.flat[0].legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else {"CreationDate": None})
