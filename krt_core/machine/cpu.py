"""What is there for speed on a CPU alone; results are the same without it, but for rounding."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_usual: list[int] = []  # threads outside each `one_thread`


def keep_freed_memory(keep: bool = True) -> bool:
    """Ask the C library to keep large blocks that are freed for the next use; returns whether it does.

    By default every large tensor on a CPU is memory that the kernel hands out afresh, page by page and zeroed: up to
    half of the time of a forward pass. ``keep=False`` goes back to glibc's usual ways.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # M_... of malloc.h
    settings = {mmap_max: 0, trim_threshold: -1}  # no separate maps; never give the end of the heap back
    if not keep:
        settings = {mmap_max: 65536, mmap_threshold: 32 << 20, trim_threshold: 64 << 20}
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all(libc.mallopt(key, value) for key, value in settings.items())
    except (OSError, AttributeError):  # no glibc
        return False


def give_back_memory() -> None:
    """Give the kernel back what lies free between what is in use: of memory that is kept (`keep_freed_memory`) such
    gaps become more with every session, since the next one's blocks are a little too large for them."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def one_thread(only: bool = True) -> Iterator[None]:
    """Compute in one thread, where the work is so small that several would mostly wait for one another."""
    before = torch.get_num_threads()
    _usual.append(before)
    torch.set_num_threads(1 if only else before)
    try:
        yield
    finally:
        torch.set_num_threads(_usual.pop())


@contextlib.contextmanager
def usual_threads() -> Iterator[None]:
    """As many threads as there were outside `one_thread`."""
    now = torch.get_num_threads()
    torch.set_num_threads(_usual[0] if _usual else now)
    try:
        yield
    finally:
        torch.set_num_threads(now)


def falling_order(scores: np.ndarray) -> np.ndarray:
    """Places (n,) of the scores (n,) from the highest down; ties keep their order.

    The bits of float32 that are not negative rise with their value, and numpy sorts 16 bits by radix: four times as
    fast as sorting floats.
    """
    if scores.dtype != np.float32 or not (scores >= 0).all():
        return np.argsort(-scores, kind="stable")
    bits = ~(scores + 0).view(np.uint32)  # adding 0 makes -0 a 0
    low, high = (bits & 0xFFFF).astype(np.uint16), (bits >> 16).astype(np.uint16)
    order = np.argsort(low, kind="stable")
    return order[np.argsort(high[order], kind="stable")]


def depthwise_in_float32(body: nn.Module) -> None:
    """Let every depthwise layer of a network compute in float32 where training on a CPU would take bfloat16.

    With a stride its backward pass takes 138 ms in bfloat16 and 24 in float32 (96 channels, 112 x 112, batch 32, two
    cores with avx512_bf16). What comes in and goes out stays bfloat16, names and weights stay as they are.
    """
    from timm.layers import BlurPool2d  # the low-pass filter before a stride: a depthwise convolution without weights

    for module in body.modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if isinstance(module, BlurPool2d) or depthwise:
            module.__class__ = _in_float32(type(module))


@functools.cache
def _in_float32(kind: type[nn.Module]) -> type[nn.Module]:
    class InFloat32(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            slow = self.training and x.dtype == torch.bfloat16 and x.device.type == "cpu"
            if not slow:
                return super().forward(x)
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)

        def __reduce__(self) -> tuple[Any, ...]:  # or a network could not be saved whole: this class has no place
            return _remade, (kind,), self.__dict__

    InFloat32.__name__ = InFloat32.__qualname__ = kind.__name__
    return InFloat32


def _remade(kind: type[nn.Module]) -> nn.Module:
    made = _in_float32(kind)
    return made.__new__(made)
