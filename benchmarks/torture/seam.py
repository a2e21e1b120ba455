"""The seam: a process that stops for good at one of the places at which it changes what is on disk.

Python tells of every file that is opened, renamed or removed (`sys.addaudithook`), so no place that writes can be
forgotten. At a given one the process is killed: before a file is renamed, removed, linked or a folder made; or, where
one is opened to be written, by the kernel once so many bytes of it are on disk (a limit on the size of files, whose
signal ends the process). What is written through a memory map, of which the kernel knows nothing, is cut off after as
many bytes by array classes of our own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

PATHS = {  # event of Python → what it does to a file, and which of its arguments names it
    "open": ("write", 0), "os.rename": ("rename", 1), "os.remove": ("remove", 0), "os.link": ("link", 1),
    "os.mkdir": ("mkdir", 0), "os.rmdir": ("rmdir", 0), "os.truncate": ("truncate", 0),
}  # fmt: skip
MAPPED = "map"


class Place(NamedTuple):
    """A place in the life of a process: the n-th time (from 0) that it does something to a kind of file; byte: after so
    many of them."""

    kind: str  # as in "write session_#/scores.npz"
    number: int
    byte: int = 0


def kind_of(what: str, path: str) -> str:
    """What is done to which kind of file: hashes, numbers and the endings of temporary names left out."""
    path = re.sub(r"(^|/)\.([^/]+)\.[0-9a-f]{8}\.tmp$", r"\1\2", path)
    return f"{what} {re.sub(r'[0-9]+', '#', re.sub(r'[0-9a-f]{8,}', '*', path))}"


@dataclass
class Seam:
    """stop: where the process ends. heard: a file that is told of all places, where it ends by itself."""

    stop: Place | None = None
    heard: Path | None = None
    home: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    places: list[tuple[str, int, int]] = field(default_factory=list)  # kind, number, bytes
    opened: tuple[str, int] | None = None  # the file that is being written, and its size before
    armed: bool = False

    def install(self, home: Path) -> None:
        self.home = str(home)
        _cut_maps(self)
        sys.addaudithook(self._hear)

    def tell(self) -> None:
        if self.heard:
            self._settle()
            self.home = "\0"  # what follows is no part of it
            self.heard.write_text(json.dumps(self.places), encoding="utf-8")

    # ---- places ----

    def _hear(self, event: str, arguments: Sequence[Any]) -> None:
        if event not in PATHS:
            return
        what, which = PATHS[event]
        path = arguments[which]
        if not isinstance(path, (str, bytes, os.PathLike)):  # a number of an open file
            return
        if what == "write" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.fsdecode(path)
        if path.startswith(self.home):
            self.come(kind_of(what, path[len(self.home) + 1 :]), path if what == "write" else "")
        elif event == "os.remove" and not os.path.isabs(path):  # in a folder that is removed
            self.come(kind_of(what, path))

    def come(self, kind: str, path: str = "") -> int | None:
        """At a place; returns the byte where it is the one at which a map is to be cut off."""
        self._settle()
        number = self.counts[kind]
        self.counts[kind] += 1
        if path:
            self.opened = path, _size(path)
        if self.heard:
            self.places.append((kind, number, 0))
        if self.stop is None or self.stop[:2] != (kind, number):
            return None
        if kind.startswith(MAPPED):
            return self.stop.byte
        if not path:
            stop()
        self.armed = True
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        most = _size(path) + self.stop.byte if not _anew(path) else self.stop.byte
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return None

    def _settle(self) -> None:
        """The file before is written."""
        if self.armed:
            stop()
        if self.opened and self.heard:
            path, before = self.opened
            kind, number, _ = self.places[-1]
            self.places[-1] = kind, number, max(0, _size(path) - before)
        self.opened = None


def stop() -> NoReturn:
    """As by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _anew(path: str) -> bool:
    """Is a file written from its beginning? Only logs and lines of records are added to."""
    return not path.endswith((".txt", ".jsonl"))


# ---- memory maps ----


def _cut_maps(seam: Seam) -> None:
    from krt_core.data import kept

    def write(array: np.ndarray, plain: type, key: Any, value: Any, path: str) -> None:
        region = np.asarray(array)
        byte = seam.come(kind_of(MAPPED, path[len(seam.home) + 1 :]))
        if byte is None:
            if seam.heard:
                kind, number, _ = seam.places[-1]
                seam.places[-1] = kind, number, region[key].nbytes
            region[key] = value
            return
        after = region.copy()
        after[key] = value
        now, then = region.reshape(-1).view(np.uint8), after.reshape(-1).view(np.uint8)
        places = np.flatnonzero(now != then)[:byte]
        now[places] = then[places]
        stop()

    class Cut(np.ndarray):
        path = ""

        def __setitem__(self, key: Any, value: Any) -> None:
            write(self, np.ndarray, key, value, self.path)

    class CutMap(np.memmap):
        def __setitem__(self, key: Any, value: Any) -> None:
            write(self, np.memmap, key, value, str(self.filename))

    create, opens = np.lib.format.open_memmap, kept.Kept._open

    def open_memmap(*arguments: Any, **options: Any) -> np.ndarray:
        return create(*arguments, **options).view(CutMap)

    def opened(self: Any, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        files = opens(self, *arguments)
        if not isinstance(files[0], Cut):
            cut = tuple(one.view(Cut) for one in files)
            for one, path in zip(cut, (self.path, self.sums_path), strict=True):
                one.path = str(path)
            self.files = cut
        return self.files

    np.lib.format.open_memmap, kept.Kept._open = open_memmap, opened
