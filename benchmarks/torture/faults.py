"""Faults around a training: each is said with the way out, costs nothing that was finished, and once it is gone the
same command ends as if it had never been."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from .child import Child
from .frame import Lost
from .ill import Clock, Ill, NoLocks, NoNumber, ReadOnly, Refusing, Small, Starved, Unreadable, namespaces
from .kills import compare
from .same import differences
from .seam import Place, Seam
from .world import CLOSED, KNOWN, STILL, TRAINED, as_layout, some, write_images

KINDS = (TRAINED[0], STILL[2], CLOSED[2], TRAINED[1], STILL[1], CLOSED[0], *TRAINED[2:])
ELSEWHERE = r"KRT_HOME|--folder"
Arguments = Callable[[Path], Sequence[str]]


class World:
    """A command in a home of its own, left alone once (``whole``), and the home that suffers (``killed``)."""

    def __init__(
        self, seed: int, folder: Path, kind: str, kinds: tuple[dict, ...] = KINDS, heard: bool = False,
        layout: str = "table",
    ):  # fmt: skip
        self.rng, self.folder = Random(f"{kind} {seed}"), folder
        self.whole, self.killed = folder / "whole", folder / "killed"
        preset = some(kinds, folder, seed, self.rng)
        if layout != "table":
            as_layout(folder / "data", preset, layout)
        extends = kind == "full" and seed % 4 == 3
        if extends:
            old = folder / "old" / "run"
            Child(["train", str(preset), "--folder", str(old), "--device", "cpu"], folder / "old").well()
            more = write_images(folder / "more", range(KNOWN - 2, KNOWN + 2), 40, 20, seed + 1)
            first = ["extend", str(old), str(more)]
        else:
            first = ["train", str(preset)]
        self.arguments: Arguments = lambda home: [*first, "--folder", str(home / "run"), "--device", "cpu"]
        seam = Seam(heard=folder / "places.json") if heard else None
        Child(self.arguments(self.whole), self.whole, seam).well()

    def places(self) -> dict[str, int]:
        """Kinds of places of the whole run, and how often each came."""
        return Counter(kind for kind, *_ in json.loads((self.folder / "places.json").read_text(encoding="utf-8")))

    def start(self, ill: Ill | Seam | None, words: str, may_end: bool = False) -> bool:
        """A start with a fault: it must say what is wrong and what helps (``words``), in one line, and change nothing
        that is finished; may_end: or do without. Returns whether it failed."""
        before = finished(self.killed / "run")
        child = Child(self.arguments(self.killed), self.killed, ill)  # type: ignore[arg-type]
        code, said = child.end(), child.words
        for path, content in before.items():
            if not path.is_file() or path.read_bytes() != content:
                raise Lost(f"{path} was finished, and is not what it was")
        for path, content in finished(self.killed / "run").items():
            other = self.whole / path.relative_to(self.killed)
            if path.suffix not in (".json", ".jsonl") and other.read_bytes() != content:
                raise Lost(f"{path} counts as finished, and is not as it would be without a fault")
        if not code and may_end:
            return False
        last = said.strip().splitlines()[-1] if said.strip() else ""
        if code != 2 or "Traceback" in said or not last.startswith("krt: ") or not re.search(words, last):
            raise Lost(f"{ill}: exit code {code}, where a line with {words} was to be: {said}")
        return True

    def end(self, part: str = "") -> None:
        """The fault is gone."""
        Child(self.arguments(self.killed), self.killed).well()
        if part:
            if found := differences(self.whole / part, self.killed / part):
                raise Lost("\n  ".join(["the run after the fault is not the other", *found[:12]]))
        else:
            compare(self.folder)

    def begun(self, learned: bool = False) -> None:
        """The home of a run that was killed in one of its sessions; learned: not in the first, of which nothing may be
        left."""
        shutil.rmtree(self.killed, ignore_errors=True)
        place = Place(f"rename run/{self.rng.choice(('metrics.jsonl', 'session_#/state.json'))}", 0)
        if learned or self.rng.random() < 0.5 or place.kind.endswith("state.json"):
            place = Place("rename run/session_#/state.json", self.rng.randint(1, 3))
        if Child(self.arguments(self.killed), self.killed, Seam(place)).end() == 0:
            shutil.rmtree(self.killed / "run")  # it has no such place


def finished(run: Path) -> dict[Path, bytes]:
    """All files of finished sessions."""
    own = [path.parent for path in run.glob("session_*/state.json")]
    return {path: path.read_bytes() for folder in own for path in folder.iterdir() if not path.name.startswith(".")}


def full(seed: int, folder: Path) -> Counter[str]:
    """A disk with too little room, at any moment of a run (a small tmpfs)."""
    if not namespaces():
        return Counter({"full disks not tried (no user namespaces)": 1})
    world, tried = World(seed, folder, "full"), Counter[str]()
    needed = sum(path.stat().st_blocks for path in world.whole.rglob("*")) // 2 + 4
    for _ in range(4):
        shutil.rmtree(world.killed, ignore_errors=True)
        for _ in range(3):  # each on a larger disk, in the folder of the one before
            small = Small(world.rng.randint(16, int(1.1 * needed)))
            if world.killed.is_dir():
                small.kilobytes += sum(path.stat().st_blocks for path in world.killed.rglob("*")) // 2 + 16
            failed = world.start(small, rf"({ELSEWHERE}|[Mm]ake room)", may_end=True)
            tried["full disks"] += failed
            if not failed:
                break
        world.end()
    return tried


def refused(seed: int, folder: Path) -> Counter[str]:
    """A full disk, a full quota and a disk to be read alone, from a place of each kind on."""
    world, tried = World(seed, folder, "refused", heard=True), Counter[str]()
    places = world.places()
    for kind in world.rng.sample(sorted(places), min(10, len(places))):
        code = world.rng.choice((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
        shutil.rmtree(world.killed, ignore_errors=True)
        refusing = Refusing(kind, world.rng.randrange(places[kind]), code)
        tried[errno.errorcode[code]] += world.start(refusing, ELSEWHERE, may_end=True)
        world.end()
    return tried


def read_only(seed: int, folder: Path) -> Counter[str]:
    """A home that can only be read: empty, with a run that was begun, with one that is finished."""
    if not namespaces():
        return Counter({"read-only homes not tried (no user namespaces)": 1})
    world = World(seed, folder, "read only")
    world.start(ReadOnly(), ELSEWHERE)
    world.begun()
    world.start(ReadOnly(), ELSEWHERE)
    world.end()
    if world.start(ReadOnly(), ELSEWHERE, may_end=True):
        raise Lost("a finished run on a disk that can only be read is not just there")
    return Counter({"read-only homes": 3})


def jumping(seed: int, folder: Path) -> Counter[str]:
    """Clocks that go back or far forward, and files from the future or the past."""
    world, tried = World(seed, folder, "clock"), Counter[str]()
    for seconds in (-3600.0, 1e8, -1e8):
        world.begun()
        for path in world.killed.rglob("*"):
            os.utime(path, (time := 1.6e9 + world.rng.choice((-1, 1)) * world.rng.random() * 1e9, time))
        if world.start(Clock(seconds), "nothing", may_end=True):
            raise Lost("a clock that jumps has ended a run")
        world.end()
        tried["clocks"] += 1
    return tried


def numbers(seed: int, folder: Path) -> Counter[str]:
    """A loss that is no number, in any step; memory for fewer images than a batch."""
    world, tried = World(seed, folder, "numbers", TRAINED), Counter[str]()
    for _ in range(2):
        shutil.rmtree(world.killed, ignore_errors=True)
        words = r"session \d+, epoch \d+, step \d+, on the images .*train\.lr"
        tried["losses that are none"] += world.start(NoNumber(world.rng.randrange(30)), words, may_end=True)
        tried["times too little memory"] += world.start(
            Starved(world.rng.randrange(20), 5), r"train\.(micro_batch|batch_norm)", may_end=True
        )
        world.end()
    return tried


def unreadable(seed: int, folder: Path) -> Counter[str]:
    """An image that turns unreadable in the middle, or a reading thread that dies."""
    kinds = tuple({**kind, "data.cache": False} for kind in KINDS)
    world, tried = World(seed, folder, "unreadable", kinds), Counter[str]()
    for error in ("EIO", "memory"):
        shutil.rmtree(world.killed, ignore_errors=True)
        ill = Unreadable(world.rng.randrange(400), error)
        tried["images"] += world.start(ill, r"(Image .*\.png|memory)", may_end=True)
        world.end()
    return tried


def unlocked(seed: int, folder: Path) -> Counter[str]:
    """A file system without locks."""
    world = World(seed, folder, "locks")
    for code in (errno.ENOLCK, errno.ENOSYS):
        world.start(NoLocks(code), r"\.lock cannot be locked .*KRT_HOME")
    world.end()
    return Counter({"without locks": 2})


def shared_memory(seed: int, folder: Path) -> Counter[str]:
    """Two processes with a /dev/shm of 64 KB."""
    if not namespaces():
        return Counter({"small /dev/shm not tried (no user namespaces)": 1})
    world = World(seed, folder, "shm", TRAINED)
    command = [sys.executable, "-m", "krt_core.cli", *world.arguments(world.killed), "--processes", "2"]
    inside = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    environment = {**os.environ, "KRT_HOME": str(world.killed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside, "sh", *command], env=environment, capture_output=True, encoding="utf-8",
        timeout=600, check=False,
    )  # fmt: skip
    if done.returncode and ("Traceback" in done.stderr or "shared memory" not in done.stderr):
        raise Lost(f"exit code {done.returncode} with a small /dev/shm: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Counter({"small /dev/shm": 1})
