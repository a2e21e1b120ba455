"""What every reader gives and everything else takes: images with a label matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import DataError, did_you_mean

Split = Literal["train", "test", "validation"]


@dataclass(frozen=True)
class MultiLabelDataset:
    """Images with a boolean label matrix.

    ids (n,) are unique texts; paths (n,) are relative to ``root``; labels (n, C) are columns of ``classes``; unknown
    (n, C) says of which images nobody knows whether they show a class, where labels read False; None: all is known;
    boxes (m, 6) hold [image, class, x, y, width, height], the last four as shares of the image's width and height.
    ``notes`` says what reading left out or repaired, in words; ``source`` is the file with the labels, for messages.
    Of data that have grown, ``parts`` are the data sets that this one is made of, in the order of its rows, and
    arrived (n,) says with which of them an image came: 0 with the first data, k with the k-th that was added.
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
    unknown: np.ndarray | None = None
    parts: tuple[MultiLabelDataset, ...] = ()
    arrived: np.ndarray | None = None
    _sizes: dict[int, int] = field(default_factory=dict, init=False, compare=False, repr=False)  # of files asked for

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        return self.root / str(self.paths[index])

    def bytes_of(self, rows: np.ndarray) -> int:
        """Bytes of the files of some images, each counted once, and each asked for once."""
        return sum(map(self._size_of, np.unique(rows).tolist()))

    def _size_of(self, row: int) -> int:
        if row not in self._sizes:
            path = self.path(row)
            self._sizes[row] = path.stat().st_size if path.is_file() else 0
        return self._sizes[row]

    def digest(self) -> str:
        """Hash over ids, class names, labels and, where there are any, which are unknown, in their order."""
        digest = hashlib.sha256()
        for part in (self.ids, np.array(self.classes), self.labels, *(() if self.unknown is None else (self.unknown,))):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]

    @property
    def truth(self) -> np.ndarray:
        """(n, C) bool as ``labels``; where some are unknown int8: 1, 0 and, for unknown, -1."""
        return self.labels if self.unknown is None else self.labels.astype(np.int8) - self.unknown

    def with_unknown(self, unknown: np.ndarray) -> MultiLabelDataset:
        """The same with labels (n, C) that are not known, which the notes say."""
        if not unknown.any():
            return self
        note = f"{unknown.sum()} of {unknown.size} labels are unknown: they count in no loss and no metric"
        return replace(self, labels=self.labels & ~unknown, unknown=unknown, notes=(*self.notes, note))

    def _some(self, *chosen: Any) -> dict[str, Any]:
        """Labels of some rows and columns, and which of them are unknown."""
        unknown = None if self.unknown is None else self.unknown[chosen]
        return {"labels": self.labels[chosen], "unknown": unknown if unknown is not None and unknown.any() else None}

    def select_images(self, chosen: np.ndarray, split: Split) -> MultiLabelDataset:
        """The images where ``chosen`` (n,) is true, as a half of that name."""
        boxes = self.boxes[chosen[self.boxes[:, 0].astype(int)]].copy()
        boxes[:, 0] = (np.cumsum(chosen) - 1)[boxes[:, 0].astype(int)]
        own = {"ids": self.ids[chosen], "paths": self.paths[chosen], "boxes": boxes, **self._some(chosen)}
        arrived = None if self.arrived is None else self.arrived[chosen]
        return replace(self, split=split, parts=(), arrived=arrived, **own)

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
        return replace(self, classes=tuple(names), boxes=boxes, **self._some(slice(None), columns))
