"""Thresholds and what they restore."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from ...data import MultiLabelDataset
from ...errors import RunError
from ...runs.folder import Run
from ..analysis.pseudo_labels import KINDS, KINDS_OF_ONE, PseudoLabels, class_quality, gives_pseudo_labels, quality
from ..report import names_of
from .figure import MARKERS, PALETTE, by_label, name_rows, new_figure, style_of, write_numbers
from .gallery import run_name
from .sheet import Said, length_of, make_card, sheet

PARTS = {"hidden": PALETTE[7], "given": PALETTE[0], "right": PALETTE[2]}
PRECISION, RECALL = dict(color=PALETTE[0], marker="o"), dict(color=PALETTE[1], marker="D")
PER_COLUMN = 36  # classes below one another
CLOSEST = "did not meet the band: closest"  # threshold of a search that failed


def thresholds(runs: Sequence[Run]) -> Figure | None:
    """Pseudo-label threshold and pseudo labels per image of each session; None if no run has any."""
    named = zip(runs, names_of(runs), strict=True)
    with_labels = [(run, name) for run, name in named if gives_pseudo_labels(run)]
    if not with_labels:
        return None
    figure, (left, right) = new_figure(9.5, 3.3, 1, 2)
    for i, (run, name) in enumerate(with_labels):
        records = run.session_state(run.finished_sessions - 1)["method"]["thresholds"]
        x = [int(t) + 1 for t in records]
        style = dict(marker=MARKERS[i % len(MARKERS)], color=PALETTE[i % len(PALETTE)])
        left.plot(x, [r["threshold"] for r in records.values()], label=name, **style)
        right.plot(x, [r["found"] for r in records.values()], **style)
        right.plot(x, [r["target"] for r in records.values()], ":", color="0.3", label="expected" if not i else None)
    left.set(xlabel="session", ylabel="threshold (probability)", title="Dynamic pseudo-label threshold")
    right.set(xlabel="session", ylabel="old labels per image", title="Pseudo labels found")
    for axis in (left, right):
        axis.set_xticks(x)
        _no_math(axis.legend(fontsize=8))
    return figure


def pseudo_label_quality(
    runs: Run | Sequence[Run],
    train_set: MultiLabelDataset | None = None,
    class_name: str | None = None,
    *,
    name: str = "",
) -> Figure:
    """Precision and recall of the pseudo labels in each session: a line over all labels together (micro), a dashed one
    for the mean over classes (macro). Replicates are averaged, with a band of one standard deviation. class_name: of
    one class alone. name: how a single run is called.

    Runs without pseudo labels are left out; RunError where there is none with them. train_set: see
    `krt_core.lab.analysis.pseudo_labels.pseudo_labels`.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    groups = by_label([run for run in runs if gives_pseudo_labels(run)], same_order=False)
    if not groups:
        raise RunError("No run here gave pseudo labels: train one of method krt with krt.pseudo_labels=true.")
    height = 3.5 + 0.165 * (len(groups) + (class_name is None))
    figure = Figure(figsize=(9.5, height))
    space = dict(left=0.05, right=0.98, top=1 - 0.4 / height, bottom=1 - 2.95 / height, wspace=0.1)
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw=space)
    for i, group in enumerate(groups.values()):
        tables = pd.concat([quality(run, train_set, class_name) for run in group]).groupby(level=0)
        mean, spread = tables.mean(), tables.std()
        for axis, key in zip(axes, ("precision", "recall"), strict=True):
            middle, by = mean[f"{key} micro"], spread[f"{key} micro"]
            axis.plot(mean.index, middle, ms=6, **style_of(i))
            axis.fill_between(mean.index, middle - by, middle + by, color=style_of(i)["color"], alpha=0.2, lw=0)
            if class_name is None:
                axis.plot(mean.index, mean[f"{key} macro"], "--", lw=1, ms=4, mfc="white", **style_of(i))
    of = "all pseudo labels" if class_name is None else f"the pseudo labels of {class_name}"
    last = max(run.finished_sessions for run in runs)
    for axis, key in zip(axes, ("precision", "recall"), strict=True):
        axis.set(xlabel="session", ylim=(-3, 103), xlim=(1.7, last + 0.3), xticks=range(2, last + 1))
        axis.set_title(f"{key.capitalize()} of {of} (%)", fontsize=10, parse_math=False)
        axis.grid(alpha=0.3)
    names = [name] if name and len(runs) == 1 else groups
    handles = [Line2D([], [], label=textwrap.shorten(words, 90), **style_of(i)) for i, words in enumerate(names)]
    if class_name is None:
        handles.append(Line2D([], [], color="0.3", ls="--", lw=1, label="dashed: mean over classes (macro)"))
    _no_math(figure.legend(handles=handles, fontsize=8, loc="lower center", frameon=False))
    figure.alt = f"Precision and recall of {of} in each session: {', '.join(names)}"
    return figure


def pseudo_label_threshold(
    found: PseudoLabels, table: pd.DataFrame | None = None, column: int | None = None, *, name: str = ""
) -> Figure:
    """One session: the threshold among those of the other sessions, hollow where the search did not meet its band; what
    another one would have given; precision and recall of every session.

    table: `lab.analysis.pseudo_labels.quality` of the run (and class), where it is at hand. column: of one class alone.
    name: how the run is called.
    """
    run, session = found.run, found.session
    of = None if column is None else found.classes[column]
    table = quality(run, class_name=of) if table is None else table
    single = column is not None or len(set(found.thresholds.tolist())) == 1
    figure = Figure(figsize=(13, 3.6))
    axes = figure.subplots(1, 3, gridspec_kw=dict(left=0.062, right=0.985, top=0.85, bottom=0.14, wspace=0.2))
    axes[0].plot(table.index, table.threshold, "o-", color="0.2")
    if (failed := table[table.converged == 0]).size:
        axes[0].plot(failed.index, failed.threshold, "o", color="0.2", mfc="white", label=CLOSEST)
        axes[0].legend(fontsize=8)
    for at, value in table.threshold.items():
        axes[0].annotate(f"{value:.3f}", (at, value), (0, 7), textcoords="offset points", ha="center", fontsize=8,
                         bbox=dict(facecolor="white", alpha=0.7, lw=0, pad=0.5))  # fmt: skip
    room = 0.05 + 0.15 * (table.threshold.max() - table.threshold.min())
    axes[0].set(xlabel="session", ylabel="threshold (probability)",
                ylim=(max(0, table.threshold.min() - room), table.threshold.max() + room))  # fmt: skip
    axes[0].set_title("Threshold" if single else "Threshold (mean over classes)", fontsize=10)
    curve, at = found.curve(column), table.loc[session + 1]
    for key, style in (("precision", PRECISION), ("recall", RECALL)):
        axes[1].plot(curve.threshold, curve[key], color=style["color"], ls="-" if key == "precision" else "--")
        if single:
            axes[1].plot(at.threshold, at[f"{key} micro"], ms=8, mec="0.2", clip_on=False, **style)
        else:
            axes[1].axhline(at[f"{key} micro"], color=style["color"], lw=1, ls=":", label=f"{key} as it was")
        axes[2].plot(table.index, table[f"{key} micro"], label=key, **style)
        if of is None:
            axes[2].plot(table.index, table[f"{key} macro"], ls="--", lw=1, ms=4, mfc="white", **style,
                         label=f"{key}, mean over classes")  # fmt: skip
    if single:
        axes[1].axvline(at.threshold, color="0.2", lw=1, ls=":")
    else:  # no point of the curves, which have one threshold for all
        axes[1].legend(fontsize=8, title="with a threshold for each class", title_fontsize=8)
    axes[1].set(xlabel="threshold (probability)", ylim=(-3, 103), xlim=(0, 1))
    had = "had the threshold been another" if single else "had all classes had one threshold"
    axes[1].set_title(f"Session {session + 1}, {had} (%)", fontsize=10)
    axes[2].set(xlabel="session", ylim=(-3, 103))
    axes[2].set_title("Precision and recall of each session (%)", fontsize=10)
    axes[2].legend(fontsize=8)
    for axis in (axes[0], axes[2]):
        axis.axvline(session + 1, color="0.9", lw=9, zorder=0)
        axis.set_xlim(1.6, run.finished_sessions + 0.4)
        axis.set_xticks(range(2, run.finished_sessions + 1))
    for axis in axes:
        axis.grid(alpha=0.3)
    title = f"{_title(found, name)}: {'all old classes' if of is None else of}"
    figure.suptitle(title, fontsize=_size(figure, title), y=0.985, parse_math=False)
    return figure


def pseudo_label_classes(found: PseudoLabels, column: int | None = None, *, name: str = "") -> Figure:
    """Precision and recall of the pseudo labels of every old class in one session, in learning order. Up to
    `PER_COLUMN` classes have their numbers of labels beside them: right / given / hidden.

    column: a class to be set in bold. name: how the run is called. Each axis has its classes, from the top, in
    `columns`.
    """
    table = found.per_class()
    parts = [table.iloc[i : i + PER_COLUMN] for i in range(0, len(table), PER_COLUMN)]
    margin = 0.072 * max(map(len, table["class"])) + 0.25
    length, room = (5.2, 1.35) if len(parts) == 1 else (3.6, 0.3)  # of an axis, and at its right, in inches
    step = margin + length + room
    width, height = step * len(parts), 0.22 * len(parts[0]) + 1.35
    figure = Figure(figsize=(width, height))
    for i, part in enumerate(parts):
        inches = (step * i + margin, 0.5, length, 0.22 * len(part))
        top = height - 0.85
        box = (inches[0] / width, (top - inches[3]) / height, inches[2] / width, inches[3] / height)
        axis = figure.add_axes(box)
        _dots(axis, part, column, counts=len(parts) == 1)
        axis.columns = part.index.tolist()
    handles = [Line2D([], [], ls="", label=key, **style) for key, style in
               (("precision", PRECISION), ("recall", RECALL))]  # fmt: skip
    _title_as_text(figure, f"{_title(found, name)}: pseudo labels per class")
    figure.legend(handles=handles, fontsize=8, ncols=2, frameon=False, loc="upper left",
                  bbox_to_anchor=((margin - 0.1) / width, 1 - 0.3 / height))  # fmt: skip
    return figure


def _dots(axis: Axes, table: pd.DataFrame, column: int | None, counts: bool) -> None:
    y = np.arange(len(table))
    both = np.isfinite(table.precision) & np.isfinite(table.recall)
    lines = [[(p, at), (r, at)] for p, r, at in zip(table.precision[both], table.recall[both], y[both], strict=True)]
    axis.add_collection(LineCollection(lines, color="0.75", lw=2, zorder=1))
    for values, style in ((table.precision, PRECISION), (table.recall, RECALL)):
        axis.plot(values, y, ls="", ms=6, mec="0.3", mew=0.4, clip_on=False, **style)
    for at, (index, line) in zip(y, table.iterrows(), strict=True):
        weight = "bold" if index == column else "normal"
        axis.text(-4, at, line["class"], ha="right", va="center", fontsize=8, weight=weight, parse_math=False)
        if counts:
            axis.text(104, at, f"{line.right} / {line.given} / {line.hidden}", va="center", fontsize=8, weight=weight)
    if counts:
        axis.text(104, -1, "right / given / hidden", va="center", fontsize=7, color="0.35")
    for at in np.flatnonzero(np.diff(table.learned)) + 0.5:
        axis.axhline(at, color="0.6", lw=0.7, ls=":")
    axis.set(xlim=(-2, 102), ylim=(len(table) - 0.4, -0.6), yticks=[], xticks=range(0, 101, 25))
    axis.set_xlabel("%", fontsize=8, labelpad=1)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)


def pseudo_label_heatmap(run: Run, train_set: MultiLabelDataset | None = None, *, name: str = "") -> Figure:
    """Precision and recall (%) of every class in every session in which it was old; grey where undefined. name: how the
    run is called."""
    tables, names = class_quality(run, train_set), run.protocol.classes
    columns = next(iter(tables.values())).shape[1]
    margin, height = 0.075 * max(map(len, names[:columns])) + 0.35, max(2.6, 0.2 * columns + 1.25)
    width = margin + 6.4
    figure = Figure(figsize=(width, height))
    space = dict(left=margin / width, right=1 - 0.95 / width, top=1 - 0.72 / height, bottom=0.5 / height, wspace=0.08)
    axes = figure.subplots(1, 2, gridspec_kw=space)
    cmap = matplotlib.colormaps["viridis"].with_extremes(bad="0.88")
    for axis, (key, table) in zip(axes, tables.items(), strict=True):
        image = axis.imshow(table.T, vmin=0, vmax=100, cmap=cmap, aspect="auto")
        axis.set_xticks(range(len(table)), range(2, len(table) + 2))
        axis.set_yticks([])
        axis.set_xlabel("session")
        axis.set_title(f"{key} (%)", fontsize=9)
        if table.size <= 120:
            write_numbers(axis, table.T, table.T < 60)
    name_rows(axes[0], names[:columns])
    figure.colorbar(image, cax=figure.add_axes((1 - 0.8 / width, 0.5 / height, 0.16 / width, 1 - 1.22 / height)))
    what = "pseudo labels per class and session (grey: undefined, or not yet old)"
    _title_as_text(figure, f"{name or run_name(run)}: {what}")
    return figure


def pseudo_labels_per_image(found: PseudoLabels, *, name: str = "") -> Figure:
    """How many old labels an image hides and how many it is given: each by itself, and one against the other. name: how
    the run is called."""
    counts = {key: getattr(found, key).sum(axis=1) for key in PARTS}
    most = int(max(values.max(initial=0) for values in counts.values()))
    figure = Figure(figsize=(11, 3.9))
    space = dict(left=0.06, right=0.94, top=0.83, bottom=0.13, wspace=0.2, width_ratios=[1.5, 1])
    left, right = figure.subplots(1, 2, gridspec_kw=space)
    for i, (key, values) in enumerate(counts.items()):
        share = 100 * np.bincount(values, minlength=most + 1) / len(values)
        left.bar(np.arange(most + 1) + 0.27 * (i - 1), share, 0.27, color=PARTS[key],
                 label=f"{key}: {values.mean():.2f} on average")  # fmt: skip
    left.set(xlabel="old labels of an image", ylabel="images (%)", xticks=range(0, most + 1, 1 + most // 16))
    left.legend(fontsize=8)
    left.grid(axis="y", alpha=0.3)
    table = np.zeros((most + 1, most + 1))
    np.add.at(table, (counts["given"], counts["hidden"]), 100 / len(found.rows))
    image = right.imshow(np.where(table > 0, table, np.nan), origin="lower", cmap="cividis", vmin=0, aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        if most <= 8 and value > 0:
            right.text(x, y, f"{value:.0f}" if value >= 1 else "<1", ha="center", va="center", fontsize=7,
                       color="white" if value < 0.6 * table.max() else "black")  # fmt: skip
    right.plot([-0.5, most + 0.5], [-0.5, most + 0.5], color="0.5", lw=0.8, ls="--")
    right.set(xlabel="hidden", ylabel="given", xlim=(-0.5, most + 0.5), ylim=(-0.5, most + 0.5))
    right.set_xticks(range(0, most + 1, 1 + most // 10))
    right.set_yticks(range(0, most + 1, 1 + most // 10))
    right.set_title("images (%)", fontsize=9)
    figure.colorbar(image, cax=figure.add_axes((0.95, 0.13, 0.012, 0.7)))
    exact = (~found.wrong & ~found.missed).all(axis=1)[hide := counts["hidden"] > 0]
    words = f"{hide.sum()} of {len(hide)} images hide old labels"
    if not found.judged.any():
        words = "what these images hide is not known"
    elif len(exact):
        words += f"; on {100 * exact.mean():.0f} % of these all are restored and none is wrong"
    title = f"{_title(found, name)}: {words}."
    figure.suptitle(title, fontsize=_size(figure, title), x=0.01, ha="left", parse_math=False)
    return figure


def pseudo_label_images(
    found: PseudoLabels, kind: str = "wrong", column: int | None = None, count: int = 12, *, name: str = ""
) -> Figure:
    """Training images by what their pseudo labels are, one of `KINDS`, with boxes and scores.

    column: an old class; None: any. name: how the run is called. Raises RunError for an unknown kind.
    """
    rows, cards = found.images(kind, column), []
    for row in rows[:count]:
        lines = []
        for verdict in ("wrong", "missed", "right", "unknown"):
            columns = np.flatnonzero(getattr(found, verdict)[row])
            columns = columns[np.argsort(-found.scores[row, columns], kind="stable")]
            lines += [(verdict, found.classes[c], float(found.scores[row, c])) for c in columns]
        lines += [
            ("shown", found.classes[c], None) for c in np.flatnonzero(found.visible[row] & (found.truth[row] > 0))
        ]
        score = None if column is None else float(found.scores[row, column])
        told = Said(lines, score, None if column is None else float(found.thresholds[column]))
        main, note = None if column is None else found.classes[column], " (exemplar)" if row >= found.own else ""
        cards.append(make_card(found.dataset, str(found.ids[row]), main, [told], note))
    of = "any old class" if column is None else found.classes[column]
    words = (KINDS if column is None else KINDS_OF_ONE)[kind]
    title = f"{_title(found, name)}, {of}: {words}; {len(cards)} of {len(rows)} images"
    bars = "" if column is None else f"bars: {found.classes[column]}, tick: its threshold     "
    unknown = "   ? nobody knows" if found.unknown.any() else ""
    marks = f"{bars}✓ right   ✗ wrong   ○ missed   = shown anyway{unknown}     numbers: the old model's probability"
    return sheet(cards, f"{title}\n{marks}")


def _title(found: PseudoLabels, name: str) -> str:
    return f"{name or run_name(found.run)}, session {found.session + 1}"


def _title_as_text(figure: Figure, title: str) -> None:
    """A title from the left margin on; the figure's `alt` too, for to matplotlib it is no title."""
    width, height = figure.get_size_inches()
    size = _size(figure, title)
    figure.text(0.1 / width, 1 - 0.12 / height, title, fontsize=size, va="top", parse_math=False)
    figure.alt = title


def _size(figure: Figure, title: str) -> float:
    """Points at which a title fits into the width: 10, or less for the long name of a run. On screen letters are up to
    8 % wider than in print."""
    return max(6.0, min(10.0, 9.2 * (figure.get_size_inches()[0] - 0.2) / length_of(title, size=10)))


def _no_math(legend: Legend) -> None:
    """A `$` in a name is no mathematics."""
    for text in legend.get_texts():
        text.set_parse_math(False)
