"""What was lost, when, and by which method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..metrics import forgetting_per_class
from ..report import label_of
from ..run import Run
from .figure import MARKERS, PALETTE, by_label, new_figure, style_of


def session_curves(
    runs: Sequence[Run], key: str = "mAP_seen", reference: dict[str, np.ndarray] | None = None
) -> Figure:
    """One metric after each session, averaged over the seeds and class orders of a method, with a band of one standard
    deviation.

    reference: published curves by name, drawn dashed over their own number of sessions.
    """
    groups = by_label(runs, same_order=False)
    names = len(groups) + len(reference or {})
    figure, axis = new_figure(7.2, 4.2 + 0.12 * names)
    for i, (name, group) in enumerate(groups.items()):
        curves = np.stack([run.curve(key) for run in group])
        x, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        axis.plot(x, mean, label=textwrap.fill(name, 60), mec="0.3", mew=0.5, **style_of(i))
        if len(curves) > 1:
            spread = curves.std(axis=0, ddof=1)
            axis.fill_between(x, mean - spread, mean + spread, color=PALETTE[i % len(PALETTE)], alpha=0.2, lw=0)
    for i, (name, curve) in enumerate((reference or {}).items()):
        axis.plot(np.arange(1, len(curve) + 1), curve, "--", color="0.3", marker=MARKERS[i % len(MARKERS)], ms=4,
                  label=name)  # fmt: skip
    sessions = runs[0].protocol.sessions
    words = " classes" if len(sessions) <= 9 else ""
    axis.set_xticks(range(1, len(sessions) + 1), [f"{s.index + 1}\n{s.stop}{words}" for s in sessions])
    axis.set(
        xlabel="after session" + ("" if words else " (below: classes learned)"),
        ylabel=f"{key.replace('_', ' ')} (%)",
        title=f"{key.replace('_', ' ')} after each session",
    )
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return figure


def forgetting_summary(runs: Sequence[Run]) -> Figure:
    """The headline forgetting of each method: a bar for the mean over its runs, whiskers of one standard deviation, and
    a dot per run. Class orders may differ."""
    groups = by_label(runs, same_order=False)
    figure, axis = new_figure(7.2, 1.3 + 0.42 * len(groups))
    for i, group in enumerate(groups.values()):
        values = np.array([run.summary["forgetting"] for run in group])
        spread = values.std(ddof=1) if len(values) > 1 else None
        colour = PALETTE[i % len(PALETTE)]
        axis.barh(i, values.mean(), height=0.6, color=colour, alpha=0.45, xerr=spread, capsize=3, ecolor="0.25")
        axis.plot(values, np.full(len(values), i), ls="", ms=5, mec="0.3", mew=0.5, clip_on=False, **style_of(i))
    axis.set_yticks(range(len(groups)), [textwrap.fill(name, 36) for name in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.axvline(0, color="0.3", lw=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set(xlabel="forgetting (points of AP)", title="Forgetting: best earlier AP − last AP, whole test set")
    return figure


def class_session_heatmap(runs: Sequence[Run], pool: str = "fixed") -> Figure:
    """AP of every class after every session, one panel per run; grey where the class is still to come."""
    classes = runs[0].protocol.classes
    height = max(3.0, 0.24 * len(classes) + 1.2)
    figure, axes = new_figure(2.9 * len(runs) + 1.4, height, 1, len(runs), squeeze=False, sharey=True)
    cmap = matplotlib.colormaps["viridis"].with_extremes(bad="0.88")
    for axis, run in zip(axes[0], runs, strict=True):
        table = run.ap_tables[pool]
        image = axis.imshow(table.T, vmin=0, vmax=100, cmap=cmap, aspect="auto")
        axis.set_xticks(range(len(table)), range(1, len(table) + 1))
        axis.set(title=label_of(run, runs), xlabel="after session")
        if len(classes) * len(table) <= 150:
            for (t, c), value in np.ndenumerate(table):
                if np.isfinite(value):
                    colour = "white" if value < 60 else "black"
                    axis.text(t, c, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes[0][0].set_yticks(range(len(classes)), classes, fontsize=8)
    figure.colorbar(image, ax=axes[0], label=f"AP (%), {POOLS[pool]}")
    return figure


POOLS = {
    "fixed": "whole test set",
    "seen": "test images with a seen class",
    "own": "test images of the class's own session",
}


def forgetting_bars(runs: Sequence[Run], kind: str = "max", pool: str = "fixed") -> Figure:
    """Points of AP each class lost until the end, averaged over the seeds of a method; without the last session's."""
    groups = by_label(runs)
    protocol = runs[0].protocol
    shown = protocol.sessions[-1].start
    figure, axis = new_figure(max(7.0, 0.28 * shown * len(groups) + 2), 3.8)
    width = 0.8 / len(groups)
    for i, (name, group) in enumerate(groups.items()):
        lost = np.mean([forgetting_per_class(r.ap_tables[pool], r.first_session, kind)[:shown] for r in group], axis=0)
        label = f"{name}: {lost.mean():.1f} on average"
        axis.bar(np.arange(shown) + (i - (len(groups) - 1) / 2) * width, lost, width, label=label,
                 color=PALETTE[i % len(PALETTE)])  # fmt: skip
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(range(shown), protocol.classes[:shown], rotation=45, ha="right")
    meaning = "best − last" if kind == "max" else "own session − last"
    axis.set(ylabel="AP lost (points)", title=f"Forgetting per class ({meaning}, {POOLS[pool]})")
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return figure
