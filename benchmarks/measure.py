"""Timing two ways of doing the same thing side by side."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from krt_core.data.pipeline import Batch
from krt_core.machine.cpu import give_back_memory
from krt_core.machine.device import Runtime
from krt_core.methods import Method


def reset_peak() -> int:
    """Give back what is free and start a new high-water mark of memory; returns what is in use now, bytes."""
    gc.collect()
    give_back_memory()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak() -> int:
    """Most memory in use since the mark, bytes: the GPU's, or the process's where there is none (0 if not Linux)."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def training_step(
    model: nn.Module, method: Method, batch: Batch, optimiser: torch.optim.Optimizer, runtime: Runtime
) -> Tensor:
    """One step as the session loop makes it; the loss, for which nothing has waited yet."""
    model.train()
    with runtime.autocast():
        loss = method.loss(batch)["loss"]
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss


def side_by_side(
    ways: dict[str, Callable[[], object]],
    repeats: int,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict]:
    """Run every way in turn, ``repeats`` times after (with warm_up) a first time that does not count. ``clock``:
    ``time.process_time`` counts what all threads compute, whoever else uses the machine.

    Returns per way the median ``seconds``, all ``times``, and ``peak_mb``: the most memory of the first time above what
    was in use before it. All ways run with the memory settings of the workbench.
    """
    times, peaks = {name: [] for name in ways}, {}
    for name, work in ways.items():
        before = reset_peak()
        first = seconds(work, clock)
        peaks[name] = peak() - before
        if not warm_up:
            times[name].append(first)
    for _ in range(repeats - (not warm_up)):
        for name, work in ways.items():
            times[name].append(seconds(work, clock))
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "times": [round(value, 5) for value in times[name]],
            "peak_mb": round(peaks[name] / 2**20, 1),
        }
        for name in ways
    }
