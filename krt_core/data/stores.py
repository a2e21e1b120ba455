"""The images of both halves of a data set, opened for a run of one or several processes."""

from __future__ import annotations

from typing import Protocol

from ..config import Data
from ..machine.distributed import World
from .dataset import MultiLabelDataset
from .overlap import look_at
from .store import ImageStore


class Teller(Protocol):
    def log(self, text: str) -> None: ...

    def decoding(self, what: str, done: int, total: int) -> None: ...


def open_stores(
    config: Data, train: MultiLabelDataset, test: MultiLabelDataset, world: World, tell: Teller
) -> tuple[ImageStore, ImageStore]:
    """Stores of the training and of the test images; says aloud where images are in both.

    The main process alone asks the disk for every image, and it decodes what is not in the cache. DataError for images
    that are not there or cannot be read.
    """
    keys, notes = world.decide(look_at(train, test) if world.main else None)
    for note in notes:
        tell.log(f"data: {note}")
    how = config.image_size, config.cache, config.workers, tell.decoding, config.cache_size
    with world.main_first():
        return ImageStore(train, *how, keys[0]), ImageStore(test, *how, keys[1])
