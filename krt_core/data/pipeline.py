"""From rows to batches: threads read and augment images ahead of the training, then they move to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..machine.cpu import one_thread
from ..machine.device import Runtime
from .features import FeatureStore, KeptFeatures
from .images import load_image
from .loading import Pixels, move, sender, to_device
from .store import ImageStore

__all__ = [
    "Batch", "FeatureStore", "ImageStore", "batches", "load_image", "move", "sender", "small_work", "steps",
    "to_device",
]  # fmt: skip

AHEAD = 2  # batches prepared while one is in use


@dataclass
class Batch:
    """images (B, 3, S, S) float32 in [0, 1] on the device, or the features (B, channels, h, w) that a backbone that
    stands still has made of them; labels (B, C) float32 as the session may see them, 1, 0 or, for unknown, -1; rows
    (B,) of the training set.

    share: part of the global batch that this process holds (1.0 when it is alone). weight: what its loss counts for;
    less than 1 where every process holds the same images. places (B,) among what the batches are of, as in the
    session's view.
    """

    images: Tensor
    labels: Tensor
    rows: np.ndarray
    share: float = 1.0
    weight: float = 1.0
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def pieces(self, size: int) -> list[Batch]:
        """It in pieces of so many images (0: whole), whose parts of the loss add up to its own."""
        n = len(self.rows)
        if not 0 < size < n:
            return [self]
        cuts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        return [
            replace(
                self, images=self.images[cut], labels=self.labels[cut], rows=self.rows[cut], places=self.places[cut],
                share=self.share * (cut.stop - cut.start) / n,
            )
            for cut in cuts
        ]  # fmt: skip


def batches(
    store: ImageStore | FeatureStore,
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
    batch; what it draws by torch follows from the seed that the epoch began with. Of a `FeatureStore` come features,
    those of one of its views of each image where there is an augmentation; without views they come from the images.

    shuffle: these are batches to train with, of which batch norm takes its statistics. One image left over at the end
    goes with the batch before (see `steps`).
    """
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
        source: Pixels | KeptFeatures
        if isinstance(store, FeatureStore) and (augmentation == "none" or store.views):
            source = KeptFeatures(store, rows, augmentation != "none", pool)
        else:
            images = store.images if isinstance(store, FeatureStore) else store
            source = Pixels(images, augmentation, runtime, pool)

        def prepare(position: int) -> Callable[[], Tensor]:
            rng, chunk, mine = np.random.default_rng([*seed, 1, position]), whole[position], places[position]
            return source.prepare(rows[chunk[mine]], len(chunk), mine, rng)

        ahead = [prepare(position) for position in range(min(AHEAD, len(whole)))]
        for position, chunk in enumerate(whole):
            pixels = ahead.pop(0)()
            if position + AHEAD < len(whole):
                ahead.append(prepare(position + AHEAD))
            mine = chunk[places[position]]
            pixels, shown = send(pixels, torch.from_numpy(labels[mine]).float())
            weight = 1.0 if shared[position] else 1 / world.size
            yield Batch(source.finish(pixels), shown, rows[mine], len(mine) / len(chunk), weight, mine)


def steps(images: int, batch_size: int) -> int:
    """Batches of an epoch of training: batch norm cannot learn from one image, so one left over makes no batch."""
    full, left = divmod(images, batch_size)
    return full + (left > (1 if full else 0))


def small_work(store: ImageStore | FeatureStore, device: torch.device) -> AbstractContextManager[None]:
    """Heads on means are so little work that several threads would mostly wait for one another."""
    return one_thread(isinstance(store, FeatureStore) and store.pooled and device.type == "cpu")
