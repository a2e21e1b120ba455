"""The images of both halves of a data set, opened for a run of one or several processes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import Data
from ..machine.distributed import World
from ..machine.home import data_dir
from . import Halves
from .dataset import MultiLabelDataset
from .features import Teller
from .overlap import key_of, look, look_at
from .room import Want
from .stamp import image_stamp
from .store import ImageStore, image_store

WAYS_OUT = (
    "choose another KRT_HOME, fewer pixels in the cache (data.cache_size) or fewer data.views, or keep nothing: with "
    "data.cache=false images are decoded at every use, with data.features=false features are made at every use"
)


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


def planned_stores(config: Data, halves: Halves, images: Images) -> tuple[ImageStore, ImageStore]:
    """Those of `open_stores`, before anything is decoded."""
    how = config.image_size, config.cache, config.workers, None, config.cache_size
    train = image_store(halves.train, *how, images.keys[0], build=False)
    return train, train if halves.test is None else image_store(halves.test, *how, images.keys[1], build=False)


def decoded(stores: tuple[ImageStore, ImageStore]) -> list[Want]:
    """What the disk is yet to set aside for the images of planned stores."""
    sizes = {store.key: store.missing for store in stores}
    return [Want("the decoded images", data_dir() / "cache", sum(sizes.values()))]


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
        store = image_store(train, *how, images.keys[0])
        return store, store if test is None else image_store(test, *how, images.keys[1])
