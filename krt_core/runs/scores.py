"""What the models of a run said: to the test images after each session, and to the next session's training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..machine.home import atomic_write
from .files import damaged, read_arrays

POOLS = ("fixed", "seen", "own")  # of test images, see `krt_core.runs.summary.ap_of_session`


@dataclass(frozen=True)
class Scores:
    """ids (n,) of the test images, scores (n, C seen) float32 in learning order, labels (n, all classes) bool, or int8
    where some are unknown: 1, 0 and -1. A file holds the bits of the first kind, the second as it is."""

    ids: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def write(self, path: Path) -> None:
        packed = np.packbits(self.labels, axis=1) if self.labels.dtype == bool else self.labels.astype(np.int8)
        atomic_write(path, lambda file: np.savez(file, ids=self.ids, scores=self.scores, labels=packed))

    def on(self, ids: np.ndarray) -> Scores:
        """The same for these images, (m,) ids: of one that has no scores they are NaN, and its labels unknown. A run
        that has grown is tested on more images than before."""
        if np.array_equal(ids, self.ids):
            return self
        place = {one: row for row, one in enumerate(self.ids.tolist())}
        rows = np.array([place.get(one, -1) for one in ids.tolist()], dtype=np.int64)
        scores = np.full((len(ids), self.scores.shape[1]), np.nan, self.scores.dtype)
        labels = np.full((len(ids), self.labels.shape[1]), -1, np.int8)
        scores[rows >= 0], labels[rows >= 0] = self.scores[rows[rows >= 0]], self.labels[rows[rows >= 0]]
        return Scores(ids, scores, labels)

    @classmethod
    def read(cls, path: Path, classes: int, way_out: str) -> Scores:
        ids, scores, packed = read_arrays(path, {"ids": "U1", "scores": "f2", "labels": "u2 i2"}, way_out)
        if packed.dtype == np.int8 and packed.shape[1] == classes and np.isin(packed, (-1, 0, 1)).all():
            return cls(ids, scores, packed)
        if packed.dtype != np.uint8 or not 0 <= packed.shape[1] * 8 - classes < 8:
            raise damaged(path, f"it is of another run than one of {classes} classes", way_out)
        return cls(ids, scores, np.unpackbits(packed, axis=1, count=classes).astype(bool))


@dataclass(frozen=True)
class Ahead:
    """ids (m,) of the images the next session trains on, as often as it shows them, and scores (m, C seen) float32."""

    ids: np.ndarray
    scores: np.ndarray

    def write(self, path: Path) -> None:
        atomic_write(path, lambda file: np.savez(file, ids=self.ids, scores=self.scores))

    @classmethod
    def read(cls, path: Path, way_out: str) -> Ahead:
        return cls(*read_arrays(path, {"ids": "U1", "scores": "f2"}, way_out))


def write_ap(path: Path, ap: dict[str, np.ndarray]) -> None:
    """AP (C seen,) of one session by pool: what forgetting needs of it, without its scores."""
    atomic_write(path, lambda file: np.savez(file, fixed=ap["fixed"], seen=ap["seen"], own=ap["own"]))


def read_ap(path: Path, way_out: str) -> dict[str, np.ndarray]:
    return dict(zip(POOLS, read_arrays(path, dict.fromkeys(POOLS, "f1"), way_out), strict=True))
