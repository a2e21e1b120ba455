"""The images of both halves of a data set, opened for a run of one or several processes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..config import Data
from ..machine.distributed import World
from .dataset import MultiLabelDataset
from .overlap import look, look_at
from .stamp import image_stamp
from .store import ImageStore


class Teller(Protocol):
    def log(self, text: str) -> None: ...

    def decoding(self, what: str, done: int, total: int) -> None: ...


class Images(NamedTuple):
    """What the disk says of all images of both halves."""

    keys: list[str]  # of each half, for its `ImageStore`
    notes: list[str]  # to be said aloud
    stamp: dict[str, str]  # see `image_stamp`


def images_of(train: MultiLabelDataset, test: MultiLabelDataset, world: World) -> Images:
    """The main process alone asks the disk, once. DataError for images that are not there."""
    if not world.main:
        return Images(*world.decide(None))
    stats = look(train), look(test)
    return Images(*world.decide([*look_at(train, test, stats), image_stamp((train, test), stats)]))


def open_stores(
    config: Data, train: MultiLabelDataset, test: MultiLabelDataset, world: World, tell: Teller, images: Images
) -> tuple[ImageStore, ImageStore]:
    """Stores of the training and of the test images; says aloud where images are in both.

    The main process decodes what is not in the cache. DataError for images that cannot be read.
    """
    keys = images.keys
    for note in images.notes:
        tell.log(f"data: {note}")
    how = config.image_size, config.cache, config.workers, tell.decoding, config.cache_size
    with world.main_first():
        return ImageStore(train, *how, keys[0]), ImageStore(test, *how, keys[1])
