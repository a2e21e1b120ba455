"""Images by row: decoded and resized once into a memory-mapped uint8 cache, or decoded at every use."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from ..machine.home import data_dir
from ..machine.locks import only_one
from .dataset import MultiLabelDataset

Progress = Callable[[str, int, int], None]  # (what, done, total)


def load_image(path: Path, size: int) -> np.ndarray:
    """Decode and resize (bilinear) to (size, size, 3) uint8; raises DataError naming a missing or broken file."""
    try:
        with Image.open(path) as image:
            return resize(image.convert("RGB"), size)
    except FileNotFoundError:
        raise DataError(f"Image {path} is missing, though the annotations list it.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Image {path} cannot be read ({error}). Replace it or remove it from the annotations."
        ) from None


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Bilinear, with antialiasing, to (size, size, 3) uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


class ImageStore:
    """Resized images by row.

    With the cache, every image is decoded once into a memory-mapped (n, S, S, 3) uint8 array under ``data/cache``,
    which all processes and runs share (COCO train2014 at 224 px takes 12 GB; cache_size stores fewer or more pixels).
    Its name holds a hash of the files' names, sizes and times; an interrupted build goes on where it was.
    """

    def __init__(
        self,
        dataset: MultiLabelDataset,
        size: int,
        cache: bool = True,
        workers: int = 0,
        progress: Progress | None = None,
        cache_size: int = 0,
    ):
        self.dataset, self.size = dataset, size
        self.stored = (cache_size if cache else 0) or size  # side of the images in the cache
        self.workers = workers or os.cpu_count() or 1
        self.array = self._open_cache(progress) if cache else None

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(B, size, size, 3) uint8."""
        if self.array is None:
            return np.stack([load_image(self.dataset.path(row), self.size) for row in rows])
        images = self.array[rows]
        if self.stored == self.size:
            return images
        return np.stack([resize(Image.fromarray(image), self.size) for image in images])

    def _key(self) -> str:
        digest = hashlib.sha256(f"{self.dataset.root} {self.stored}".encode())
        for path in self.dataset.paths:
            try:
                stat = os.stat(self.dataset.root / str(path))
            except FileNotFoundError:
                raise DataError(
                    f"Image {self.dataset.root / str(path)} is missing, though the annotations list it."
                ) from None
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _open_cache(self, progress: Progress | None) -> np.ndarray:
        folder = data_dir() / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"images-{self.dataset.name}-{self.dataset.split}-{self.stored}px-{self._key()}.npy"
        if not path.is_file():
            with only_one(path.with_suffix(".lock")):
                if not path.is_file():
                    self._build(path, progress)
        return np.load(path, mmap_mode="r")

    def _build(self, path: Path, progress: Progress | None) -> None:
        shape = (len(self.dataset), self.stored, self.stored, 3)
        part, done_path = path.with_suffix(".part"), path.with_suffix(".done")
        resume = part.is_file() and done_path.is_file()
        size, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if not resume and size > free:
            raise DataError(
                f"The decoded images of {self.dataset.name} {self.dataset.split} at {self.stored} px take "
                f"{size / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB left. Make room, set data.cache_size "
                "to fewer pixels, or data.cache=false to decode images at every use."
            )
        if not resume:
            done_path.unlink(missing_ok=True)  # flags of another build must never vouch for an empty array
        array = np.lib.format.open_memmap(part, mode="r+" if resume else "w+", dtype=np.uint8, shape=shape)
        allocate(part, begun=resume)
        done = np.lib.format.open_memmap(done_path, mode="r+" if resume else "w+", dtype=bool, shape=shape[:1])
        allocate(done_path)

        def store(row: int) -> None:
            array[row] = load_image(self.dataset.path(row), self.stored)

        with ThreadPoolExecutor(self.workers) as pool:
            for block in np.array_split(np.flatnonzero(~done), max(1, int((~done).sum()) // 512)):
                list(pool.map(store, block))
                array.flush()
                done[block] = True  # after the pixels are on disk
                done.flush()
                if progress:
                    what = f"decoding {self.dataset.split} images into {size / 1e9:.2f} GB of cache"
                    progress(what, int(done.sum()), len(done))
        os.replace(part, path)
        done_path.unlink()


def allocate(path: Path, begun: bool = False) -> None:
    """Have the disk set the blocks of a file aside: a memory map that meets a full disk kills the process. Where there
    is no room, a file that nothing was written to yet is removed."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others: a file system that cannot set aside
                if not begun:
                    path.unlink()
                raise OSError(error.errno, error.strerror, str(path)) from None
