"""Which images of a table, or of folders of classes, are for training and which for tests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from .table_columns import Said
from .validation import held_out


def settled(halves: Sequence[str]) -> tuple[list[str], list[str]]:
    """Halves "train", "val" and "test" of images as "train" and "test" alone, and what is to be said of that: images
    for validation are learned from, as in VOC's trainval, and tested on only where there are no others for tests."""
    count = Counter(halves)
    if not count["val"]:
        return list(halves), []
    into = "train" if count["test"] else "test"
    what = "learned from as training images" if count["test"] else "the test images, as there are no others"
    where = " (data.validation holds out some to choose settings on)" if count["test"] else ""
    return [into if half == "val" else half for half in halves], [f"{count['val']} val images are {what}{where}"]


def chosen(
    ids: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    halves: Sequence[str],
    said: Said,
    split: str,
    where: str,
) -> tuple[np.ndarray, list[str]]:
    """(n,) bool: the images of a half, and what is to be said of that. halves (n,): "train" or "test", or "" where
    nothing says it: then a share of each class is for tests, chosen by a hash of seed and id.

    Raises DataError, beginning with ``where``, for a half without images.
    """
    known, notes = np.array(halves), []
    if (known == "").all():
        test = held_out(ids, labels, said.test_share, f"{said.split_seed} ", steady=True)
        if said.test_share:
            notes.append(
                f"nothing says which images are for tests: {test.sum()} of {len(test)} are (data.test_share="
                f"{said.test_share:g}), chosen by data.split_seed={said.split_seed}"
            )
    else:
        test = known == "test"
        if said.test_share not in (Said.test_share, 0):
            notes.append(f"data.test_share={said.test_share:g} is not used, as the data say which images are for tests")
    mine = test if split == "test" else ~test
    if not mine.any():
        few = f": data.test_share={said.test_share:g} of {len(ids)} images is none" if (known == "").all() else ""
        raise DataError(
            f"{where}: no image is for {'tests' if split == 'test' else 'training'}{few}. {_way_out(known)}"
        )
    if not labels[mine].any():
        raise DataError(f"{where}: none of the {mine.sum()} {split} images has a label.")
    if split == "test" and (lacks := labels.any(axis=0) & ~labels[mine].any(axis=0)).any():
        names = [name for name, lacking in zip(classes, lacks, strict=True) if lacking]
        notes.append(f"no test image shows {', '.join(names[:8])}{', ...' * (len(names) > 8)}")
    return mine, notes


def _way_out(known: np.ndarray) -> str:
    if (known == "").all():
        return "Raise data.test_share, or add images."
    return "Mark some so, or let data.test_share choose them: data.split=none."


def doubles(classes: Sequence[str]) -> list[str]:
    """What is to be said of classes that differ in case, blanks and marks alone."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(re.sub(r"[\W_]+", "", name.casefold()) or name, []).append(name)
    pairs = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    return [f"nearly the same name, yet classes of their own: {'; '.join(pairs[:6])}"] if pairs else []
