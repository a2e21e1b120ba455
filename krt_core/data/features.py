"""What a backbone that stands still makes of images, kept on disk: computed once, read by every run after it."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..machine.device import Runtime
from ..machine.home import data_dir
from ..machine.locks import only_one
from .augment import draw
from .images import DECODER
from .loading import Pixels
from .overlap import image_key
from .store import ImageStore, Progress, allocate, is_whole

BLOCK = 128  # images that are computed at a time and then written down


class Maker(Protocol):
    """Makes features of images; `krt_core.model.still.Features`."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    digest: str
    runtime: Runtime

    def __call__(self, images: Tensor) -> Tensor: ...


class _Kept(NamedTuple):
    """The features (n, channels, h, w) of one view of all images, and which of them (n,) are computed."""

    array: np.memmap
    done: np.memmap


class FeatureStore:
    """Features by row, memory-mapped under ``data/cache``, beside the images that they are made of.

    The file's name holds a hash of all that decides them: weights, sizes, normalisation, precision, the images' names,
    sizes and times, and how a view is augmented. Only rows that are asked for are computed, so an interrupted start
    loses at most `BLOCK` of them; processes and runs that want the same ones wait for each other. view 0 is the image
    as in a test, views 1 to ``views`` are augmented, each always alike.
    """

    def __init__(
        self,
        images: ImageStore,
        maker: Maker,
        augmentation: str = "none",
        views: int = 0,
        progress: Progress | None = None,
    ):
        self.images, self.maker, self.progress = images, maker, progress
        self.augmentation, self.views = augmentation, views
        self.key = images.key or image_key(images.dataset)
        self.kept: dict[int, _Kept] = {}

    @property
    def dataset(self) -> Any:
        return self.images.dataset

    @property
    def workers(self) -> int:
        return self.images.workers

    def rows(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Features (B, channels, h, w) of rows (B,) that `ensure` has computed; views (B,), default 0."""
        if views is None:
            return self._tensor(self._open(0).array[rows])
        out = torch.empty((len(rows), *self.maker.shape), dtype=self.maker.dtype)
        for view in np.unique(views):
            places = np.flatnonzero(views == view)
            out[torch.from_numpy(places)] = self._tensor(self._open(int(view)).array[rows[places]])
        return out

    def ensure(self, rows: np.ndarray, view: int = 0) -> None:
        """Compute those of rows (m,) that are not there yet. DataError where the disk has no room for them."""
        rows = np.unique(rows)
        if self._open(view).done[rows].all():
            return
        with only_one(self._path(view).with_suffix(".lock")):
            kept = self._open(view, anew=True)
            for block, features in self._made(rows[~kept.done[rows]], view):
                self._check(features, block)
                kept.array[block] = self._array(features)
                kept.array.flush()
                kept.done[block] = True  # after the features are on disk
                kept.done.flush()
                if self.progress:
                    what = f"features of the {self.dataset.split} images, {_said(self._size)} on disk"
                    self.progress(what, int(kept.done[rows].sum()), len(rows))

    def _made(self, rows: np.ndarray, view: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """The rows, block by block, with their features; the threads are a block ahead of the network."""
        blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
        with ThreadPoolExecutor(self.workers) as pool:
            source = Pixels(self.images, self.augmentation if view else "none", self.maker.runtime, pool)

            def read(block: np.ndarray) -> Callable[[], Tensor]:
                each = [draw(source.augmentation, 1, np.random.default_rng([view, int(row)])) for row in block]
                return source.read(block, {name: np.concatenate([one[name] for one in each]) for name in each[0]})

            ahead = [read(block) for block in blocks[:1]]
            for position, block in enumerate(blocks):
                pixels = ahead.pop()()
                ahead += [read(block) for block in blocks[position + 1 : position + 2]]
                if source.own is None:
                    images = source.finish(pixels)
                else:  # what it draws follows from the image, not from its neighbours
                    images = torch.cat(
                        [self._own_view(source, pixels[i : i + 1], view, row) for i, row in enumerate(block)]
                    )
                yield block, self.maker(images)

    @staticmethod
    def _own_view(source: Pixels, pixels: Tensor, view: int, row: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(view * 2**40 + int(row))
            return source.finish(pixels)

    @property
    def _size(self) -> int:
        """Bytes of one view of all images."""
        return len(self.dataset) * math.prod(self.maker.shape) * self._stored.itemsize

    @property
    def _stored(self) -> np.dtype:
        return np.dtype(np.int16 if self.maker.dtype == torch.bfloat16 else str(self.maker.dtype).split(".")[1])

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.view(torch.bfloat16) if self.maker.dtype == torch.bfloat16 else tensor

    def _array(self, tensor: Tensor) -> np.ndarray:
        return (tensor.view(torch.int16) if self.maker.dtype == torch.bfloat16 else tensor).numpy()

    def _check(self, features: Tensor, rows: np.ndarray) -> None:
        if not (finite := torch.isfinite(features).flatten(1).all(1)).all():
            row = int(rows[int((~finite).int().argmax())])
            raise DataError(
                f"{self.dataset.path(row)}: the backbone makes numbers of it that are none, or too large for "
                f"{str(self.maker.dtype).removeprefix('torch.')}. Set train.precision=float32, or data.features=false."
            )

    def _path(self, view: int) -> Path:
        stored, way = self.images.stored, f"{view} {self.augmentation}" if view else ""
        said = f"{self.dataset.root} {self.key} {stored} {DECODER} {self.maker.digest} {way}"
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return data_dir() / "cache" / f"features-{self.dataset.name}-{self.dataset.split}-{digest}.npy"

    def _open(self, view: int, anew: bool = False) -> _Kept:
        if anew or view not in self.kept:
            path, shape = self._path(view), (len(self.dataset), *self.maker.shape)
            flags = path.with_suffix(".done")
            if not (is_whole(path, shape, self._stored.type) and is_whole(flags, shape[:1], bool)):
                path.parent.mkdir(parents=True, exist_ok=True)
                if not anew:  # the one that holds the lock makes it
                    with only_one(path.with_suffix(".lock")):
                        return self._open(view, anew=True)
                self._create(path, flags, shape)
            mode: Literal["r", "r+"] = "r+" if anew else "r"
            self.kept[view] = _Kept(*(np.load(file, mode, allow_pickle=False) for file in (path, flags)))
        return self.kept[view]

    def _create(self, path: Path, flags: Path, shape: tuple[int, ...]) -> None:
        """Empty files of the right size; what was left of a build that was cut short is thrown away."""
        free = shutil.disk_usage(path.parent).free
        if self._size > free:
            raise DataError(
                f"The features of {self.dataset.name} {self.dataset.split} take {_said(self._size)}, and {path.parent} "
                f"has {_said(free)} left. Make room, or set data.features=false to compute them at every use."
            )
        for target, dtype, dims in ((path, self._stored, shape), (flags, np.dtype(bool), shape[:1])):
            part = target.with_name(f"{target.name}.part")
            target.unlink(missing_ok=True)
            np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=dims)
            allocate(part)
            os.replace(part, target)


class KeptFeatures:
    """Features on their way to the heads, as `krt_core.data.loading.Pixels` are to the network."""

    def __init__(self, store: FeatureStore, rows: np.ndarray, augmented: bool):
        self.store, self.augmented = store, augmented
        self.dtype = torch.promote_types(store.maker.dtype, torch.float32)  # means; maps stay as they are
        for view in range(1, store.views + 1) if augmented else (0,):
            store.ensure(rows, view)

    def prepare(self, rows: np.ndarray, count: int, mine: np.ndarray, rng: np.random.Generator) -> Callable[[], Tensor]:
        """A view of each image is drawn."""
        views = rng.integers(1, self.store.views + 1, count)[mine] if self.augmented else None
        return lambda: self.store.rows(rows, views)

    def finish(self, features: Tensor) -> Tensor:
        return features.to(self.dtype) if features.shape[-1] == 1 else features


def _said(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
