"""Images on which a class was named once and is not any more."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..data import MultiLabelDataset
from ..data.pipeline import load_image
from ..errors import DataError
from ..run import Run
from .figure import PALETTE

SIDE = 128  # pixels of a thumbnail
SAID = 2  # classes named under an image


def lost_images(
    run: Run, dataset: MultiLabelDataset, table: pd.DataFrame, column: int, since: int, session: int, across: int = 6
) -> Figure:
    """The images of `krt_core.forgetting.lost_images`, the class in its box where that is known. Bars give the
    probability after both sessions, side by side; below stand the classes said most now: ✓ those shown, ✗ others.

    Raises DataError if an image is not in the data set any more or cannot be read.
    """
    place = {image: row for row, image in enumerate(dataset.ids.tolist())}
    now, classes = run.scores(session), run.protocol.classes
    down = -(-len(table) // across)
    figure = Figure(figsize=(1.62 * across + 0.1, 2.35 * down + 0.5))
    axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axis.set(xlim=(-0.02, across), ylim=(1.45 * down, -0.27))
    axis.set_axis_off()
    title = f"{classes[column]}: probability after session {since + 1} (its own) and after session {session + 1}"
    axis.text(0, -0.13, title, fontsize=9, va="center")
    kind = dataset.classes.index(classes[column])
    for i, line in enumerate(table.itertuples()):
        if line.image not in place:
            raise DataError(f"Test image {line.image!r} of {run.folder.name} is not in {dataset.name} any more.")
        row, left, top = place[line.image], i % across, 1.45 * (i // across)
        extent = (left, left + 0.95, top + 0.95, top)
        axis.imshow(load_image(dataset.path(row), SIDE), extent=extent, aspect="auto", interpolation="nearest")
        mine = (dataset.boxes[:, 0] == row) & (dataset.boxes[:, 1] == kind)
        for x, y, width, height in 0.95 * dataset.boxes[mine, 2:]:
            xs, ys = left + x + np.array([0, width, width, 0, 0]), top + y + np.array([0, 0, height, height, 0])
            axis.plot(xs, ys, color="white", lw=2.2)
            axis.plot(xs, ys, color="black", lw=1)
        for k, (value, colour) in enumerate(((line.before, PALETTE[0]), (line.now, PALETTE[1]))):
            y = top + 1.0 + 0.09 * k
            axis.barh(y, 0.62, 0.07, left, color="0.93")
            axis.barh(y, 0.62 * value, 0.07, left, color=colour)
            axis.text(left + 0.65, y, f"{value:.2f}" + (" then" if not k else " now"), fontsize=7, va="center")
        scores, shown = now.scores[line.row], now.labels[line.row]
        said = [f"{'✓' if shown[c] else '✗'} {classes[c]} {scores[c]:.2f}" for c in np.argsort(-scores)[:SAID]]
        for k, words in enumerate(said):
            axis.text(left, top + 1.2 + 0.1 * k, words, fontsize=7, va="center")
    axis.set(xlim=(-0.02, across), ylim=(1.45 * down, -0.27))
    return figure
