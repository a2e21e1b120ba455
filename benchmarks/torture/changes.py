"""What changes on the disk between two starts: images and labels of the data set, and every file of the home."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from .child import Child
from .faults import World
from .frame import Lost
from .same import differences
from .seam import kind_of

TEXTS = (".json", ".jsonl", ".yaml")
NOT_READ = ("log.txt", "progress.json", ".lock", ".rows")  # files that decide nothing


# ---- the data set ----


def data(seed: int, folder: Path) -> Counter[str]:
    """The data set changes between start and resume: refused, by name; and put back, all goes on. A table, a COCO and a
    VOC folder by turns."""
    world, tried = World(seed, folder, "data", layout=("table", "coco", "voc")[seed % 3]), Counter[str]()
    world.begun(learned=True)  # before that a run may well begin with other data
    root, kept = folder / "data", folder / "kept"
    shutil.copytree(root, kept)
    for name, change in CHANGES.items():
        change(root, world.rng)
        if world.start(None, r"(changed since this run began|is missing|holds? no|no image|labelled)", may_end=False):
            tried[f"data with {name}"] += 1
        shutil.rmtree(root)
        shutil.copytree(kept, root)
    world.end("run")
    return tried


def _images(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png")) + sorted(root.rglob("*.jpg"))


def _tables(root: Path) -> list[Path]:
    return [*root.glob("tags.csv"), *root.glob("annotations/*train*.json"), *sorted(root.glob("Annotations/*.xml"))]


def _changed_image(root: Path, rng: Random) -> None:
    images = [path for path in _images(root) if path.name.startswith("train") or path.suffix == ".jpg"]
    one, two = rng.sample(images, 2)
    while one.stat().st_size == two.stat().st_size:
        one, two = rng.sample(images, 2)
    shutil.copyfile(one, two)


def _removed_image(root: Path, rng: Random) -> None:
    rng.choice(_images(root)).unlink()


def _changed_labels(root: Path, rng: Random) -> None:
    path = _tables(root)[0]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        rows = list(csv.reader(text.splitlines()))
        row = rows[rng.randrange(1, 20)]
        row[1] = "|".join(sorted({*row[1].split("|")} ^ {"ant", "bee"}) or ["cat"])
        text = "\n".join(",".join(row) for row in rows) + "\n"
    elif path.suffix == ".json":
        content = json.loads(text)
        content["annotations"] = content["annotations"][1:]
        text = json.dumps(content)
    else:
        name = re.search(r"<name>(\w+)</name>", text)[1]  # type: ignore[index]
        text = text.replace(f"<name>{name}</name>", f"<name>{'bee' if name == 'ant' else 'ant'}</name>", 1)
    path.write_text(text, encoding="utf-8")


def _added_image(root: Path, rng: Random) -> None:
    """With its labels."""
    source = next(path for path in _images(root) if path.name.startswith("train") or path.suffix == ".jpg")
    shutil.copyfile(source, new := source.with_name(f"train_999{source.suffix}"))
    if (table := root / "tags.csv").is_file():
        with table.open("a", encoding="utf-8") as file:
            file.write(f"{new.name},ant,train\n")
    elif tables := list(root.glob("annotations/*train*.json")):
        content = json.loads(tables[0].read_text(encoding="utf-8"))
        content["images"].append({**content["images"][0], "id": 9999, "file_name": new.name})
        content["annotations"].append({**content["annotations"][0], "id": 99999, "image_id": 9999})
        tables[0].write_text(json.dumps(content), encoding="utf-8")
    else:
        text = (root / f"Annotations/{source.stem}.xml").read_text(encoding="utf-8")
        (root / f"Annotations/{new.stem}.xml").write_text(text, encoding="utf-8")
        with (root / "ImageSets/Main/trainval.txt").open("a", encoding="utf-8") as file:
            file.write(f"{new.stem}\n")


CHANGES: dict[str, Callable[[Path, Random], None]] = {
    "an image changed": _changed_image, "an image removed": _removed_image, "labels changed": _changed_labels,
    "an image added": _added_image,
}  # fmt: skip


# ---- files of the home ----

HARM: dict[str, Callable[[bytes, Random], bytes]] = {
    "flipped": lambda content, rng: _flipped(content, rng),
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "emptied": lambda content, rng: b"",
    "foreign": lambda content, rng: rng.randbytes(max(len(content), 100)),
}


def _flipped(content: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def damaged(seed: int, folder: Path) -> Counter[str]:
    """Every kind of file that a run left as it was killed, and every kind of cache of a finished one: it is made again,
    or named with a way out that works; the run is the same."""
    world, tried = World(seed, folder, "damaged"), Counter[str]()
    world.begun()
    begun = folder / "begun"
    world.killed.rename(begun)
    for before, wanted in ((begun, "*"), (world.whole, "data/cache/*")):
        kinds: dict[str, list[Path]] = {}
        for path in sorted(before.rglob(wanted)):
            if path.is_file() and path.stat().st_size and not path.name.endswith(NOT_READ):
                kinds.setdefault(kind_of("", str(path.relative_to(before))), []).append(path.relative_to(before))
        for kind in sorted(kinds):
            name = world.rng.choice(kinds[kind])
            # A text in which one letter is another may be as good a text: nothing can tell.
            harm = sorted({*HARM} - ({"flipped"} if name.suffix in TEXTS else set()))
            how = world.rng.choice(harm)
            shutil.rmtree(world.killed, ignore_errors=True)
            shutil.copytree(before, world.killed)
            if before == world.whole:
                shutil.rmtree(world.killed / "run")
            path = world.killed / name
            path.write_bytes(HARM[how](path.read_bytes(), world.rng))
            _mended(world, path, how)
            tried[f"files {how}"] += 1
    return tried


def _mended(world: World, path: Path, how: str) -> None:
    """Start, and where the file is named, do what is said."""
    harmed, child = path.read_bytes(), Child(world.arguments(world.killed), world.killed)
    code, said = child.end(), child.words
    if code:
        last = said.strip().splitlines()[-1]
        if code != 2 or "Traceback" in said or path.name not in last or not re.search("delete|again|anew", last):
            raise Lost(f"{path} {how}: exit code {code}, and it was to be named with the way out: {said}")
        if path.parent.name.startswith("session_"):
            shutil.rmtree(path.parent)
        else:
            path.unlink()
        Child(world.arguments(world.killed), world.killed).well()
    own = path.relative_to(world.killed)
    if path.is_file() and path.read_bytes() == harmed:  # nothing needed it
        shutil.copyfile(world.whole / own, path)
    found = differences(world.whole / "run", world.killed / "run")
    if path.name == "environment.json":  # the record of earlier starts is lost with it, which marks the run
        found = [why for why in found if not re.search(r"\.mixed is|\.starts", why)]
    if path.name == "metrics.jsonl":  # as is said, the lines up to the damage are kept
        found = [why for why in found if not why.startswith("metrics.jsonl")]
    if found:
        raise Lost("\n  ".join([f"{path} {how}: the run is another, and nothing was said", *found[:6]]))
