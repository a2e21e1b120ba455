"""A process that ends in the middle of each thing that it does to files: half a file, no rename, no removal."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from .child import Child
from .frame import Lost
from .kills import compare
from .seam import Place, Seam
from .world import CLOSED, KNOWN, STILL, TRAINED, some, write_images

LEFT_ALONE = ("write .lock", "write run/.lock")  # opened to be locked; nothing is written


def trained(seed: int, folder: Path) -> Counter[str]:
    """Every kind of file of a training."""
    rng = Random(f"halfway {seed}")
    kinds = (TRAINED[0], STILL[2], CLOSED[2], TRAINED[1], *STILL, *TRAINED, *CLOSED)
    preset = some(kinds, folder, seed, rng, 60)
    return stopped(rng, folder, lambda home: ["train", str(preset), "--folder", str(home / "run"), "--device", "cpu"])


def extended(seed: int, folder: Path) -> Counter[str]:
    """Every kind of file of `krt extend`."""
    rng = Random(f"halfway extend {seed}")
    preset = some((CLOSED[0], TRAINED[0]), folder, seed, rng)
    old = folder / "old" / "run"
    Child(["train", str(preset), "--folder", str(old), "--device", "cpu"], folder / "old").well()
    more = write_images(folder / "more", range(KNOWN - 2, KNOWN + 2), 40, 20, seed + 1)
    return stopped(
        rng, folder, lambda home: ["extend", str(old), str(more), "--folder", str(home / "run"), "--device", "cpu"]
    )


def stopped(rng: Random, folder: Path, arguments: Callable[[Path], Sequence[str]], most: int = 0) -> Counter[str]:
    """A command left alone, of which all places are heard; then the same, ended at one place of each kind (of ``most``
    kinds, 0: all), one start after the other, until all have come."""
    whole, killed = folder / "whole", folder / "killed"
    Child(arguments(whole), whole, Seam(heard=folder / "places.json")).well()
    places: dict[str, list[tuple[int, int]]] = {}
    for kind, number, size in json.loads((folder / "places.json").read_text(encoding="utf-8")):
        places.setdefault(kind, []).append((number, size))
    waiting = rng.sample(sorted(places), len(places))[: most or None]
    tried: Counter[str] = Counter()
    while waiting:
        shutil.rmtree(killed, ignore_errors=True)
        for place, kind in enumerate(list(waiting)):
            # The first in a new folder comes as it was heard; later ones come less often, what is done is not repeated.
            first = not place
            number, size = rng.choice(places[kind] if first else places[kind][: max(1, len(places[kind]) // 3)])
            byte = rng.choice((0, 1, size // 2, rng.randint(0, size), size))
            child = Child(arguments(killed), killed, Seam(Place(kind, number, byte)))
            if (code := child.end()) < 0:
                tried["kills"] += 1
                tried["kinds of places"] += 1
                waiting.remove(kind)
            elif code:
                raise Lost(f"exit code {code} on the way to {kind}, {number}: {child.words}")
            elif first:
                raise Lost(f"{kind} did not come a second time, at {number}")
            else:
                break  # it is finished
        Child(arguments(killed), killed).well()
        compare(folder)
    return tried
