"""From files to batches: decode and resize once into a uint8 cache, then read rows, augment, move to the device."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..machine.device import Runtime
from ..machine.home import data_dir
from ..machine.locks import only_one
from .augment import Draws, augment, draw
from .augment_batch import augment_batch
from .dataset import MultiLabelDataset

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass
class Batch:
    """images (B, 3, S, S) float32 in [0, 1] on the device; labels (B, C) float32 as the session may see them; rows (B,)
    of the training set.

    share: part of the global batch that this process holds (1.0 when it is alone). weight: what its loss counts for;
    less than 1 where every process holds the same images.
    """

    images: Tensor
    labels: Tensor
    rows: np.ndarray
    share: float = 1.0
    weight: float = 1.0


def load_image(path: Path, size: int) -> np.ndarray:
    """Decode and resize (bilinear) to (size, size, 3) uint8; raises DataError naming a missing or broken file."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except FileNotFoundError:
        raise DataError(f"Image {path} is missing, though the annotations list it.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Image {path} cannot be read ({error}). Replace it or remove it from the annotations."
        ) from None


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
        self.dataset, self.shown = dataset, size
        self.size = (cache_size if cache else 0) or size  # side of the stored images; `batches` resizes to `shown`
        self.workers = workers or os.cpu_count() or 1
        self.array = self._open_cache(progress) if cache else None

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8."""
        if self.array is not None:
            return self.array[rows]
        return np.stack([load_image(self.dataset.path(row), self.size) for row in rows])

    def _key(self) -> str:
        digest = hashlib.sha256(f"{self.dataset.root} {self.size}".encode())
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
        path = folder / f"images-{self.dataset.name}-{self.dataset.split}-{self.size}px-{self._key()}.npy"
        if not path.is_file():
            with only_one(path.with_suffix(".lock")):
                if not path.is_file():
                    self._build(path, progress)
        return np.load(path, mmap_mode="r")

    def _build(self, path: Path, progress: Progress | None) -> None:
        shape = (len(self.dataset), self.size, self.size, 3)
        part, done_path = path.with_suffix(".part"), path.with_suffix(".done")
        resume = part.is_file() and done_path.is_file()
        size, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if not resume and size > free:
            raise DataError(
                f"The decoded images of {self.dataset.name} {self.dataset.split} at {self.size} px take "
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
            array[row] = load_image(self.dataset.path(row), self.size)

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


def batches(
    store: ImageStore,
    rows: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    runtime: Runtime,
    augmentation: str = "none",
    seed: tuple[int, ...] = (),
    shuffle: bool = False,
    augment_by: str = "batch",
) -> Iterator[Batch]:
    """Yield batches of ``rows`` (m,) with their ``labels`` (m, C), two prepared ahead by threads; of each, the share
    of this process. augment_by: "batch" on the device, or "pil" image by image in the threads.

    Order and augmentation follow from ``seed`` and each item's place alone, never from the number of threads or
    processes or from what ran before: an epoch can be repeated exactly.
    """
    order = np.random.default_rng([*seed, 0]).permutation(len(rows)) if shuffle else np.arange(len(rows))
    whole = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    world = runtime.world
    # A last batch with fewer images than processes cannot be shared: all of them compute it, each for a part of it.
    shared = [len(chunk) >= world.size for chunk in whole]
    places = [np.arange(len(c)) for c in whole]
    places = [world.part(place) if share else place for place, share in zip(places, shared, strict=True)]

    def draws_of(position: int) -> Draws:
        rng = np.random.default_rng([*seed, 1, position])
        made = draw(augmentation, len(whole[position]), rng)
        return {name: values[places[position]] for name, values in made.items()}

    def one(item: int, draws: Draws) -> np.ndarray:
        image = store.rows(rows[item : item + 1])
        if store.size != store.shown:
            image = resize(torch.from_numpy(image), store.shown).numpy()
        return augment(image[0], augmentation, draws)

    with ThreadPoolExecutor(store.workers) as pool:

        def submit(position: int) -> Callable[[], tuple[np.ndarray, Draws]]:
            """Start reading a batch; the result waits for its pixels (B, S, S, 3) and what is still to be drawn."""
            draws, items = draws_of(position), whole[position][places[position]]
            if augment_by == "pil" and draws:
                parts = [{name: values[i] for name, values in draws.items()} for i in range(len(items))]
                jobs = [pool.submit(one, item, part) for item, part in zip(items, parts, strict=True)]
                return lambda: (np.stack([job.result() for job in jobs]), {})
            if store.array is None:
                jobs = [pool.submit(store.rows, rows[item : item + 1]) for item in items]
                return lambda: (np.concatenate([job.result() for job in jobs]), draws)
            job = pool.submit(store.rows, rows[items])
            return lambda: (job.result(), draws)

        ahead = [submit(position) for position in range(min(2, len(whole)))]
        for position, chunk in enumerate(whole):
            pixels, draws = ahead.pop(0)()
            if position + 2 < len(whole):
                ahead.append(submit(position + 2))
            images = to_device(pixels, store.shown, runtime, augmentation if draws else "none", draws)
            mine = chunk[places[position]]
            shown = torch.from_numpy(labels[mine]).float().to(runtime.device)
            weight = 1.0 if shared[position] else 1 / world.size
            yield Batch(images, shown, rows[mine], len(mine) / len(chunk), weight)


def to_device(
    pixels: np.ndarray, size: int, runtime: Runtime, augmentation: str = "none", draws: Draws | None = None
) -> Tensor:
    """(B, s, s, 3) uint8 → (B, 3, size, size) in [0, 1] on the device, resized and augmented there, channels_last."""
    raw = torch.from_numpy(pixels)
    if runtime.device.type == "cuda":
        raw = raw.pin_memory().to(runtime.device, non_blocking=True)
    if raw.shape[1] != size:
        raw = resize(raw, size)
    images = augment_batch(raw, augmentation, draws or {}).permute(0, 3, 1, 2)
    return images.to(runtime.weights_dtype).div_(255)


def resize(images: Tensor, size: int) -> Tensor:
    """(B, s, s, 3) uint8 → (B, size, size, 3) uint8, bilinear with antialiasing as PIL's."""
    channels_first = images.permute(0, 3, 1, 2).float()
    made = F.interpolate(channels_first, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return made.add_(0.5).clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()
