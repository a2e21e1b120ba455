"""Data sets: every source becomes one `MultiLabelDataset`, its labels read once and then cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import Data
from ..errors import DataError
from ..machine.home import data_dir, resolve
from ..options import is_dotted
from .cache import cached
from .custom import read_by
from .dataset import MultiLabelDataset, Split
from .finder import spelling
from .grown import Grown
from .published import check_sizes
from .validation import held_out

DEFAULT_ROOTS = {"digits": "data/digits", "coco2014": "data/coco2014", "voc2007": "data/voc2007"}


class Halves(NamedTuple):
    """What a run learns from and is tested on. Images that are held out stay rows of ``train``: caches are shared."""

    train: MultiLabelDataset
    held: np.ndarray  # (n,) bool: training images that are not learned from, but validated on
    test: MultiLabelDataset | None  # None: tested on those that are held out

    @property
    def said(self) -> str:
        """As in "4000 training, 1000 validation and 2000 test images"."""
        parts = [f"{np.count_nonzero(~self.held)} training", f"{np.count_nonzero(self.held)} validation"]
        parts = parts if self.held.any() else parts[:1]
        parts += [] if self.test is None else [f"{len(self.test)} test"]
        return f"{', '.join(parts[:-1])} and {parts[-1]} images"

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.train.notes + (self.test.notes if self.test is not None else ())))

    def inputs(self) -> dict[str, str]:
        """Hashes of what a run must go on with: ids, class names and labels of all images and, where some are held out,
        which."""
        labels = self.train.digest() + (self.test.digest() if self.test is not None else "")
        held = hashlib.sha256(np.packbits(self.held).tobytes()).hexdigest()[:16]
        return {"inputs": labels, **({"held_out": held} if self.held.any() else {})}


def open_halves(config: Data, exemplars: Sequence[str] = ()) -> Halves:
    """All that a run needs; with ``data.test=validation`` nothing of the test half is opened. Of data that have grown
    (``data.added``) it is what the last session needs, exemplars (ids) among it.

    DataError where the halves name different classes, and where a published set does not have its published sizes.
    """
    if config.added:
        return Halves(*Grown(config, open_halves).halves(exemplars))
    whole = _whole(config, "train")
    tested = None if config.test == "validation" else _whole(config, "test")
    check_sizes(whole, tested)
    train, held = _learned(config, whole)
    test = _chosen(config, tested) if tested else None
    if test is not None:
        _check_classes(train, test)
    return Halves(replace(train, notes=(*train.notes, *_said(config, train, held))), held, test)


def open_both(config: Data) -> tuple[MultiLabelDataset, MultiLabelDataset]:
    """The images to learn from and those to test on, as `open_halves` has them."""
    train, held, test = open_halves(config)
    learned = train.select_images(~held, "train") if held.any() else train
    return learned, replace(train.select_images(held, "test"), notes=()) if test is None else test


def open_dataset(config: Data, split: Split) -> MultiLabelDataset:
    """Open a part of the configured data set: "train", to learn from; "test", to test on; or "validation", the training
    images that are held out.

    Labels come from a cache under ``data/cache`` while the source files are unchanged. A reader outside the package,
    ``mylab.tags:read``, is called with the folder and the split, every time. Raises DataError, with the command that
    gets the data, when the folder is missing or does not hold what the layout promises.
    """
    if config.added:
        return Grown(config, open_halves).whole(split)
    if split == "validation" and not config.validation:
        raise DataError("data.validation is 0: no training images are held out. Set it to their share, such as 0.2.")
    if split == "test" and config.test == "test":
        return _chosen(config, _whole(config, "test"))
    whole = _whole(config, "train")
    half, held = _learned(config, whole)
    if not held.any():
        return half
    return half.select_images(~held if split == "train" else held, split)


def _held(config: Data, whole: MultiLabelDataset) -> np.ndarray:
    """By all labels, so that which classes are learned makes no difference."""
    return held_out(whole.ids, whole.labels, config.validation) if config.validation else np.zeros(len(whole), bool)


def _chosen(config: Data, half: MultiLabelDataset) -> MultiLabelDataset:
    """With the classes that are to be learned."""
    return half.select_classes(config.classes) if config.classes else half


def _learned(config: Data, whole: MultiLabelDataset) -> tuple[MultiLabelDataset, np.ndarray]:
    """The training half as it is to be learned, and which of its images are held out. DataError where none is left."""
    half, held = _chosen(config, whole), _held(config, whole)
    if not config.labels_per_image:
        return half, held
    (least, most), counts = config.labels_per_image, half.labels.sum(axis=1)
    wanted = (least <= counts) & (counts <= most)
    if not wanted.any():
        raise DataError(
            f"{half.source or half.root}: no training image has {least} to {most} labels, as data.labels_per_image "
            f"asks; they have {counts.min()} to {counts.max()}."
        )
    note = f"{wanted.sum()} of {len(wanted)} training images have {least} to {most} labels: the others are left out"
    half = half.select_images(wanted, "train")
    return replace(half, notes=(*half.notes, note)), held[wanted]


def _said(config: Data, train: MultiLabelDataset, held: np.ndarray) -> Iterator[str]:
    """What is to be known of the images that are held out."""
    if not config.validation:
        return
    unseen = " and tested on; the test images are not looked at" if config.test == "validation" else ""
    yield f"{held.sum()} of {len(held)} training images are held out for validation{unseen}"
    few = train.labels.any(axis=0) & ~train.labels[held].any(axis=0)
    if few.any():
        counts = zip(train.classes, train.labels.sum(axis=0), few, strict=True)
        names = ", ".join(f"{name} ({count})" for name, count, lacking in counts if lacking)
        yield (
            f"data.validation={config.validation:g} holds no image out of these classes (images that show one), so "
            f"that AP counts 0 in validation: {names}"
        )


def _check_classes(train: MultiLabelDataset, test: MultiLabelDataset) -> None:
    for one, other in ((train, test), (test, train)):
        if lacks := [name for name in one.classes if name not in other.classes]:
            raise DataError(
                f"{other.source or other.root}: the {other.split} half lacks {', '.join(map(repr, lacks[:8]))}, which "
                f"the {one.split} half has. {_way_out(one.classes, other.classes)}"
            )
    if train.classes != test.classes:
        raise DataError(f"{train.root}: training and test half name their classes in different orders.")


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
    from . import coco, digits, table, voc

    root = dataset_root(config)
    try:
        if config.dataset == "digits":
            digits.make(root, config.cardinality, config.co_occurrence)  # returns at once if it is there
        if root.is_file() and config.dataset != "table":
            raise DataError(f"data.root={root} is a file: name the folder that holds the annotations and the images.")
        if not root.exists():
            raise DataError(f"There is no data folder {root}. {_how_to_get(config)}")
        if config.dataset == "table":
            found = table.locate(root, split, config)
            return cached("table", split, found, lambda: table.read(found, "table", split), found.options)
        reader = voc if config.dataset.startswith("voc") else coco
        source = reader.locate(root, split, config.dataset)
        return cached(config.dataset, split, source, lambda: reader.read(source, config.dataset, split))
    except PermissionError as error:
        raise DataError(f"{error.filename or root} cannot be read ({error.strerror}).") from None


def dataset_root(config: Data) -> Path:
    if not config.root and config.dataset not in DEFAULT_ROOTS:
        raise DataError(f"data.dataset={config.dataset} reads a folder of your own: set data.root to it.")
    root = resolve(config.root or DEFAULT_ROOTS[config.dataset])
    if config.dataset != "digits":
        return root
    from .digits import folder

    return folder(root, config.cardinality, config.co_occurrence)


def _how_to_get(config: Data) -> str:
    if config.root:
        return "Set data.root to the folder that holds it."
    return f"Get it with: krt data {config.dataset}"
