"""Photos with tags to grow by, made up: ``python tools/new_digits.py FOLDER`` writes PNG files and a table of tags.

300 scenes of digits that no run on the embedded set has seen; somebody has looked through them for nine and zero, and
for nothing else.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.machine.home import data_dir, resolve

TAGS, IMAGES = ("nine", "zero"), {"train": 200, "test": 100}


def main(folder: Path) -> None:
    rows = []
    for split, count in IMAGES.items():
        scenes = open_dataset(Data(dataset="digits", root=str(data_dir() / "digits"), cardinality=2.5), split)
        shown = scenes.labels[:, [scenes.classes.index(tag) for tag in TAGS]]
        for row in shown.any(axis=1).nonzero()[0][:count]:
            name = f"{split}_{len(rows):03d}.png"
            rows.append((name, "|".join(tag for tag, there in zip(TAGS, shown[row], strict=True) if there), split))
            _link(scenes.path(row), folder / name)
    with (folder / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "tags", "split"), *rows])
    print(f"{folder}: {len(rows)} images, tagged {' and '.join(TAGS)} in tags.csv")


def _link(image: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        os.link(image, new)
    except OSError:
        new.write_bytes(image.read_bytes())


if __name__ == "__main__":
    main(resolve(sys.argv[1]))
