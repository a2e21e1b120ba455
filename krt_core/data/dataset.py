"""What every reader gives and everything else takes: images with a label matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError, did_you_mean

Split = Literal["train", "test"]


@dataclass(frozen=True)
class MultiLabelDataset:
    """Images with a boolean label matrix.

    ids (n,) are unique texts; paths (n,) are relative to ``root``; labels (n, C) are columns of ``classes``;
    boxes (m, 6) hold [image, class, x, y, width, height], the last four as shares of the image's width and height.
    ``notes`` says what reading left out or repaired, in words; ``source`` is the file with the labels, for messages.
    """

    name: str
    split: str
    root: Path
    ids: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.float32))
    notes: tuple[str, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        return self.root / str(self.paths[index])

    def bytes_of(self, rows: np.ndarray) -> int:
        """Bytes of the files of some images, each counted once."""
        return sum(path.stat().st_size for path in map(self.path, np.unique(rows)) if path.is_file())

    def digest(self) -> str:
        """Hash over ids, class names and labels, in their order."""
        digest = hashlib.sha256()
        for part in (self.ids, np.array(self.classes), self.labels):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]

    def select_images(self, chosen: np.ndarray, split: Split) -> MultiLabelDataset:
        """The images where ``chosen`` (n,) is true, as a half of that name."""
        boxes = self.boxes[chosen[self.boxes[:, 0].astype(int)]].copy()
        boxes[:, 0] = (np.cumsum(chosen) - 1)[boxes[:, 0].astype(int)]
        own = {"ids": self.ids[chosen], "paths": self.paths[chosen], "labels": self.labels[chosen], "boxes": boxes}
        return replace(self, split=split, **own)

    def select_classes(self, names: tuple[str, ...]) -> MultiLabelDataset:
        """The same images with the columns of ``names`` only; images without a label stay. DataError if unknown."""
        for name in names:
            if name not in self.classes:
                raise DataError(f"{self.name}: there is no class {name!r}.{did_you_mean(name, self.classes)}")
        columns = [self.classes.index(name) for name in names]
        position = np.full(len(self.classes), -1)
        position[columns] = np.arange(len(columns))
        boxes = self.boxes[position[self.boxes[:, 1].astype(int)] >= 0].copy()
        boxes[:, 1] = position[boxes[:, 1].astype(int)]
        return replace(self, labels=self.labels[:, columns], classes=tuple(names), boxes=boxes)
