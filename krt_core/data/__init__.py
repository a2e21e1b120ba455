"""Data sets: every source becomes one `MultiLabelDataset`, its labels read once and then cached."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import Data
from ..errors import DataError
from ..machine.home import data_dir, resolve
from ..options import is_dotted
from .cache import cached
from .custom import read_by
from .dataset import MultiLabelDataset, Split
from .finder import spelling
from .published import check_sizes

DEFAULT_ROOTS = {"digits": "data/digits", "coco2014": "data/coco2014", "voc2007": "data/voc2007"}


def open_dataset(config: Data, split: Split) -> MultiLabelDataset:
    """Open the train or test half of the configured data set.

    Labels come from a cache under ``data/cache`` while the source files are unchanged. A reader outside the package,
    ``mylab.tags:read``, is called with the folder and the split, every time. Raises DataError, with the command that
    gets the data, when the folder is missing or does not hold what the layout promises.
    """
    return _half(config, _whole(config, "train" if config.holdout else split), split)


def _half(config: Data, whole: MultiLabelDataset, split: Split) -> MultiLabelDataset:
    """Its classes that are to be learned; of the training images, where some are held out, those of the half."""
    half = _held_out(whole, config.holdout, split) if config.holdout else whole
    return half.select_classes(config.classes) if config.classes else half


def _held_out(train: MultiLabelDataset, share: float, split: Split) -> MultiLabelDataset:
    """The part of the training images to test on, or the others: by a hash of the id, so that an image is in one of
    the two whatever the seed, the class order and the other images are."""
    hashes = [hashlib.sha256(str(one).encode("utf-8", "surrogatepass")).digest() for one in train.ids]
    held = np.array([int.from_bytes(one[:8], "big") < share * 2**64 for one in hashes], dtype=bool)
    note = f"{held.sum()} of {len(held)} training images are held out and tested on; the test images are not looked at"
    half = train.select_images(held if split == "test" else ~held, split)
    return replace(half, notes=(*half.notes, note) if split == "train" else ())


def open_both(config: Data) -> tuple[MultiLabelDataset, MultiLabelDataset]:
    """The training and the test half, to learn and to test with.

    DataError where they name different classes, and where a published set does not have its published sizes.
    """
    learned = _whole(config, "train")
    tested = learned if config.holdout else _whole(config, "test")
    check_sizes(learned, None if config.holdout else tested)
    train, test = _half(config, learned, "train"), _half(config, tested, "test")
    for one, other in ((train, test), (test, train)):
        if lacks := [name for name in one.classes if name not in other.classes]:
            raise DataError(
                f"{other.source or other.root}: the {other.split} half lacks {', '.join(map(repr, lacks[:8]))}, which "
                f"the {one.split} half has. {_way_out(one.classes, other.classes)}"
            )
    if train.classes != test.classes:
        raise DataError(f"{train.root}: training and test half name their classes in different orders.")
    return train, test


def _way_out(classes: tuple[str, ...], others: tuple[str, ...]) -> str:
    """What to do where one half has classes that the other lacks."""
    alike = {spelling(name): name for name in others if name not in classes}
    pairs = [f"{n!a} and {alike[spelling(n)]!a}" for n in classes if spelling(n) in alike]
    if pairs:
        return f"Spell them alike in both: {', '.join(pairs[:4])}"
    both = [name for name in classes if name in others]
    return (
        f"List it in both, or learn the others: data.classes=[{', '.join(both)}]"
        if both
        else ("The two have no class in common: are they of one data set?")
    )


def _whole(config: Data, split: Split) -> MultiLabelDataset:
    """With all the classes it has."""
    if is_dotted(config.dataset):
        return read_by(config.dataset, resolve(config.root) if config.root else data_dir(), split)
    from . import coco, digits, voc

    root = dataset_root(config)
    try:
        if config.dataset == "digits":
            digits.make(root)  # returns at once if it is there
        if root.is_file():
            raise DataError(f"data.root={root} is a file: name the folder that holds the annotations and the images.")
        if not root.is_dir():
            raise DataError(f"There is no data folder {root}. {_how_to_get(config)}")
        reader = voc if config.dataset.startswith("voc") else coco
        source = reader.locate(root, split, config.dataset)
        return cached(config.dataset, split, source, lambda: reader.read(source, config.dataset, split))
    except PermissionError as error:
        raise DataError(f"{error.filename or root} cannot be read ({error.strerror}).") from None


def dataset_root(config: Data) -> Path:
    if not config.root and config.dataset not in DEFAULT_ROOTS:
        raise DataError(f"data.dataset={config.dataset} reads a folder of your own: set data.root to it.")
    return resolve(config.root or DEFAULT_ROOTS[config.dataset])


def _how_to_get(config: Data) -> str:
    if config.root:
        return "Set data.root to the folder that holds it."
    return f"Get it with: krt data {config.dataset}"
