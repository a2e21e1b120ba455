"""Numbers on disk, made row by row, by several processes at once, and believed only where they are whole."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError
from ..machine.home import named
from ..machine.locks import Claims, only_one
from .store import allocate, checksum, is_whole

HEAD = 8  # words that say what the numbers are of, before the checksums


class Kept:
    """An array (n, ...) in a memory-mapped file, and a second file of checksums that says which rows are in it.

    said: all that decides the numbers; its hash is in the second file, so a file of other ones under this name is not
    taken for it. A row counts when its checksum is there, which is written after it, and fits. A process that was
    killed leaves no row half written, and a row that the disk has damaged is made again.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, said: bytes):
        self.path, self.shape, self.dtype = path, shape, dtype
        self.sums_path = path.with_suffix(".done")
        self.identity = np.frombuffer(hashlib.sha256(said).digest(), np.uint32)
        self.maps: list[np.memmap] = []
        self.files: tuple[np.ndarray, np.ndarray] | None = None
        self.sure = np.zeros(shape[0], bool)  # rows that this process has compared with their checksums

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def missing(self) -> int:
        """Bytes that the disk has yet to set aside."""
        return 0 if self.whole() else self.size

    @property
    def spoiled(self) -> bool:
        """Is there a file that is not what was written: cut short, of other numbers, or without its checksums?"""
        return (self.path.exists() or self.sums_path.exists()) and not self.whole()

    def whole(self) -> bool:
        """Are both files there, to their last byte, and of these numbers?"""
        if not is_whole(self.path, self.shape, self.dtype.type):
            return False
        if not is_whole(self.sums_path, (HEAD + self.shape[0],), np.uint32):
            return False
        return np.array_equal(np.load(self.sums_path, "r", allow_pickle=False)[:HEAD], self.identity)

    def count(self, rows: np.ndarray | slice = slice(None)) -> int:
        """How many of these rows are there."""
        return int(np.count_nonzero(self._open()[1][rows])) if self.whole() else 0

    def array(self) -> np.ndarray:
        return self._open()[0]

    def have(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of rows (m,) are there and as they were written."""
        array, sums = self._open()
        found = sums[rows]
        for i in np.flatnonzero((found != 0) & ~self.sure[rows]):
            self.sure[rows[i]] = found[i] == checksum(array[rows[i]])
        return (found != 0) & self.sure[rows]

    def begin(self) -> Claims:
        """Open the files to write; with the claims by which processes agree on who makes which rows."""
        self.files = None
        self._open("r+")
        return Claims(self.path.with_suffix(".rows"))

    def forget(self, rows: np.ndarray) -> None:
        """Rows (m,) are not there, whatever their checksums say."""
        self._open("r+")[1][rows] = 0

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Rows (m,) into the file; `vouch` for them later."""
        array, sums = self._open("r+")
        sums[rows], self.sure[rows] = 0, False
        array[rows] = values

    def vouch(self, rows: np.ndarray) -> None:
        """Rows (m,) that were written are on disk, and count."""
        array, sums = self._open("r+")
        self.maps[0].flush()
        sums[rows] = [checksum(array[row]) for row in rows]
        self.maps[1].flush()
        self.sure[rows] = True

    def _open(self, mode: Literal["r", "r+"] = "r") -> tuple[np.ndarray, np.ndarray]:
        """Plain arrays on the maps, which numpy indexes faster than maps."""
        if self.files is None:
            if not self.whole():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with only_one(self.path.with_suffix(".lock")):
                    if not self.whole():
                        self._create()
            self.maps = [np.load(path, mode, allow_pickle=False) for path in (self.path, self.sums_path)]
            self.files = np.asarray(self.maps[0]), np.asarray(self.maps[1])[HEAD:]
        return self.files

    def _create(self) -> None:
        """Empty files of the right size; what was left of a build that was cut short is thrown away."""
        self.sure[:] = False
        heads = np.zeros(HEAD + self.shape[0], np.uint32)
        heads[:HEAD] = self.identity
        for target, dtype, shape in ((self.path, self.dtype, self.shape), (self.sums_path, heads.dtype, heads.shape)):
            if target.is_dir():
                raise DataError(f"{target} is a folder, where a file is to be kept: move it away.")
            part = target.with_name(f"{target.name}.part")
            target.unlink(missing_ok=True)
            with named(part):
                made = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
            allocate(part)
            if target == self.sums_path:
                made[:] = heads
                made.flush()
            os.replace(part, target)
