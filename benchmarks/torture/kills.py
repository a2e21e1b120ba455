"""Commands that are killed (SIGKILL) at random moments, and started again until they are finished."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import psutil

from .child import Child
from .frame import Lost
from .same import differences
from .world import CLOSED, KNOWN, STILL, TRAINED, some, write_images

MOST, FEWER, MANY = 12, 6, 60  # kills of one run, which is then left alone; fewer where a start takes long
FRESH = 6  # one in so many starts loads everything anew, so that it can be killed while it does


def until_done(
    arguments: Sequence[str], home: Path, usual: float, rng: Random, several: bool = False, most: int = MOST
) -> Counter[str]:
    """Start a command again and again, killed after a part of the ``usual`` seconds, until it ends well; after ``most``
    kills it is left alone. The more there are to be, the sooner each comes."""
    tried: Counter[str] = Counter()
    usual *= MOST / max(most, MOST)
    while True:
        fresh = several or rng.random() < 1 / FRESH
        child = Child(arguments, home, fresh=fresh)
        # Often soon after the start, where files are made; at times later than it usually ends.
        wait = usual * rng.choice((0.3, 0.6, 1.1)) * rng.random() + (2 * rng.random() if fresh and not several else 0)
        if tried["kills"] >= most or child.listen(wait):
            child.well()
            return tried
        if several:
            tried[_kill_one(child, rng)] += 1
        else:
            child.kill()
        tried["kills"] += 1
        if not child.end() and not several:
            return tried  # it was just about to end


def _kill_one(child: Child, rng: Random) -> str:
    """Of a training in several processes: one that computes, the one that watches over them, or the command itself."""
    own = psutil.Process(child.pid)
    kinds: dict[str, list[psutil.Process]] = {"of the command": [own]}
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            works = "krt_core.launch" not in process.cmdline()
            kinds.setdefault("of a worker" if works else "of torchrun", []).append(process)
    kind = "of a worker" if "of a worker" in kinds and rng.random() < 0.7 else rng.choice(sorted(kinds))
    with contextlib.suppress(psutil.Error):
        rng.choice(kinds[kind]).kill()
    return kind


def compare(folder: Path, whole: str = "whole", killed: str = "killed") -> None:
    """`Lost` where what was killed is not to the last byte what was left alone: run, caches, all of a home."""
    if found := differences(folder / whole, folder / killed):
        raise Lost("\n  ".join(["the killed run is not the other", *found[:12]]))


def trained(
    seed: int, folder: Path, kinds: tuple[dict, ...] = TRAINED, images: int = 60, most: int = MOST
) -> Counter[str]:
    rng = Random(f"kills {seed}")
    preset = some(kinds, folder, seed, rng, images)
    how = "--device", "cpu"
    return _killed(rng, folder, lambda home: ["train", str(preset), "--folder", str(home / "run"), *how], most=most)


def often(seed: int, folder: Path) -> Counter[str]:
    """A training of fifty epochs in five sessions that is killed some fifty times."""
    return trained(seed, folder, tuple({**kind, "train.epochs": 10} for kind in TRAINED), most=MANY)


def closed(seed: int, folder: Path) -> Counter[str]:
    """Methods in closed form."""
    return trained(seed, folder, CLOSED)


def still(seed: int, folder: Path) -> Counter[str]:
    """Features of a backbone that stands still, of more images than are computed at a time."""
    return trained(seed, folder, STILL, images=300)


def several(seed: int, folder: Path) -> Counter[str]:
    """A training in two processes, one of which dies."""
    rng = Random(f"several {seed}")
    preset = some(TRAINED, folder, seed, rng)
    how = "--device", "cpu", "--processes", "2"
    return _killed(rng, folder, lambda home: ["train", str(preset), "--folder", str(home / "run"), *how], True, FEWER)


def extended(seed: int, folder: Path) -> Counter[str]:
    """`krt extend`: the run that grows stays as it is."""
    rng = Random(f"extend {seed}")
    preset = some((TRAINED[0], TRAINED[6], CLOSED[0], CLOSED[1]), folder, seed, rng)
    old = folder / "old" / "run"
    Child(["train", str(preset), "--folder", str(old), "--device", "cpu"], folder / "old").well()
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    more = write_images(folder / "more", range(KNOWN - 2, KNOWN + 2), 40, 20, seed + 1)
    tried = _killed(
        rng, folder, lambda home: ["extend", str(old), str(more), "--folder", str(home / "run"), "--device", "cpu"]
    )
    if before != {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}:
        raise Lost(f"{old} is not as it was before it was grown")
    return tried


def _killed(
    rng: Random, folder: Path, arguments: Callable[[Path], Sequence[str]], several: bool = False, most: int = MOST
) -> Counter[str]:  # fmt: skip
    """A command left alone and one that is killed, each in a home of its own: are they the same?"""
    whole = Child(arguments(folder / "whole"), folder / "whole", fresh=several).well()
    tried = until_done(arguments(folder / "killed"), folder / "killed", whole.seconds, rng, several, most)
    compare(folder)
    return tried
