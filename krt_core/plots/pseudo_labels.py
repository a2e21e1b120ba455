"""Thresholds and what they restore."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..report import label_of, replicate_of
from ..run import Run
from .figure import MARKERS, PALETTE, new_figure


def thresholds(runs: Sequence[Run]) -> Figure | None:
    """Pseudo-label threshold and pseudo labels per image of each session; None if no run has any."""
    with_labels = [run for run in runs if run.session_state(run.finished_sessions - 1)["method"].get("thresholds")]
    if not with_labels:
        return None
    figure, (left, right) = new_figure(9.5, 3.3, 1, 2)
    for i, run in enumerate(with_labels):
        records = run.session_state(run.finished_sessions - 1)["method"]["thresholds"]
        x = [int(t) + 1 for t in records]
        style = dict(marker=MARKERS[i % len(MARKERS)], color=PALETTE[i % len(PALETTE)])
        name = f"{label_of(run, runs)}, {replicate_of(run)}"
        left.plot(x, [r["threshold"] for r in records.values()], label=name, **style)
        right.plot(x, [r["found"] for r in records.values()], **style)
        right.plot(x, [r["target"] for r in records.values()], ":", color="0.3", label="expected" if not i else None)
    left.set(xlabel="session", ylabel="threshold (probability)", title="Dynamic pseudo-label threshold")
    right.set(xlabel="session", ylabel="old labels per image", title="Pseudo labels found")
    for axis in (left, right):
        axis.set_xticks(x)
        axis.legend(fontsize=8)
    return figure
