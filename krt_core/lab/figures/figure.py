"""What all figures share: size, colours for colour-blind readers, markers, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import RunError
from ...machine.home import atomic_write, file_name, resolve
from ...runs.folder import Run
from ..report import labels_of

PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vP*X"
ROWS, TICKS = 120, 40  # names below one another, and sessions side by side, that can be read


def save(figure: Figure, folder: str | Path, name: str) -> Figure:
    """Write ``<folder>/<name>.png`` and ``.pdf`` and return the figure. What no file name may hold is replaced."""
    name = file_name(name)
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: journals refuse Type 3 fonts
        for kind in ("png", "pdf"):
            path = resolve(folder) / f"{name}.{kind}"
            undated = {"CreationDate": None} if kind == "pdf" else None  # the same figure is the same bytes
            how = {"format": kind, "dpi": 150, "bbox_inches": "tight", "metadata": undated}
            atomic_write(path, lambda file, how=how: figure.savefig(file, **how))
    return figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV."""
    return atomic_write(resolve(path), table.to_csv())


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """The value of a parameter, or a RunError that names it and what it may be."""
    if value not in (choice := list(known)):
        raise RunError(f"{name} must be one of {', '.join(choice)}; found {value!r}.")
    return value


def by_label(runs: Sequence[Run], same_order: bool = True, among: Sequence[Run] = ()) -> dict[str, list[Run]]:
    """Runs by method, named as `labels_of` names them among all the others.

    Raises RunError if they have different classes or protocols or, where it matters, class orders, or if they have not
    finished equally many sessions.
    """
    classes = tuple if same_order else frozenset
    if len({run.finished_sessions for run in runs}) > 1 or not all(run.finished_sessions for run in runs):
        counts = ", ".join(f"{run.folder.name}: {run.finished_sessions}" for run in runs)
        raise RunError(f"These runs have not finished equally many sessions ({counts}): draw them apart.")
    if len({(classes(run.protocol.classes), run.protocol.name) for run in runs}) > 1:
        orders = ", class orders" if same_order else ""
        raise RunError(f"These runs have different classes{orders} or protocols: draw them apart.")
    groups: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels_of([*runs, *among]), strict=False):
        groups.setdefault(label, []).append(run)
    return groups


def styles(groups: dict[str, list[Run]], among: Sequence[Run] = ()) -> dict[str, dict]:
    """Colour and marker by label; among: all runs that may be chosen, so that a method keeps its colour."""
    everyone = list(dict.fromkeys([*(labels_of(among) if among else ()), *groups]))
    return {name: style_of(everyone.index(name)) for name in groups}


def counted(name: str, group: Sequence[Run]) -> str:
    """A label for a legend: with the number of runs where they are several, and safe from being read as mathematics."""
    return plain(name) + (f" ({len(group)} runs)" if len(group) > 1 else "")


def write_numbers(axis: Axes, values: np.ndarray, white: np.ndarray, size: float = 7) -> None:
    """Whole numbers into the cells of values (rows, columns) as ``imshow`` draws them; white where ``white`` (rows,
    columns) is true, none where a value is NaN."""
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if white[y, x] else "black"
            axis.text(x, y, f"{round(float(value)) + 0}", ha="center", va="center", fontsize=size, color=colour)


def some(count: int, most: int) -> range:
    """Of so many places at most so many, equally far apart, from the first on: more names would lie on one another."""
    return range(0, count, max(1, -(-count // most)))


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Names at the left as plain text: eighty ticks with labels take longer than the rest of a picture."""
    axis.set_yticks([])
    for y in some(len(names), ROWS):
        axis.text(-0.7, y, names[y], ha="right", va="center", fontsize=8, parse_math=False)


def plain(name: str) -> str:
    """A name as matplotlib is to show it: a dollar sign begins no formula."""
    return name.replace("$", r"\$")


def shortened(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def style_of(i: int) -> dict:
    """Colour and marker of the i-th method: the pairs repeat only after forty."""
    return dict(color=PALETTE[i % len(PALETTE)], marker=MARKERS[i % len(MARKERS)])
