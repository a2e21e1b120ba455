"""What goes wrong around a process: a disk that is full or cannot be written, clocks, numbers, memory, images, locks.

Each is put into a `benchmarks.torture.child.Child` in place of a seam: installed before its command, asked afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .child import FORKS
from .seam import PATHS, kind_of

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000  # of unshare(2)
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18  # of mount(2)
LIBC = ctypes.CDLL(None, use_errno=True)


class Ill:
    def install(self, home: Path) -> None:
        raise NotImplementedError

    def tell(self) -> None:
        """The command has ended."""


# ---- disks ----


@functools.cache
def namespaces() -> bool:
    """May a process here mount something that it alone sees?"""
    process = FORKS.Process(target=_own_mounts)
    process.start()
    process.join()
    return process.exitcode == 0


def _own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    _checked(LIBC.unshare(NEW_USER | NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    _mount("none", "/", "", RECURSIVE | PRIVATE)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [word.encode() for word in (source, target, kind)]
    _checked(LIBC.mount(*words, ctypes.c_ulong(flags), data.encode()))


def _checked(code: int) -> None:
    if code:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass
class Small(Ill):
    """A disk of so many KB, where the home is; what is on it at the end is there afterwards."""

    kilobytes: int

    def install(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.below = home, os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        _own_mounts()
        _mount("tmpfs", str(home), "tmpfs", 0, f"size={self.kilobytes}k")
        shutil.copytree(f"/proc/self/fd/{self.below}", home, dirs_exist_ok=True)

    def tell(self) -> None:
        real = Path(f"/proc/self/fd/{self.below}")
        for name in os.listdir(real):
            shutil.rmtree(real / name) if (real / name).is_dir() else (real / name).unlink()
        shutil.copytree(self.home, real, dirs_exist_ok=True)


class ReadOnly(Ill):
    """The home can be read alone."""

    def install(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        _own_mounts()
        _mount(str(home), str(home), "", BIND)
        _mount("none", str(home), "", BIND | REMOUNT | READ_ONLY)


@dataclass
class Refusing(Ill):
    """From one place on (`benchmarks.torture.seam.Place`) no file of the home can be made or replaced: the disk is full
    (ENOSPC), so is the quota (EDQUOT), or it was mounted anew to be read alone (EROFS)."""

    kind: str
    number: int
    code: int
    home: str = ""
    seen: int = 0
    begun: bool = False

    def install(self, home: Path) -> None:
        import sys

        self.home = str(home)
        sys.addaudithook(self._hear)

    def tell(self) -> None:
        self.home = "\0"

    def _hear(self, event: str, arguments: Sequence[Any]) -> None:
        if event not in PATHS:
            return
        what, which = PATHS[event]
        path = arguments[which]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if what == "write" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.fsdecode(path)
        if not path.startswith(self.home):
            return
        if kind_of(what, path[len(self.home) + 1 :]) == self.kind:
            self.begun |= self.seen == self.number
            self.seen += 1
        if self.begun and (self.code == errno.EROFS or what in ("write", "mkdir")):  # a full disk lets files go
            raise OSError(self.code, os.strerror(self.code), path)


# ---- clocks, numbers, memory, images, locks ----


@dataclass
class Clock(Ill):
    """Time that jumps by so many seconds whenever it is asked for the n-th time."""

    seconds: float
    every: int = 7

    def install(self, home: Path) -> None:
        import time

        asked, real = [0], time.time

        def jumping() -> float:
            asked[0] += 1
            return real() + self.seconds * (asked[0] // self.every)

        time.time = jumping


@dataclass
class NoNumber(Ill):
    """The loss of the n-th step is NaN."""

    step: int

    def install(self, home: Path) -> None:
        from krt_core.learn import Learner

        original, seen = Learner._loss, [0]

        def loss(learner: Any, batch: Any) -> dict[str, Any]:
            made = original(learner, batch)
            seen[0] += 1
            return {**made, "loss": made["loss"] * float("nan")} if seen[0] == self.step + 1 else made

        Learner._loss = loss


@dataclass
class Starved(Ill):
    """From the n-th step on there is memory for so many images at a time."""

    step: int
    images: int

    def install(self, home: Path) -> None:
        from krt_core.learn import Learner

        original, seen = Learner._loss, [0]

        def loss(learner: Any, batch: Any) -> dict[str, Any]:
            seen[0] += 1
            if seen[0] > self.step and len(batch.rows) > self.images:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
            return original(learner, batch)

        Learner._loss = loss


@dataclass
class Unreadable(Ill):
    """The n-th image that is read cannot be, in whatever thread: the disk fails (EIO), or the thread dies of memory."""

    number: int
    error: str  # "EIO" or "memory"

    def install(self, home: Path) -> None:
        from PIL import Image

        original, seen = Image.open, [0]

        def opened(*arguments: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == self.number + 1:
                raise MemoryError if self.error == "memory" else OSError(errno.EIO, os.strerror(errno.EIO))
            return original(*arguments, **options)

        Image.open = opened


@dataclass
class NoLocks(Ill):
    """A file system without locks."""

    code: int

    def install(self, home: Path) -> None:
        import fcntl

        def without(*_: Any) -> None:
            raise OSError(self.code, os.strerror(self.code))

        fcntl.flock = fcntl.lockf = without
