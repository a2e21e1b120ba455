"""Locks on files, which a killed process lets go of by itself. ConfigError where a file system has none.

A lock file is never removed: of two processes that open it one after the other, one could hold a file that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout, lock_descriptor

from ..errors import ConfigError


@contextlib.contextmanager
def only_one(path: str | Path, taken: Exception | None = None) -> Iterator[None]:
    """Hold a lock file in this process alone. While another one does, it waits, or raises ``taken`` at once."""
    # A soft lock, which filelock offers where there is no other, would outlive a killed process.
    lock = FileLock(path, blocking=taken is None, fallback_to_soft=False, preserve_lock_file=True)
    try:
        with _told(path):
            lock.acquire()
    except Timeout:
        raise taken from None
    try:
        yield
    finally:
        lock.release()


def try_lock(file: IO) -> bool:
    """Lock an open file; False where someone else holds it.

    The lock belongs to the open file: who inherits it holds it too, and it is free when all of them have closed it or
    ended. (`only_one` would take it from them, since filelock's locks are released for all who share the file.)
    """
    with _told(file.name):
        return lock_descriptor(file.fileno(), blocking=False)


def is_locked(path: str | Path) -> bool:
    """Does someone hold the lock of a file? Asked by a shared lock, so that those who ask do not see one another."""
    try:
        with _told(path), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def holder(path: str | Path) -> int | None:
    """Id of the process of this machine that holds the lock of a file, from the kernel's table (Linux; else None).

    It is looked up, as trying the lock would disturb a process that is just about to take it.
    """
    with contextlib.suppress(OSError, ValueError):
        lock = os.stat(path)
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            fields = line.split()  # such as 1: FLOCK ADVISORY WRITE 16482 fe:00:2146356 0 EOF
            if fields[1] == "FLOCK" and int(fields[5].rsplit(":", 1)[1]) == lock.st_ino:
                pid = int(fields[4])
                if _has_open(pid, lock):  # another disk may have a file of this number
                    return pid
    return None


def _has_open(pid: int, file: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # a process of another user, or one that has just ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), file):
                    return True
    return False


@contextlib.contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Names the file whose lock cannot be had: an error of the lock itself, unlike one of opening, has no name."""
    try:
        yield
    except (Timeout, BlockingIOError):
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise ConfigError(
            f"{path} cannot be locked ({error.strerror}). Mount its file system with locks (Lustre: -o flock; "
            "NFS: not nolock), or choose another one: --folder or KRT_HOME for results, KRT_SLOTS for slots."
        ) from None


class Claims:
    """Ranges of whole numbers, each held by one process at a time, by locks on bytes of a file; a killed process lets
    go of them by itself. Threads of one process are not kept apart."""

    def __init__(self, path: str | Path):
        self.path, self.file = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def take(self, start: int, stop: int, wait: bool) -> bool:
        """Hold the numbers from start to before stop; False where another process has some and ``wait`` is not said."""
        try:
            with _told(self.path):
                fcntl.lockf(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), stop - start, start)
        except BlockingIOError:
            return False
        return True

    def give(self, start: int, stop: int) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_UN, stop - start, start)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
