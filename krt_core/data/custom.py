"""A reader outside the package: what it gives is checked, as everything after it counts on this."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..options import find
from .dataset import MultiLabelDataset, Split


def read_by(place: str, root: Path, split: Split) -> MultiLabelDataset:
    """Call the reader at ``mylab.tags:read``. DataError, with what is wrong, for anything but a sound data set."""
    made = find(place, "data.dataset")(root, split)
    if not isinstance(made, MultiLabelDataset):
        raise DataError(f"{place} must return a MultiLabelDataset, found a {type(made).__name__}.")
    for fault in _faults(made):
        raise DataError(f"{place}, {split} split of {root}: {fault}.")
    return made


def _faults(made: MultiLabelDataset) -> list[str]:
    for name in ("ids", "paths", "labels", "boxes"):
        if not isinstance(getattr(made, name), np.ndarray):
            return [f"{name} must be an array, found a {type(getattr(made, name)).__name__}"]
    n, c = len(made.ids), len(made.classes)
    unnamed = [name for name in made.classes if not isinstance(name, str)]
    found = {
        f"labels must be a boolean ({n}, {c}) matrix, one row per id and one column per class; "
        f"found {made.labels.dtype} {made.labels.shape}": made.labels.dtype != bool or made.labels.shape != (n, c),
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
