"""The images of both halves of a data set, opened for a run of one or several processes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import Data
from ..machine.distributed import World
from . import Halves
from .dataset import MultiLabelDataset
from .features import Teller
from .overlap import key_of, look, look_at
from .stamp import image_stamp
from .store import ImageStore


class Images(NamedTuple):
    """What the disk says of all images of both halves."""

    keys: list[str]  # of each half, for its `ImageStore`
    notes: list[str]  # to be said aloud
    stamp: dict[str, str]  # see `image_stamp`


def images_of(train: MultiLabelDataset, held: np.ndarray, test: MultiLabelDataset | None, world: World) -> Images:
    """The main process alone asks the disk, once. held (n,) bool: training images that are tested on where there is no
    test half. DataError for images that are not there."""
    if not world.main:
        return Images(*world.decide(None))
    halves = [train] if test is None else [train, test]
    stats = [look(half) for half in halves]
    keys = [key_of(half, said) for half, said in zip(halves, stats, strict=True)]
    if test is None:
        parts = train.select_images(~held, "train"), train.select_images(held, "test")
        found = [[at for at, chosen in zip(stats[0], mask, strict=True) if chosen] for mask in (~held, held)]
        notes = look_at(*parts, (found[0], found[1]))[1]
    else:
        notes = look_at(train, test, (stats[0], stats[1]))[1]
    return Images(*world.decide([keys, notes, image_stamp(halves, stats)]))


def open_stores(
    config: Data, halves: Halves, world: World, tell: Teller, images: Images
) -> tuple[ImageStore, ImageStore]:
    """Stores of the training and of the test images, one and the same where there is no test half; says aloud where
    images are in both.

    The main process decodes what is not in the cache. DataError for images that cannot be read.
    """
    train, _, test = halves
    for note in images.notes:
        tell.log(f"data: {note}")
    how = config.image_size, config.cache, config.workers, tell.decoding, config.cache_size
    with world.main_first():
        store = ImageStore(train, *how, images.keys[0])
        return store, store if test is None else ImageStore(test, *how, images.keys[1])
