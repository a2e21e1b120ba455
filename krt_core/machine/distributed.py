"""Several processes as one: each takes its share of every batch, and whatever is decided is decided once.

Started by torchrun (see `krt_core.launch`), every process runs the same loop. `World` holds the few exchanges it needs;
alone in the world each of them does nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from .cluster import place, said_if_long, told

# Of one process for the others: decoding 122,000 images from a slow disk takes hours. It is not there to find out that
# one has failed: torchrun then ends them all.
LONGEST_WAIT = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """This process among ``size`` ones. ``group`` exchanges arrays and decisions over the CPU (gloo)."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Is this the process that writes files and talks?"""
        return self.rank == 0

    @property
    def in_words(self) -> str:
        """As in " in 2 processes"; empty for one."""
        return f" in {self.size} processes" if self.size > 1 else ""

    def part(self, items: np.ndarray) -> np.ndarray:
        """This process's part of an array, split as evenly as it goes, in rank order, nothing twice."""
        return np.array_split(items, self.size)[self.rank]

    def gather(self, part: np.ndarray) -> np.ndarray:
        """The parts of all processes one behind the other, on every process. Parts may differ in length."""
        if self.size == 1:
            return part
        lengths = self._all_gather(torch.tensor([len(part)]))
        longest = max(int(length) for length in lengths)
        padded = np.zeros((longest, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        pieces = self._all_gather(torch.from_numpy(padded))
        return np.concatenate([p.numpy()[: int(n)] for p, n in zip(pieces, lengths, strict=True)])

    def collect(self, part: np.ndarray) -> np.ndarray | None:
        """As `gather`, on the main process alone and without a second copy there; None on the others."""
        if self.size == 1:
            return part
        lengths = [int(length) for length in self._all_gather(torch.tensor([len(part)]))]
        longest = max(lengths)
        padded = np.zeros((longest, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        whole = np.empty((self.size * longest if self.main else 0, *part.shape[1:]), part.dtype)
        pieces = [torch.from_numpy(piece) for piece in np.split(whole, self.size)] if self.main else None
        dist.gather(torch.from_numpy(padded), pieces, dst=0, group=self.group)
        if not self.main:
            return None
        for rank, stop in enumerate(np.cumsum(lengths).tolist()):  # over the padding of those before
            whole[stop - lengths[rank] : stop] = whole[rank * longest : rank * longest + lengths[rank]]
        return whole[: sum(lengths)]

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Each value summed over all processes."""
        if self.size == 1 or not values:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return dict(zip(values, total.tolist(), strict=True))

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Sum tensors on the CPU over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.group)

    def decide(self, value: Any) -> Any:
        """The main process's value (plain JSON) on every process."""
        if self.size == 1:
            return value
        text = np.frombuffer(json.dumps(value).encode() if self.main else b"", np.uint8)
        return json.loads(self.gather(text).tobytes())

    @contextlib.contextmanager
    def main_first(self, work: str = "prepares the data") -> Iterator[None]:
        """The main process goes through the block before the others: it builds caches, they find them."""
        if not self.main:
            others = "process 1 waits" if self.size == 2 else f"processes 1 to {self.size - 1} wait"
            with said_if_long(f"{others} for process 0, which {work}" if self.rank == 1 else ""):
                self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.group)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with synchronised gradients. To be called anew whenever parameters were added: a wrapper knows only
        those it was made with."""
        if self.size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        device = next(model.parameters()).device
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of parameters outside the wrapped model: the mean over processes, as the wrapper takes it."""
        if self.size == 1:
            return
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            moved = gradient.cpu()
            dist.all_reduce(moved, group=self.group)
            parameter.grad = (moved / self.size).to(gradient)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the main one's tensors, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            moved = tensor.detach().cpu().contiguous()
            dist.broadcast(moved, src=0, group=self.group)
            tensor.detach().copy_(moved)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's batch-norm statistics, which each updates from its own images."""
        self.share(model.buffers())

    def _all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        pieces = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(pieces, tensor, group=self.group)
        return pieces


def join_world(device: torch.device) -> World:
    """The world that torchrun described in the environment; joined at the first call, alone without torchrun."""
    mine = place()
    if mine.size == 1:
        return World()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with told(mine):
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    if dist.get_backend() == "gloo":
        return World(dist.get_rank(), mine.size, dist.group.WORLD)
    dist.all_reduce(torch.zeros(1, device=device))  # what is wrong between the GPUs is said now, not after the decoding
    torch.cuda.synchronize(device)
    return World(dist.get_rank(), mine.size, dist.new_group(backend="gloo", timeout=LONGEST_WAIT))


def leave_world() -> None:
    """Close the connections between the processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
