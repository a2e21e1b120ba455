"""Pixels on their way: threads read and augment images, then they move to the device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..machine.device import Runtime
from ..options import find, is_dotted
from .augment import Draws, augment, draw
from .store import ImageStore

PIECE = 4  # images that a thread takes at a time


class Pixels:
    """Images of a store on their way to the network, augmented by a kind of `augment` or by a transform of one's own
    (its dotted place)."""

    def __init__(self, store: ImageStore, augmentation: str, runtime: Runtime, pool: ThreadPoolExecutor):
        self.store, self.runtime, self.pool = store, runtime, pool
        self.own = find(augmentation, "train.augment") if is_dotted(augmentation) else None
        self.augmentation = "none" if self.own else augmentation

    def prepare(self, rows: np.ndarray, count: int, mine: np.ndarray, rng: np.random.Generator) -> Callable[[], Tensor]:
        """Have the threads read and augment the images of ``rows`` (B,), which stand at the places ``mine`` (B,) of a
        batch of ``count``; what is returned waits for their pixels."""
        draws = draw(self.augmentation, count, rng)
        return self.read(rows, {name: values[mine] for name, values in draws.items()})

    def read(self, rows: np.ndarray, draws: Draws) -> Callable[[], Tensor]:
        """As `prepare`: pixels (B, S, S, 3) uint8, in memory that a GPU fetches by itself."""
        shape = len(rows), self.store.size, self.store.size, 3
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.runtime.device.type == "cuda")
        out = pixels.numpy()

        def fill(start: int) -> None:
            for i, image in enumerate(self.store.rows(rows[start : start + PIECE]), start):
                out[i] = augment(image, self.augmentation, {name: values[i] for name, values in draws.items()})

        jobs = [self.pool.submit(fill, start) for start in range(0, len(rows), PIECE)]

        def finished() -> Tensor:
            for job in jobs:
                job.result()
            return pixels

        return finished

    def finish(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] on the device."""
        return to_device(pixels, self.runtime, self.own)


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
