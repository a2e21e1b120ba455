"""Methods beside one another: ranks, what they keep against what they learn, and what they cost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.paper_table import Line
from .figure import new_figure, plain, shortened, style_of


def rank_chart(ranks: pd.Series, stretches: Sequence[tuple[str, str]], replicates: int, metric: str) -> Figure:
    """Mean ranks of methods, best on the left, with bars over neighbours that no test tells apart (Demšar, JMLR 2006).

    ranks: by label, rising, see `krt_core.lab.report.significance.mean_ranks`; stretches: first and last label of each
    bar.
    """
    count, half = len(ranks), -(-len(ranks) // 2)
    figure, axis = new_figure(9, 1.5 + 0.24 * half + 0.13 * len(stretches))
    top = 0.55 + 0.22 * len(stretches)
    axis.set(xlim=(0.5, max(count, 2) + 0.5), ylim=(top + 0.42 * half, -0.5))
    axis.plot([1, max(count, 2)], [0, 0], color="0.2", lw=1.2)
    for tick in range(1, count + 1):
        axis.plot([tick, tick], [-0.08, 0.08], color="0.2", lw=1)
        axis.text(tick, -0.18, str(tick), ha="center", va="bottom", fontsize=8)
    for i, (name, rank) in enumerate(ranks.items()):
        left = i < half
        y = top + 0.42 * (i if left else count - 1 - i)
        edge = 0.5 if left else max(count, 2) + 0.5
        axis.plot([rank, rank, edge], [0, y, y], color=style_of(i)["color"], lw=1)
        words = f"{shortened(str(name), 44)}  {rank:.1f}"
        axis.annotate(plain(words), (edge, y), (-4 if left else 4, 0), textcoords="offset points", fontsize=8,
                      ha="right" if left else "left", va="center", annotation_clip=False)  # fmt: skip
    for level, (first, last) in enumerate(stretches):
        y = 0.25 + 0.22 * level
        axis.plot([ranks[first] - 0.04, ranks[last] + 0.04], [y, y], color="0.15", lw=3.5, solid_capstyle="round")
    axis.set_axis_off()
    words = f"mean rank by {metric} over {replicates} seeds and class orders"
    axis.set_title(f"{words}; a bar joins what is not told apart", fontsize=9)
    return figure


def stability_chart(lines: Sequence[Line]) -> Figure:
    """Forgetting against plasticity: how much is lost, and how well new classes are learned in the mean of the sessions
    after the first. Best is bottom right."""

    def learned(line: Line) -> np.ndarray:
        curves = [run.curve("mAP_new")[1:] for run in line.runs]
        known = [curve[np.isfinite(curve)] for curve in curves]  # sessions without a class of their own have none
        return np.array([curve.mean() if len(curve) else np.nan for curve in known])

    shown = [line for line in lines if line.runs and len(line.values["forgetting"])]
    return _scatter(
        shown, learned, lambda line: line.values["forgetting"],
        "mAP of new classes, mean of the sessions after the first (%)", "forgetting (points)",
        "What is kept against what is learned: best is bottom right",
    )  # fmt: skip


def cost_chart(lines: Sequence[Line], sessions: int) -> Figure:
    """Average mAP against the seconds of a session, median over the runs. Best is top left."""
    figure = _scatter(
        [line for line in lines if len(line.values["seconds"])],
        lambda line: np.median(line.values["seconds"], keepdims=True) / sessions,
        lambda line: line.values["average_mAP"], "seconds of a session", "average mAP (%)",
        "What it costs: best is top left",
    )  # fmt: skip
    figure.axes[0].set_xscale("log")
    return figure


def factor_chart(table: pd.DataFrame, factor: str, of: str = "krt") -> Figure:
    """What a factor does: on the left each method's mean at each level, on the right how far ``of`` is above masked
    fine-tuning and above the joint bound in pairs of one seed and class order; whiskers of one standard deviation.

    table: see `krt_core.lab.report.significance.factor_table`; a row of panels for each of its metrics. factor: what
    the levels are of, for the axis.
    """
    metrics, levels = list(dict.fromkeys(table["metric"])), list(dict.fromkeys(table["level"]))
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = new_figure(10, 0.7 + 3.1 * len(metrics), len(metrics), 2, sharex=True, squeeze=False)
    for metric, (left, right) in zip(metrics, axes, strict=True):
        own = table[table["metric"] == metric].set_index(["method", "level"])
        for i, method in enumerate(methods):
            _by_level(left, own.loc[method], levels, "mean", "std", (i - (len(methods) - 1) / 2) * 0.07, i, method)
        compared = [m for m in methods if of in methods and f"over_{m}" in own and m != of]
        for i, other in enumerate(compared):
            at = (i - (len(compared) - 1) / 2) * 0.07
            columns = f"over_{other}", f"over_{other}_std"
            _by_level(right, own.loc[of], levels, *columns, at, methods.index(other), f"{of} − {other}")
        words = metric.replace("_", " ")
        right.axhline(0, color="0.3", lw=0.8)
        left.set(ylabel=f"{words} (%)")
        right.set(ylabel=f"{of} − other, {words} (points)")
        for axis in (left, right):
            axis.grid(axis="y", alpha=0.3)
    for axis in axes[-1]:
        axis.set(xlabel=plain(factor))
        axis.set_xticks(range(len(levels)), [textwrap.fill(plain(level), 16) for level in levels])
    for axis, words in zip(axes[0], ("each method, mean and standard deviation", f"{of} against other methods, paired"),
                           strict=True):  # fmt: skip
        axis.set_title(words, fontsize=10)
    if axes[0, 1].get_legend_handles_labels()[0]:
        axes[0, 1].legend(fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(methods))
    return figure


def _by_level(
    axis: Axes, rows: pd.DataFrame, levels: Sequence[str], mean: str, std: str, shift: float, i: int, label: str
) -> None:
    """A method's line with whiskers; moved aside a little, so that whiskers do not hide one another."""
    own = rows.reindex(levels)
    spread = own[std].fillna(0)
    axis.errorbar(np.arange(len(levels)) + shift, own[mean], yerr=spread, lw=1.2, elinewidth=1, capsize=2, ms=6,
                  mec="0.3", mew=0.5, label=plain(label), **style_of(i))  # fmt: skip


def _scatter(
    lines: Sequence[Line], x: Callable[[Line], np.ndarray], y: Callable[[Line], np.ndarray], xlabel: str, ylabel: str,
    title: str,
) -> Figure:  # fmt: skip
    """Means of methods with whiskers over their runs; bounds are hollow."""
    figure, axis = new_figure(8, 4.6 + 0.12 * len(lines))
    for i, line in enumerate(lines):
        across, up = x(line), y(line)
        looks = {**style_of(i), "mec": style_of(i)["color"], **({"mfc": "white"} if line.bound else {})}
        axis.errorbar(
            across.mean(), up.mean(), xerr=_spread(across), yerr=_spread(up), ls="", ms=8, elinewidth=1, capsize=2,
            label=plain(shortened(line.label, 60)) + " (bound)" * line.bound, **looks,
        )  # fmt: skip
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    return figure


def _legend(figure: Figure, axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)


def _spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
