"""What a process uses now: memory, file handles, threads, temporary files; and the most it and its children had."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

TEMPORARY = (".tmp", ".part")  # what files that are not finished end in


def usage(temporary: Path, folders: Sequence[Path] = ()) -> dict[str, float]:
    """MB in memory, open file handles and memory maps, threads, and files that are not finished: all below
    ``temporary``, and those in the folders that are called so."""
    process = psutil.Process()
    files = walk(temporary)
    files += [path for folder in folders for path in walk(folder) if path.endswith(TEMPORARY)]
    return {
        "memory_mb": process.memory_info().rss / 1e6, "handles": process.num_fds(), "threads": process.num_threads(),
        "maps": _mapped_files(), "temporary_files": len(files), "temporary_bytes": sum(map(size_of, files)),
    }  # fmt: skip


def _mapped_files() -> int:
    """Files of data that are mapped into memory; libraries aside."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        return len({line.split(maxsplit=5)[-1] for line in lines if line.endswith((".npy", ".done", ".npz"))})
    return 0


def walk(folder: Path) -> list[str]:
    """Every file below a folder."""
    return [f"{place}/{name}" for place, _, names in os.walk(folder) for name in names]


def size_of(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0


class Peak:
    """``mb``: the most memory that a process and its children have had together, looked at ten times a second."""

    def __init__(self, pid: int):
        self.pid, self.mb = pid, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            with contextlib.suppress(psutil.Error):
                first = psutil.Process(self.pid)
                children = first.children(recursive=True)
                used = sum(map(_own, [first, *children])) if children else first.memory_info().rss
                self.mb = max(self.mb, used / 1e6)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def _own(process: psutil.Process) -> int:
    """Bytes of a process, of what several share its part: one that was just forked has all of its parent's."""
    with contextlib.suppress(psutil.Error):
        return process.memory_full_info().pss
    return 0
