"""The pointing game: does the strongest patch of a class lie inside the box of an object of that class?

Source: Zhang et al., *Top-down Neural Attention by Excitation Backprop*, ECCV 2016. Any data set with boxes will do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ...data import MultiLabelDataset
from ...errors import DataError
from ...presets.said import whole
from ...runs.folder import Run
from ...weights.convert import load_model
from .explain import evidence, grad_cam, look
from .inputs import Inputs

WAYS = ("evidence", "gradient × value", "attention", "Grad-CAM", "chance")


def pointing_game(run: Run, dataset: MultiLabelDataset, session: int, images: int = 0, batch: int = 50) -> pd.DataFrame:
    """One line per present class of every image (the first ``images``; 0: all), by the model after ``session``.

    Columns: image (id), class, learned (its session), score, and per way of `WAYS` whether the centre of its strongest
    patch is in a box: *evidence* (`explain.evidence`), its first-order form *gradient × value*, the mean *attention* of
    the session's token, *Grad-CAM* on the last feature map; *chance* is the share of all patches whose centre is. Only
    classes learned by then and with a box count. Raises DataError if the data set has no boxes.
    """
    if not len(dataset.boxes):
        raise DataError(
            f"{dataset.name} {dataset.split} has no boxes: the pointing game needs to know where things are."
        )
    model, protocol, inputs = load_model(run, session), run.protocol, Inputs(run, dataset)
    column_of = {dataset.classes.index(name): column for column, name in enumerate(protocol.classes)}
    boxes: dict[tuple[int, int], list[np.ndarray]] = {}
    for row, kind, *box in dataset.boxes:
        if int(kind) in column_of:
            boxes.setdefault((int(row), column_of[int(kind)]), []).append(np.array(box))
    labels = protocol.on(dataset).reorder(dataset.labels)[:, : protocol.sessions[session].stop]
    rows, lines = np.arange(len(dataset))[: images or None], []
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch]
        given = inputs.of(chosen)
        seen = look(model, given)
        for column in np.flatnonzero(labels[chosen].any(axis=0)):
            with_class = np.flatnonzero([(row, column) in boxes for row in chosen])
            if not len(with_class):
                continue
            those, token = seen.of(with_class), seen.sessions[column]
            maps = {
                "evidence": evidence(those, column).maps,
                "gradient × value": evidence(those, column, steps=0).maps,
                "attention": those.patches[:, token].mean(axis=1),
                "Grad-CAM": grad_cam(model, given[with_class], int(column)),
            }
            for i, row in enumerate(chosen[with_class]):
                hits = dict(_hits({way: of[i] for way, of in maps.items()}, boxes[row, column]))
                about = {"image": str(dataset.ids[row]), "class": protocol.classes[column], "learned": token + 1}
                lines.append({**about, "score": float(those.scores[i, column]), **hits})
    return pd.DataFrame(lines)


def pointing_table(run: Run, dataset: MultiLabelDataset, images: int = 0) -> pd.DataFrame:
    """Hits of the last finished session's model in percent, by way, for the classes of each session and for all of
    them. Takes and raises as `pointing_game`."""
    game = pointing_game(run, dataset, run.finished_sessions - 1, whole("pointing", images))
    if not len(game):
        return pd.DataFrame(columns=WAYS)
    table = 100 * game.groupby("learned")[list(WAYS)].mean()
    table.loc["all"] = 100 * game[list(WAYS)].mean()
    return table.round(1)


def _hits(maps: dict[str, np.ndarray], boxes: list[np.ndarray]) -> Iterator[tuple[str, float]]:
    """Per way 1 or 0, and the chance of a hit by a patch drawn at random."""
    for way, values in maps.items():
        yield way, float(_inside(values.shape, boxes).flat[values.argmax()])
    yield "chance", float(_inside(values.shape, boxes).mean())


def _inside(grid: tuple[int, int], boxes: list[np.ndarray]) -> np.ndarray:
    """(h, w) bool: whose centre lies in one of the boxes (x, y, width, height, as shares)."""
    y, x = (np.indices(grid) + 0.5) / np.array(grid)[:, None, None]
    return np.any([(x >= bx) & (x <= bx + w) & (y >= by) & (y <= by + h) for bx, by, w, h in boxes], axis=0)
