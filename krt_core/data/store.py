"""Images by row: decoded and resized once into a memory-mapped uint8 cache, or decoded at every use."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError
from ..machine.cluster import cores
from ..machine.home import data_dir, named
from ..machine.locks import only_one
from .dataset import MultiLabelDataset
from .images import DECODER, load_image, resize
from .overlap import image_key

Progress = Callable[[str, int, int], None]  # (what, done, total)


class ImageStore:
    """Resized images by row.

    With the cache, every image is decoded once into a memory-mapped (n, S, S, 3) uint8 array under ``data/cache``,
    which all processes and runs share (COCO train2014 at 224 px takes 12 GB; cache_size stores fewer or more pixels).
    Its name holds a hash of the files' names, sizes and times; an interrupted build goes on where it was, and a cache
    that was cut short is made again. key: that of `image_key`, where another process has already asked the disk.
    build=False: for few images; a cache that is not there is not made.
    """

    def __init__(
        self,
        dataset: MultiLabelDataset,
        size: int,
        cache: bool = True,
        workers: int = 0,
        progress: Progress | None = None,
        cache_size: int = 0,
        key: str = "",
        build: bool = True,
    ):
        self.dataset, self.size = dataset, size
        self.stored = (cache_size if cache else 0) or size  # side of the images in the cache
        self.workers = workers or len(cores())
        self.key = key or (image_key(dataset) if cache else "")  # other images, or changed ones, have another
        self.missing = 0  # bytes that the disk has yet to set aside for a cache that is not made
        self.sums: np.ndarray | None = None  # (n,) checksums of the images in the cache
        self.sure = np.zeros(len(dataset), bool)  # of these images this process has seen that they fit
        self.array = self._open_cache(progress, build) if cache else None

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(B, size, size, 3) uint8."""
        if self.array is None:
            images = np.stack([load_image(self.dataset.path(row), self.stored) for row in rows])
        else:
            images = self.array[rows]
            if self.sums is not None and not self.sure[rows].all():
                for place, row in enumerate(rows):
                    if not self.sure[row] and checksum(images[place]) != self.sums[row]:  # the disk has damaged it
                        images[place] = load_image(self.dataset.path(row), self.stored)
                    else:
                        self.sure[row] = True
        if self.stored == self.size:
            return images
        return np.stack([resize(Image.fromarray(image), self.size) for image in images])

    def _open_cache(self, progress: Progress | None, build: bool) -> np.ndarray | None:
        folder = data_dir() / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        images = f"{self.dataset.root} {self.key} {DECODER}".encode("utf-8", "surrogatepass")
        place = hashlib.sha256(images).hexdigest()[:16]
        path = folder / f"images-{self.dataset.name}-{self.dataset.split}-{self.stored}px-{place}.npy"
        shape = (len(self.dataset), self.stored, self.stored, 3)
        if not is_whole(path, shape, np.uint8) or _spoiled(path.with_suffix(".done"), shape[:1]):
            if not build:
                begun = is_whole(path.with_suffix(".part"), shape, np.uint8)
                self.missing = 0 if begun else math.prod(shape)
                return None
            with only_one(path.with_suffix(".lock")):
                if not is_whole(path, shape, np.uint8) or _spoiled(path.with_suffix(".done"), shape[:1]):
                    self._build(path, progress)
        if is_whole(sums := path.with_suffix(".done"), shape[:1], np.uint32):  # caches of older versions have none
            self.sums = np.load(sums, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _build(self, path: Path, progress: Progress | None) -> None:
        shape = (len(self.dataset), self.stored, self.stored, 3)
        part, done_path = path.with_suffix(".part"), path.with_suffix(".done")
        resume = is_whole(part, shape, np.uint8) and is_whole(done_path, shape[:1], np.uint32)
        size, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if not resume and size > free:
            raise DataError(
                f"The decoded images of {self.dataset.name} {self.dataset.split} at {self.stored} px take "
                f"{size / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB left. Make room, set data.cache_size "
                "to fewer pixels, or data.cache=false to decode images at every use."
            )
        if not resume:
            done_path.unlink(missing_ok=True)  # flags of another build must never vouch for an empty array
        mode = "r+" if resume else "w+"
        with named(part):
            array = np.lib.format.open_memmap(part, mode=mode, dtype=np.uint8, shape=shape)
        allocate(part, begun=resume)
        with named(done_path):
            done = np.lib.format.open_memmap(done_path, mode=mode, dtype=np.uint32, shape=shape[:1])
        allocate(done_path)
        found = np.zeros(len(done), np.uint32)

        def store(row: int) -> None:
            array[row] = load_image(self.dataset.path(row), self.stored)
            found[row] = checksum(array[row])

        with ThreadPoolExecutor(self.workers) as pool:
            # A process that was killed may have left an image's checksum half written.
            sure = np.array(
                list(pool.map(lambda row: done[row] and checksum(array[row]) == done[row], range(len(done))))
            )
            waiting = np.flatnonzero(~sure.astype(bool))
            done[waiting] = 0
            for block in np.array_split(waiting, max(1, len(waiting) // 512)):
                list(pool.map(store, block))
                array.flush()
                done[block] = found[block]  # after the pixels are on disk
                done.flush()
                if progress:
                    what = f"decoding {self.dataset.split} images into {size / 1e9:.2f} GB of cache"
                    progress(what, int(np.count_nonzero(done)), len(done))
        os.replace(part, path)


class Several(ImageStore):
    """Images of several data sets under one row number, each with a cache of its own that other runs may have made."""

    def __init__(self, dataset: MultiLabelDataset, stores: list[ImageStore]):
        self.dataset, self.stores = dataset, stores
        first = stores[0]
        self.size, self.stored, self.workers = first.size, first.stored, first.workers
        self.key = " ".join(store.key for store in stores)
        self.missing = sum(store.missing for store in stores)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for store, places, own in parted(self.dataset, self.stores, rows):
            out[places] = store.rows(own)
        return out


Part = TypeVar("Part")


def parted(
    dataset: MultiLabelDataset, of: Sequence[Part], rows: np.ndarray
) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
    """For each part of a data set that has some of the rows (m,): what is ``of`` it, their places among ``rows``, and
    their rows in the part."""
    starts = np.cumsum([0, *(len(part) for part in dataset.parts)])
    for one, start, stop in zip(of, starts, starts[1:], strict=False):
        places = np.flatnonzero((start <= rows) & (rows < stop))
        if len(places):
            yield one, places, rows[places] - start


def image_store(
    dataset: MultiLabelDataset, size: int, cache: bool = True, workers: int = 0, progress: Progress | None = None,
    cache_size: int = 0, key: str = "", build: bool = True,
) -> ImageStore:  # fmt: skip
    """`ImageStore`, or one for each part of data that have grown."""
    if not dataset.parts:
        return ImageStore(dataset, size, cache, workers, progress, cache_size, key, build)
    how = size, cache, workers, progress, cache_size
    return Several(dataset, [ImageStore(part, *how, build=build) for part in dataset.parts])


def checksum(row: np.ndarray) -> int:
    """Of an array of an image's own; never 0."""
    return zlib.crc32(row.data) or 1


def _spoiled(sums: Path, shape: tuple[int, ...]) -> bool:
    """Is there a file of checksums that is not what was written? Then what it vouches for is made again."""
    return sums.exists() and not is_whole(sums, shape, np.uint32)


def is_whole(path: Path, shape: tuple[int, ...], dtype: type) -> bool:
    """Is a file there that holds such an array to its last byte? A memory map would fill up what is missing."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
            return found == (shape, False, np.dtype(dtype)) and path.stat().st_size == size
    except (OSError, ValueError, SyntaxError, EOFError):
        return False


def allocate(path: Path, begun: bool = False) -> None:
    """Have the disk set the blocks of a file aside: a memory map that meets a full disk kills the process. Where there
    is no room, a file that nothing was written to yet is removed."""
    with path.open("r+b") as file:
        if not _sets_aside(file.fileno()):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others: a file system that cannot set aside
                if not begun:
                    path.unlink()
                raise OSError(error.errno, error.strerror, str(path)) from None


def _sets_aside(handle: int) -> bool:
    """Can the file system of an open file set blocks aside? The kernel is asked for one byte: where it cannot (NFS
    before 4.2, older Lustre), the C library would write to each of millions of blocks instead."""
    kernel = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None) if hasattr(os, "posix_fallocate") else None
    if kernel is None:
        return False
    kernel.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    keep_size = 1
    return kernel(handle, keep_size, 0, 1) == 0 or ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT)
