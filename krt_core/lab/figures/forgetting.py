"""What was lost, when, and by which method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...metrics import forgetting_per_class
from ...runs.folder import Run
from .figure import (
    MARKERS,
    PALETTE,
    ROWS,
    TICKS,
    by_label,
    counted,
    name_rows,
    new_figure,
    one_of,
    plain,
    shortened,
    some,
    style_of,
    styles,
    write_numbers,
)


def session_curves(
    runs: Sequence[Run],
    key: str = "mAP_seen",
    reference: dict[str, np.ndarray] | None = None,
    among: Sequence[Run] = (),
) -> Figure:
    """One metric after each session, averaged over the seeds and class orders of a method, with a band of one standard
    deviation.

    reference: published curves by name, drawn dashed over their own number of sessions. among: the runs that these are
    chosen from, which decide how a method is called and coloured.
    """
    groups = by_label(runs, same_order=False, among=among)
    names, looks = len(groups) + len(reference or {}), styles(groups, among)
    figure, axis = new_figure(7.2, 4.2 + 0.12 * names)
    for name, group in groups.items():
        curves = np.stack([run.curve(key) for run in group])
        x, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        axis.plot(x, mean, label=textwrap.fill(counted(name, group), 60), mec="0.3", mew=0.5, **looks[name])
        if len(curves) > 1:
            spread = curves.std(axis=0, ddof=1)
            axis.fill_between(x, mean - spread, mean + spread, color=looks[name]["color"], alpha=0.2, lw=0)
    for i, (name, curve) in enumerate((reference or {}).items()):
        axis.plot(np.arange(1, len(curve) + 1), curve, "--", color="0.3", marker=MARKERS[i % len(MARKERS)], ms=4,
                  label=name)  # fmt: skip
    sessions = runs[0].protocol.sessions
    words, told = " classes" if len(sessions) <= 9 else "", sessions[:: some(len(sessions), TICKS // 2).step]
    axis.set_xticks([s.index + 1 for s in told], [f"{s.index + 1}\n{s.stop}{words}" for s in told])
    band = ", mean and standard deviation" if any(len(group) > 1 for group in groups.values()) else ""
    axis.set(
        xlabel="after session" + ("" if words else " (below: classes learned)"),
        ylabel=f"{key.replace('_', ' ')} (%)",
        title=f"{key.replace('_', ' ')} after each session{band}",
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
    axis.set_yticks(range(len(groups)), [textwrap.fill(plain(name), 36) for name in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.axvline(0, color="0.3", lw=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set(
        xlabel="forgetting (points of AP)", title=f"Forgetting: best earlier AP − last AP, {pool_words('fixed', runs)}"
    )
    return figure


def class_session_heatmap(
    runs: Sequence[Run],
    pool: str = "fixed",
    classes: Sequence[int] = (),
    change: bool = False,
    among: Sequence[Run] = (),
) -> Figure:
    """AP of every class after every session, one panel per method (mean over its runs), grey where it is still to come.

    change: instead, by how many points the AP changed in each session. classes: columns to show; empty: all. among: as
    in `session_curves`.
    """
    one_of("pool", pool, POOLS)
    groups, names = by_label(runs, among=among), runs[0].protocol.classes
    columns = list(classes) or list(range(len(names)))
    height = max(3.0, 0.2 * min(len(columns), ROWS) + 1.2)
    margin = 0.075 * max(len(names[c]) for c in columns) + 0.35
    width = margin + 2.5 * len(groups) + 0.9
    figure = Figure(figsize=(width, height))
    space = dict(left=margin / width, right=1 - 0.95 / width, top=1 - 0.5 / height, bottom=0.55 / height, wspace=0.08)
    axes = figure.subplots(1, len(groups), squeeze=False, gridspec_kw=space)[0]
    tables = {name: np.mean([run.ap_tables[pool] for run in group], axis=0) for name, group in groups.items()}
    if change:
        tables = {name: np.diff(table, axis=0, prepend=np.nan) for name, table in tables.items()}
    limit = max((np.nanmax(np.abs(t), initial=1) for t in tables.values()), default=1) if change else 100
    cmap = matplotlib.colormaps["RdBu" if change else "viridis"].with_extremes(bad="0.88")
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        shown = table[:, columns].T
        image = axis.imshow(shown, vmin=-limit if change else 0, vmax=limit, cmap=cmap, aspect="auto")
        axis.set_xticks(ticks := some(len(table), TICKS // 2), [t + 1 for t in ticks])
        axis.set_title(textwrap.fill(counted(name, groups[name]), 30), fontsize=9)
        axis.set_xlabel("after session" if not change else "in session")
        if shown.size <= 150:
            write_numbers(axis, shown, np.abs(shown) > 0.6 * limit if change else shown < 60)
        axis.set_yticks([])
    name_rows(axes[0], [names[column] for column in columns])
    bar = figure.add_axes((1 - 0.8 / width, 0.55 / height, 0.16 / width, 1 - 1.05 / height))
    figure.colorbar(image, cax=bar, label="change of AP (points)" if change else f"AP (%), {pool_words(pool, runs)}")
    return figure


POOLS = {
    "fixed": "whole test set",
    "seen": "test images with a seen class",
    "own": "test images of the class's own session",
}


def pool_words(pool: str, runs: Sequence[Run]) -> str:
    """`POOLS`, and what the whole test set is of runs that have grown: see `krt_core.runs.summary.ap_of_session`."""
    grown = pool == "fixed" and any(run.experiment.data.added for run in runs)
    return "test images of its time" if grown else POOLS[pool]


def class_curves(
    runs: Sequence[Run],
    pool: str = "fixed",
    classes: Sequence[int] = (),
    reference: dict[str, np.ndarray] | None = None,
    among: Sequence[Run] = (),
) -> Figure:
    """A small picture per class: its AP (0 to 100 %) after each session, a line per method with a band of one standard
    deviation over its runs. The background of the class's own session is darker.

    classes: columns to show; empty: all. reference: published AP by name, (T, C) in learning order, dashed. All of it
    is drawn into one axis: eighty axes would take seconds. The axis' `places` says which class lies where. among: as in
    `session_curves`.
    """
    one_of("pool", pool, POOLS)
    groups, protocol = by_label(runs, among=among), runs[0].protocol
    stacks = {name: np.stack([run.ap_tables[pool] for run in group]) for name, group in groups.items()}  # (R, T, C)
    means = {name: stack.mean(axis=0) for name, stack in stacks.items()} | (reference or {})
    looks = _line_styles(styles(groups, among), reference)
    axis = _small_boxes(list(classes) or list(range(len(protocol.classes))))
    sessions, across = len(runs[0].ap_tables[pool]), axis.get_xlim()[1]
    axis.figure.alt = f"AP of {len(axis.places)} classes after each session, by {', '.join(groups)}"
    x = np.linspace(0.03, 0.88, sessions)

    def curve(place: tuple[int, int], ap: np.ndarray) -> np.ndarray:
        return np.column_stack([place[0] + x[: len(ap)], place[1] + 0.98 - 0.7 * ap / 100])

    own = {column: s.index for s in protocol.sessions for column in range(s.start, s.stop)}
    begins = [
        [(left + x[own[c]], top + 0.28), (left + x[own[c]], top + 0.98)] for (left, top), c in axis.places.items()
    ]
    axis.add_collection(LineCollection(begins, color="0.75", lw=0.8))
    for (left, top), column in axis.places.items():
        axis.text(left, top + 0.24, shortened(protocol.classes[column], 17), fontsize=7, parse_math=False)
    for name, stack in stacks.items():
        if len(stack) > 1:
            mean, spread, edges = means[name], stack.std(axis=0, ddof=1), []
            for place, c in axis.places.items():
                learned = np.isfinite(mean[:, c])
                above, below = curve(place, (mean + spread)[:, c]), curve(place, (mean - spread)[:, c])
                edges.append(np.vstack([above[learned], below[learned][::-1]]))
            axis.add_collection(PolyCollection(edges, facecolor=looks[name]["color"], alpha=0.25, lw=0))
    for name, mean in means.items():
        lines = [curve(place, mean[:, column]) for place, column in axis.places.items()]
        axis.add_collection(LineCollection(lines, lw=1.3, **looks[name]))
        axis.scatter(*np.array([line[-1] for line in lines]).T, s=7, color=looks[name]["color"])
    words = {name: counted(name, groups[name]) if name in groups else name for name in looks}
    handles = [Line2D([], [], lw=1.5, label=shortened(words[name], 60), **look) for name, look in looks.items()]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), fontsize=7, ncols=2, frameon=False,
                borderaxespad=0)  # fmt: skip
    axis.text(across - 0.08, -0.45, f"each box: sessions 1 to {sessions} from left to right, AP 0 to 100 % upwards\n"
              f"({pool_words(pool, runs)}); the line stands at the session that taught the class",
              fontsize=7, ha="right", va="center", color="0.3")  # fmt: skip
    return axis.figure


def _small_boxes(columns: list[int]) -> Axes:
    """An axis with a grey box per column; its `places` are (across, down) → column."""
    across = max(1, min(10, len(columns)))
    while across > 5 and len(columns) / across < across * 0.7:
        across -= 1
    down = -(-len(columns) // across)
    figure = Figure(figsize=(1.32 * across + 0.5, 0.98 * down + 0.8))
    axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axis.set(xlim=(-0.05, across), ylim=(down + 0.02, -0.62))
    axis.set_axis_off()
    axis.places = {(i % across, i // across): column for i, column in enumerate(columns)}
    corners = [[(x, y + 0.28), (x + 0.91, y + 0.28), (x + 0.91, y + 0.98), (x, y + 0.98)] for x, y in axis.places]
    axis.add_collection(PolyCollection(corners, facecolor="0.95", edgecolor="none"))
    return axis


def _line_styles(looks: dict[str, dict], reference: dict[str, np.ndarray] | None) -> dict[str, dict]:
    """Colour and dashes by name, told apart without colour too."""
    dashes = dict(
        zip(MARKERS, ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (7, 2))), strict=True)
    )
    lines = {name: dict(color=look["color"], ls=dashes[look["marker"]]) for name, look in looks.items()}
    return lines | {name: dict(color="0.3", ls=(0, (1, 2 + i))) for i, name in enumerate(reference or {})}


def forgetting_bars(
    runs: Sequence[Run],
    kind: str = "max",
    pool: str = "fixed",
    classes: Sequence[int] = (),
    among: Sequence[Run] = (),
) -> Figure:
    """Points of AP each class lost until the end, averaged over the seeds of a method; without the last session's.

    classes: columns to show; empty: all. Many classes are drawn as points instead of bars. among: as in
    `session_curves`.
    """
    one_of("definition", kind, ("max", "first")), one_of("pool", pool, POOLS)
    groups, protocol = by_label(runs, among=among), runs[0].protocol
    looks = styles(groups, among)
    columns = [c for c in (classes or range(len(protocol.classes))) if c < protocol.sessions[-1].start]
    many = len(columns) * len(groups) > 60
    width = max(7.0, 0.17 * min(len(columns), ROWS) + 2 if many else 0.28 * len(groups) * len(columns) + 2)
    height = 4.2 + 0.12 * len(groups)
    figure = Figure(figsize=(width, height))
    bottom = (
        0.7
        + (0.052 if many else 0.06) * max((len(protocol.classes[c]) for c in columns), default=0)
        + 0.12 * len(groups)
    )
    axis = figure.add_axes((0.7 / width, bottom / height, 1 - 0.85 / width, 1 - (bottom + 0.4) / height))
    bar = 0.8 / len(groups)
    for i, (name, group) in enumerate(groups.items()):
        per_run = [forgetting_per_class(r.ap_tables[pool], r.first_session, kind)[columns] for r in group]
        lost = np.mean(per_run, axis=0)
        label = counted(name, group) + (f": {lost.mean():.1f} on average" if len(lost) else "")
        if many:
            axis.plot(np.arange(len(columns)), lost, ls="", ms=5, mec="0.3", mew=0.4, label=label, **looks[name])
        else:
            axis.bar(np.arange(len(columns)) + (i - (len(groups) - 1) / 2) * bar, lost, bar, label=label,
                     color=looks[name]["color"])  # fmt: skip
    axis.axhline(0, color="0.3", lw=0.8)
    turned = dict(rotation=90, fontsize=7) if many else dict(rotation=45, ha="right")
    ticks = some(len(columns), ROWS)
    axis.set_xticks(ticks, [plain(protocol.classes[columns[i]]) for i in ticks], **turned)
    axis.set_xlim(-0.7, len(columns) - 0.3)
    axis.grid(axis="y", alpha=0.3)
    meaning = "best − last" if kind == "max" else "own session − last"
    axis.set(ylabel="AP lost (points)", title=f"Forgetting per class ({meaning}, {pool_words(pool, runs)})")
    figure.legend(fontsize=8, loc="lower center", ncols=2)
    return figure


# ---- one session ----


def falls_in_session(table: pd.DataFrame, session: int, name: str = "", count: int = 12) -> Figure:
    """The classes whose AP fell most in a session, from `lab.analysis.forgetting.falls`: AP before and after, with the
    change. name: of the run or method, for the title."""
    shown = table[table.change < 0].head(count)[::-1]
    names = [f"{plain(line['class'])} (session {line.learned})" for _, line in shown.iterrows()]
    margin = 0.075 * max(map(len, names), default=12) + 0.3
    figure = Figure(figsize=(margin + 4.6, 0.27 * max(len(shown), 2) + 1.45))
    width, height = figure.get_size_inches()
    axis = figure.add_axes((margin / width, 0.62 / height, 1 - (margin + 0.25) / width, 1 - 1.2 / height))
    y = np.arange(len(shown))
    axis.hlines(y, shown.after, shown.before, color="0.6", lw=2.5)
    axis.plot(shown.before, y, "o", color=PALETTE[0], mec="0.3", ms=7, label="before")
    axis.plot(shown.after, y, "D", color=PALETTE[1], mec="0.3", ms=6, label=f"after session {session + 1}")
    for at, (_, line) in zip(y, shown.iterrows(), strict=True):
        axis.annotate(f"{line.change:+.1f}", (min(line.after, line.before), at), (-8, 0), textcoords="offset points",
                      ha="right", va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(y, names, fontsize=8)
    axis.set(xlim=(-12, 105), ylim=(-0.7, max(len(shown), 1) - 0.3), xlabel="AP (%)")
    what = "Fell most" if len(shown) else "No class fell"
    axis.set_title("\n".join([f"{what} in session {session + 1}", *([plain(name)] if name else [])]), fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    if len(shown):
        axis.legend(fontsize=8, loc="best")
    axis.columns = shown.column.tolist()
    return figure


def said_instead(rows: dict[str, pd.DataFrame], session: int) -> Figure:
    """Old classes that fell (rows: name → its `confusions`) against the new ones of the session:
    what is said in their place, and how often they share an image."""
    new = next(iter(rows.values())).sort_values("column")["new class"].tolist()
    kinds = {"said instead": "said in its place (points above other images)", "together": "images shared (%)"}
    margin = 0.075 * max(map(len, rows)) + 0.35
    width, height = margin + 2 * max(3.1, 0.34 * len(new) + 1.5), 0.3 * len(rows) + 1.4 + 0.05 * max(map(len, new))
    figure = Figure(figsize=(width, height))
    bottom = (0.35 + 0.055 * max(map(len, new)) + 0.2) / height
    space = dict(left=margin / width, right=1 - 0.45 / width, top=1 - 0.45 / height, bottom=bottom, wspace=0.12)
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw=space)
    for axis, (kind, words) in zip(axes, kinds.items(), strict=True):
        values = np.stack([table.sort_values("column")[kind].to_numpy() for table in rows.values()])
        image = axis.imshow(values, cmap="cividis", aspect="auto", vmin=0, vmax=max(np.nanmax(values, initial=1), 1))
        axis.set_xticks(range(len(new)), [plain(name) for name in new], rotation=60, ha="right", fontsize=8)
        axis.set_title(words, fontsize=9)
        if values.size <= 60:
            write_numbers(axis, values, values < 0.55 * image.get_clim()[1])
        else:
            figure.colorbar(image, ax=axis, fraction=0.06, pad=0.03)
    axes[0].set_yticks(range(len(rows)), [plain(name) for name in rows], fontsize=8)
    return figure
