"""What a backbone that stands still makes of images, kept on disk: computed once, read by every run after it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..machine.cpu import usual_threads
from ..machine.device import Runtime
from ..machine.home import data_dir
from ..machine.locks import Claims
from .augment import draw
from .images import DECODER
from .kept import Kept
from .loading import Pixels
from .overlap import image_key
from .room import Want, check_room, said
from .store import ImageStore, Several, parted

BLOCK = 128  # images that are computed at a time
SETTLE = 1.0  # seconds after which what was computed is written down for good
BUSY = threading.Lock()  # claims keep processes apart, this the threads of one
WAYS_OUT = "choose another KRT_HOME or fewer data.views, or set data.features=false to have them computed at every use"


class Teller(Protocol):
    """Where it is said how far something is; `krt_core.runs.progress.Progress`."""

    def log(self, text: str) -> None: ...

    def decoding(self, what: str, done: int, total: int) -> None: ...


class Maker(Protocol):
    """Makes features of images; `krt_core.model.still.Features`."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    digest: str
    runtime: Runtime

    def __call__(self, images: Tensor) -> Tensor: ...


class FeatureStore:
    """Features by row, memory-mapped in a folder, by default ``data/cache``, beside the images that they are made of.

    The file's name holds a hash of all that decides them: weights, sizes, normalisation, precision, the images' names,
    sizes and times, and how a view is augmented. Only rows that are asked for are computed, `BLOCK` at a time;
    processes and runs that want the same ones at the same time compute a part each. view 0 is the image as in a test,
    views 1 to ``views`` are augmented, each always alike. tell: where it is said what takes time.
    """

    def __init__(
        self, images: ImageStore, maker: Maker, augmentation: str = "none", views: int = 0, tell: Teller | None = None,
        folder: Path | None = None,
    ):  # fmt: skip
        self.images, self.maker, self.tell = images, maker, tell
        self.folder = folder or data_dir() / "cache"
        self.augmentation, self.views = augmentation, views
        self.key = images.key or image_key(images.dataset)
        self.files = [self._file(view) for view in range(views + 1)]

    @property
    def dataset(self) -> Any:
        return self.images.dataset

    @property
    def workers(self) -> int:
        return self.images.workers

    @property
    def pooled(self) -> bool:
        """Means, not maps?"""
        return self.maker.shape[1:] == (1, 1)

    def rows(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Features (B, channels, h, w) of rows (B,) that `ensure` has computed; views (B,), default 0."""
        if views is None:
            return self._tensor(self.files[0].array()[rows])
        out = torch.empty((len(rows), *self.maker.shape), dtype=self.maker.dtype)
        for view in np.unique(views):
            places = np.flatnonzero(views == view)
            out[torch.from_numpy(places)] = self._tensor(self.files[view].array()[rows[places]])
        return out

    def has(self, rows: np.ndarray) -> bool:
        """Are those of all rows (m,) there, not augmented?"""
        return self.files[0].whole() and bool(self.files[0].have(rows).all())

    def ensure(self, rows: np.ndarray, view: int = 0) -> None:
        """Compute those of rows (m,) that are not there yet. DataError where the disk has no room for them."""
        file = self.files[view]
        if file.sure[rows].all():
            return
        what = f"the features of {self.dataset.name} {self.dataset.split}"
        check_room([Want(what, self.folder, file.missing)], WAYS_OUT)
        rows = np.unique(rows)
        there = file.count(rows)
        lacking = rows[~file.have(rows)]
        if (damaged := there + len(lacking) - len(rows)) > 0 and self.tell:
            self.tell.log(f"{file.path}: {damaged} of {there} rows are not as they were written: made again")
        if len(lacking):
            with BUSY, usual_threads(), file.begin() as claims, ThreadPoolExecutor(self.workers) as pool:
                if damaged > 0:
                    file.forget(lacking)
                self._fill(file, lacking, view, claims, pool)

    def _fill(self, file: Kept, rows: np.ndarray, view: int, claims: Claims, pool: ThreadPoolExecutor) -> None:
        """Block by block; the threads are a block ahead of the network. A block that another process is at is left to
        it until there is nothing else to do."""
        source = Pixels(self.images, self.augmentation if view else "none", self.maker.runtime, pool)
        waiting = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        written: list[np.ndarray] = []

        def begin(wait: bool) -> tuple[np.ndarray, Callable[[], Tensor]] | None:
            for block in list(waiting):
                if claims.take(int(block[0]), int(block[-1]) + 1, wait):
                    del waiting[next(i for i, other in enumerate(waiting) if other is block)]
                    if len(mine := block[~file.have(block)]):
                        return mine, self._read(source, mine, view)
                    claims.give(int(block[0]), int(block[-1]) + 1)
            return None

        def settle() -> None:
            for block in written:
                file.vouch(block)
                claims.give(int(block[0]), int(block[-1]) + 1)
            written.clear()

        ahead, settled = begin(wait=False) or begin(wait=True), time.monotonic()
        try:
            while ahead:
                block, pixels = ahead
                images = pixels()
                ahead = begin(wait=False)
                features = self.maker(self._finished(source, images, view, block))
                self._check(features, block)
                file.write(block, self._array(features))
                written.append(block)
                if not ahead or time.monotonic() - settled > SETTLE:
                    settle()
                    settled = time.monotonic()
                if self.tell:
                    what = f"features of the {self.dataset.split} images"
                    self.tell.decoding(what, file.count(rows) + sum(map(len, written)), len(rows))
                ahead = ahead or begin(wait=False) or begin(wait=True)
        finally:
            settle()

    @staticmethod
    def _read(source: Pixels, block: np.ndarray, view: int) -> Callable[[], Tensor]:
        each = [draw(source.augmentation, 1, np.random.default_rng([view, int(row)])) for row in block]
        return source.read(block, {name: np.concatenate([one[name] for one in each]) for name in each[0]})

    def _finished(self, source: Pixels, pixels: Tensor, view: int, block: np.ndarray) -> Tensor:
        if source.own is None:
            return source.finish(pixels)
        # what it draws follows from the image, not from its neighbours
        return torch.cat([self._own_view(source, pixels[i : i + 1], view, row) for i, row in enumerate(block)])

    @staticmethod
    def _own_view(source: Pixels, pixels: Tensor, view: int, row: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(view * 2**40 + int(row))
            return source.finish(pixels)

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

    def _file(self, view: int) -> Kept:
        stored, way = self.images.stored, f"{view} {self.augmentation}" if view else ""
        said = f"{self.dataset.root} {self.key} {stored} {DECODER} {self.maker.digest} {way}"
        digest = hashlib.sha256(content := said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        path = self.folder / f"features-{self.dataset.name}-{self.dataset.split}-{digest}.npy"
        kind = np.dtype(np.int16 if self.maker.dtype == torch.bfloat16 else str(self.maker.dtype).split(".")[1])
        return Kept(path, (len(self.dataset), *self.maker.shape), kind, content)


class SeveralFeatures(FeatureStore):
    """Features of several data sets under one row number, each with files of its own."""

    def __init__(self, images: Several, stores: list[FeatureStore]):
        self.images, self.stores, first = images, stores, stores[0]
        self.maker, self.views, self.tell = first.maker, first.views, first.tell

    def rows(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        out = torch.empty((len(rows), *self.maker.shape), dtype=self.maker.dtype)
        for store, places, own in parted(self.dataset, self.stores, rows):
            out[torch.from_numpy(places)] = store.rows(own, None if views is None else views[places])
        return out

    def has(self, rows: np.ndarray) -> bool:
        return all(store.has(own) for store, _, own in parted(self.dataset, self.stores, rows))

    def ensure(self, rows: np.ndarray, view: int = 0) -> None:
        for store, _, own in parted(self.dataset, self.stores, rows):
            store.ensure(own, view)


def feature_store(
    images: ImageStore, maker: Maker, augmentation: str = "none", views: int = 0, tell: Teller | None = None,
    folder: Path | None = None,
) -> FeatureStore:  # fmt: skip
    """`FeatureStore`, or one for each part of data that have grown."""
    how = maker, augmentation, views, tell, folder
    if isinstance(images, Several):
        return SeveralFeatures(images, [FeatureStore(store, *how) for store in images.stores])
    return FeatureStore(images, *how)


def _each(stores: Iterable[FeatureStore]) -> list[FeatureStore]:
    """Those that have files."""
    return [one for store in stores for one in (store.stores if isinstance(store, SeveralFeatures) else [store])]


def say_sizes(stores: Iterable[FeatureStore], log: Callable[[str], None]) -> None:
    """Before anything is computed: what the features take on disk and what of them is there. DataError where the disk
    has no room for the rest."""
    stores = list({store.files[0].path: store for store in _each(stores)}.values())
    for store in stores:
        each, n = store.files[0].size // max(len(store.dataset), 1), len(store.dataset)
        kind = "means" if store.pooled else "maps of " + " x ".join(map(str, store.maker.shape[1:]))
        copies = f", as they are and in {store.views} views" if store.views else ""
        there = sum(file.count() for file in store.files)
        log(
            f"features: {kind} of {n} {store.dataset.split} images{copies}, {each} bytes each, "
            f"{said(sum(file.size for file in store.files))} in {store.files[0].path.parent}; {there} are there"
        )
        for file in (file for file in store.files if file.spoiled):
            log(f"{file.path} is not what was written there, or not all of it: made again")
    check_room(wanted(stores), WAYS_OUT)


def wanted(stores: Iterable[FeatureStore]) -> list[Want]:
    """What the disk has yet to set aside for the files of some stores, which may share some."""
    files = {file.path: file for store in _each(stores) for file in store.files}
    return [Want("the features", file.path.parent, file.missing) for file in files.values()]


class KeptFeatures:
    """Features on their way to the heads, as `krt_core.data.loading.Pixels` are to the network."""

    def __init__(self, store: FeatureStore, rows: np.ndarray, augmented: bool, pool: ThreadPoolExecutor):
        self.store, self.augmented, self.pool = store, augmented, pool
        self.dtype = torch.promote_types(store.maker.dtype, torch.float32)  # means; maps stay as they are
        for view in range(1, store.views + 1) if augmented else (0,):
            store.ensure(rows, view)

    def prepare(self, rows: np.ndarray, count: int, mine: np.ndarray, rng: np.random.Generator) -> Callable[[], Tensor]:
        """A view of each image is drawn. Maps are read ahead by a thread; means are there at once."""
        views = rng.integers(1, self.store.views + 1, count)[mine] if self.augmented else None
        return (
            partial(self.store.rows, rows, views)
            if self.store.pooled
            else self.pool.submit(self.store.rows, rows, views).result
        )

    def finish(self, features: Tensor) -> Tensor:
        return features.to(self.dtype) if features.shape[-1] == 1 else features
