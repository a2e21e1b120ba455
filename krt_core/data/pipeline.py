"""From rows to batches: threads read and augment images ahead of the training, then they move to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..machine.device import Runtime
from ..options import find, is_dotted
from .augment import Draws, augment, draw
from .store import ImageStore, load_image

__all__ = ["Batch", "ImageStore", "batches", "load_image", "steps", "to_device"]

AHEAD = 2  # batches prepared while one is in use
PIECE = 4  # images that a thread takes at a time


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


def batches(
    store: ImageStore,
    rows: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    runtime: Runtime,
    augmentation: str = "none",
    seed: tuple[int, ...] = (),
    shuffle: bool = False,
) -> Iterator[Batch]:
    """Yield batches of ``rows`` (m,) with their ``labels`` (m, C), two prepared ahead by threads; of each, the share
    of this process.

    Order and augmentation follow from ``seed`` and each item's place alone, never from the number of threads or
    processes or from what ran before: an epoch can be repeated exactly. augmentation: as of `augment`, or the dotted
    place of a transform of one's own, called with images (B, 3, S, S) uint8 on the device, this process's share of a
    batch; what it draws by torch follows from the seed that the epoch began with.

    shuffle: these are batches to train with, of which batch norm takes its statistics. One image left over at the end
    goes with the batch before (see `steps`).
    """
    own = find(augmentation, "train.augment") if is_dotted(augmentation) else None
    augmentation = "none" if own else augmentation
    order = np.random.default_rng([*seed, 0]).permutation(len(rows)) if shuffle else np.arange(len(rows))
    starts = [i * batch_size for i in range(steps(len(order), batch_size) if shuffle else -(-len(order) // batch_size))]
    whole = np.split(order, starts[1:]) if starts else []
    world = runtime.world
    # A last batch with fewer images than processes cannot be shared: all of them compute it, each for a part of it.
    shared = [len(chunk) >= world.size for chunk in whole]
    places = [np.arange(len(c)) for c in whole]
    places = [world.part(place) if share else place for place, share in zip(places, shared, strict=True)]

    send = sender(runtime.device)
    with ThreadPoolExecutor(store.workers) as pool:

        def prepare(position: int) -> Callable[[], Tensor]:
            rng, chunk, mine = np.random.default_rng([*seed, 1, position]), whole[position], places[position]
            draws = {name: values[mine] for name, values in draw(augmentation, len(chunk), rng).items()}
            return prepare_batch(pool, store, rows[chunk[mine]], augmentation, draws, runtime.device)

        ahead = [prepare(position) for position in range(min(AHEAD, len(whole)))]
        for position, chunk in enumerate(whole):
            pixels = ahead.pop(0)()
            if position + AHEAD < len(whole):
                ahead.append(prepare(position + AHEAD))
            mine = chunk[places[position]]
            pixels, shown = send(pixels, torch.from_numpy(labels[mine]).float())
            images = to_device(pixels, runtime, own)
            weight = 1.0 if shared[position] else 1 / world.size
            yield Batch(images, shown, rows[mine], len(mine) / len(chunk), weight)


def steps(images: int, batch_size: int) -> int:
    """Batches of an epoch of training: batch norm cannot learn from one image, so one left over makes no batch."""
    full, left = divmod(images, batch_size)
    return full + (left > (1 if full else 0))


def prepare_batch(
    pool: ThreadPoolExecutor, store: ImageStore, rows: np.ndarray, augmentation: str, draws: Draws, device: torch.device
) -> Callable[[], Tensor]:
    """Have the threads read and augment the images of ``rows`` (B,); what is returned waits for their pixels
    (B, S, S, 3) uint8, in memory that a GPU fetches by itself."""
    shape = len(rows), store.size, store.size, 3
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    out = pixels.numpy()

    def fill(start: int) -> None:
        for i, image in enumerate(store.rows(rows[start : start + PIECE]), start):
            out[i] = augment(image, augmentation, {name: values[i] for name, values in draws.items()})

    jobs = [pool.submit(fill, start) for start in range(0, len(rows), PIECE)]

    def finished() -> Tensor:
        for job in jobs:
            job.result()
        return pixels

    return finished


def sender(device: torch.device) -> Callable[..., list[Tensor]]:
    """A function that moves tensors to the device. To a GPU they go in a stream of their own: the copy of a batch does
    not queue behind the step before it, but runs beside it."""
    if device.type != "cuda":
        return lambda *tensors: [tensor.to(device) for tensor in tensors]
    beside = torch.cuda.Stream(device)

    def send(*tensors: Tensor) -> list[Tensor]:
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(beside):
            moved = [move(tensor, device) for tensor in tensors]
        computing.wait_stream(beside)
        for tensor in moved:
            tensor.record_stream(computing)  # its memory is in use until that stream is done with it
        return moved

    return send


def to_device(pixels: Tensor, runtime: Runtime, own: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(B, S, S, 3) uint8 → (B, 3, S, S) in [0, 1] on the device, channels_last, through a transform of one's own."""
    images = move(pixels, runtime.device).permute(0, 3, 1, 2)
    if own is not None:
        made = own(images)
        if (made.shape, made.dtype) != (images.shape, torch.uint8):
            raise DataError(
                f"train.augment: {own!r} must keep shape and type of its images, {tuple(images.shape)} uint8; "
                f"found {tuple(made.shape)} {str(made.dtype).removeprefix('torch.')}."
            )
        images = made
    return images.to(runtime.weights_dtype).div_(255)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """To a GPU without waiting: a copy from ordinary memory would wait for all work that was queued before it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
