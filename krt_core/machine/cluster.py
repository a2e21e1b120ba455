"""What the environment says of this process among others, and of the cores it may use. No torch here.

torchrun sets WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; so does many a cluster, and leaves some behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

SHARED = "KRT_SHARED"  # environment variable: names the training in several processes that this one is a part of
WAYS_OUT = "as torchrun and some clusters set it: unset it, or start with `krt train --processes`"
QUOTA = Path("/sys/fs/cgroup/cpu.max")
PATIENCE = 3.0  # seconds of joining before it is said for whom this process waits
LONG = 10.0  # seconds of any other waiting before it is said


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and which of those on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1  # processes on its machine
    meeting: str = ""  # host:port of rank 0


def place() -> Place:
    """As the variables of torchrun say; alone where WORLD_SIZE is not set or 1. ConfigError names the variable that is
    missing or does not fit."""
    size = _number("WORLD_SIZE", 1, 1)
    rank = _number("RANK", 0 if size == 1 else None, 0)
    if rank >= size:
        raise ConfigError(f"RANK={rank} does not fit WORLD_SIZE={os.environ.get('WORLD_SIZE', '')!r}, {WAYS_OUT}.")
    if size == 1:
        return Place()
    host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", None, 1, 65535)
    if not host:
        raise ConfigError(f"WORLD_SIZE={size}, but MASTER_ADDR is not set, {WAYS_OUT}.")
    local = _number("LOCAL_RANK", 0, 0)
    here = max(_number("LOCAL_WORLD_SIZE", 1, 1), local + 1)
    return Place(rank, size, local, here, f"{host}:{port}")


def one_of_several() -> bool:
    """Is this a process of a training in several? Then the one that started them has the last word."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


@contextlib.contextmanager
def told(mine: Place) -> Iterator[None]:
    """Where joining takes long, a line says for whom this process waits, and why."""
    others = f"{mine.size - 1} more of {mine.size} processes" if mine.rank == 0 else "the process of rank 0"
    words = f"krt: waits for {others} at {mine.meeting} (WORLD_SIZE={mine.size}, RANK={mine.rank}, {WAYS_OUT})"
    with said_if_long(words, PATIENCE):
        yield


@contextlib.contextmanager
def said_if_long(words: str, after: float | None = None) -> Iterator[None]:
    """Where the block takes more than so many seconds (LONG), a line says what this process waits for."""
    timer = threading.Timer(LONG if after is None else after, lambda: print(words, file=sys.stderr, flush=True))
    timer.daemon = True
    if words:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def number_in(variable: str, default: int = 0) -> int:
    """A whole number in a variable of the environment; ConfigError names it where it is none."""
    return _number(variable, default, 0)


def cores() -> list[int]:
    """The cores this process may use, by their numbers: on a cluster those of its job, in a container no more than its
    share of processor time comes to."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    with contextlib.suppress(OSError, ValueError):  # "max 100000", or microseconds of time and of a period
        time, period = QUOTA.read_text(encoding="ascii").split()
        mine = mine[: max(1, int(time) // int(period))]
    return mine


def _number(variable: str, default: int | None, least: int, most: int = 2**31) -> int:
    text = os.environ.get(variable, "")
    if not text and default is not None:
        return default
    if not text:
        raise ConfigError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {variable} is not set, {WAYS_OUT}.")
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        bounds = f"of at least {least}" if most == 2**31 else f"from {least} to {most}"
        raise ConfigError(f"{variable}={text!r} must be a whole number {bounds}, {WAYS_OUT}.")
    return value
