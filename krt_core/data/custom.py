"""A reader outside the package: what it gives is checked, as everything after it counts on this."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..options import find
from .dataset import MultiLabelDataset, Split


def read_by(place: str, root: Path, split: Split) -> MultiLabelDataset:
    """Call the reader at ``mylab.tags:read``. Labels may be numbers too: 1, 0, and -1 or NaN for unknown. DataError,
    with what is wrong, for anything but a sound data set."""
    made = find(place, "data.dataset")(root, split)
    if not isinstance(made, MultiLabelDataset):
        raise DataError(f"{place} must return a MultiLabelDataset, found a {type(made).__name__}.")
    for fault in _faults(made):
        raise DataError(f"{place}, {split} split of {root}: {fault}.")
    unknown = _unknown(made.labels)
    if made.unknown is not None:
        unknown |= made.unknown
    return replace(made, labels=made.labels == 1, unknown=None).with_unknown(unknown)


def _unknown(labels: np.ndarray) -> np.ndarray:
    """(n, C) where labels say themselves that they are unknown."""
    return (labels == -1) | np.isnan(labels)


def _first(made: MultiLabelDataset, where: np.ndarray) -> str:
    """The first label of (n, C) bool, in words."""
    if where.shape != (len(made.ids), len(made.classes)) or not where.any():
        return ""
    row, column = np.argwhere(where)[0]
    return f"{made.labels[row, column]} for class {made.classes[column]} of {made.ids[row]} (row {row})"


def _faults(made: MultiLabelDataset) -> list[str]:
    for name in ("ids", "paths", "labels", "boxes"):
        if not isinstance(getattr(made, name), np.ndarray):
            return [f"{name} must be an array, found a {type(getattr(made, name)).__name__}"]
    n, c = len(made.ids), len(made.classes)
    unnamed = [name for name in made.classes if not isinstance(name, str)]
    labels = made.labels
    numbers = labels.dtype.kind in "biuf"
    other = ~(_unknown(labels) | (labels == 0) | (labels == 1)) if numbers else np.zeros(0, bool)
    three_values, asked = numbers and not other.any(), f"a boolean ({n}, {c}) matrix, or one of 1, 0 and -1 for unknown"
    found = {
        f"labels must be {asked}, one row per id and one column per class; found {labels.dtype} {labels.shape}": (
            not numbers or labels.shape != (n, c)
        ),
        f"labels must be {asked}; found {_first(made, other)}": bool(other.any()),
        "labels hold 1 and -1 alone, and -1 means unknown: write 0 where an image does not show a class": three_values
        and _unknown(labels).any()
        and not (labels == 0).any(),
        f"unknown must be a boolean ({n}, {c}) matrix, or None": made.unknown is not None
        and not (isinstance(made.unknown, np.ndarray) and (made.unknown.dtype, made.unknown.shape) == (bool, (n, c))),
        f"there are {n} ids and {len(made.paths)} paths": n != len(made.paths),
        "an id stands there twice": len(set(made.ids.tolist())) != n,
        "there is no image": not n,
        f"classes must be texts, found {unnamed[:1]}": bool(unnamed),
        "a class stands there twice": len(set(made.classes)) != c,
        f"boxes must be an (m, 6) matrix, found {made.boxes.shape}": made.boxes.ndim != 2 or made.boxes.shape[1] != 6,
    }
    if faults := [text for text, is_so in found.items() if is_so]:
        return faults
    rows, columns = made.boxes[:, 0], made.boxes[:, 1]
    outside = ((rows < 0) | (rows >= n) | (columns < 0) | (columns >= c)).any() if len(made.boxes) else False
    return ["a box names an image or class that is not there"] if outside else []
