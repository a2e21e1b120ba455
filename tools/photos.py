"""What `make photos` begins with: which layout a folder of photos has, and a preset for it in <results>/photos.yaml.

A folder is told by its contents. One that is called voc_sub or coco_sub, or that KRT_VOC_SUB or KRT_COCO_SUB names, has
its preset's classes and sessions; any other has its own classes in at most eight sessions. The backbone stands still.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import yaml

from krt_core.config import Data, load_experiment
from krt_core.data import open_both
from krt_core.data.layouts import layout_of
from krt_core.errors import DataError, KRTError
from krt_core.machine.home import atomic_write, resolve

PRESETS = {"voc": "voc_sub", "coco": "coco_sub", "table": "coco_sub"}  # layout → whose backbone and settings are taken
SESSIONS, FEWEST = 8, 5  # at most so many sessions; of classes with so many training and so many test images
SECONDS = 0.07  # an image takes on two cores, all in all
ASKED = """krt: which photos? Name a folder in VOC or COCO layout, a table, or a folder of folders (docs/your_data.md):

    make photos PHOTOS=folder

or set KRT_VOC_SUB or KRT_COCO_SUB to one. Results go to outputs/photos; another place goes by RESULTS=folder."""


def main(folder: str, results: str) -> int:
    if not folder:
        print(ASKED, file=sys.stderr)
        return 2
    try:
        print(_prepare(resolve(folder), resolve(results) / "photos.yaml"))
    except KRTError as error:
        print(f"krt: {error}", file=sys.stderr)
        return 2
    return 0


def _prepare(folder: Path, target: Path) -> str:
    """Write the preset of a folder; returns what it is, in words."""
    layout, classes, labels, images = _opened(folder)
    before = load_experiment(target).data.root if target.is_file() else str(folder)
    if before != str(folder):
        raise DataError(f"{target.parent} has the results of {before}: delete it, or set RESULTS to another folder.")
    preset = PRESETS[layout]
    content = {"extends": f"{preset}_frozen", "name": "photos", "data": {"dataset": layout, "root": str(folder)}}
    shipped = load_experiment(preset)
    own = folder.name == preset or folder == resolve(os.environ.get(f"KRT_{preset.upper()}") or "nowhere")
    if own and set(shipped.data.classes) <= set(classes):
        chosen, increment = shipped.data.classes or classes, shipped.protocol.increment
    else:
        chosen = [name for name, few in zip(classes, labels.min(axis=0), strict=True) if few >= FEWEST]
        if len(chosen) < 2:
            raise DataError(f"{folder}: of its {len(classes)} classes under two have {FEWEST} images in each half.")
        increment = math.ceil(len(chosen) / SESSIONS)
        content["data"]["classes"] = chosen
        content["protocol"] = {"base": 0, "increment": increment}
        content["krt"] = {"mean_labels": round(float(labels[0].sum() / images[0]), 2)}
    atomic_write(target, yaml.safe_dump(content, sort_keys=False))
    left = [name for name in classes if name not in chosen]
    return (
        f"{folder}: {layout} layout, {images[0]} training and {images[1]} test images, {len(chosen)} classes in "
        f"{math.ceil(len(chosen) / increment)} sessions"
        + (f" (too few images: {', '.join(left[:8])}{', ...' * (len(left) > 8)})" if left else "")
        + f"; about {max(2, round(SECONDS * sum(images) / 60))} minutes on two cores"
    )


def _opened(folder: Path) -> tuple[str, tuple[str, ...], np.ndarray, tuple[int, int]]:
    """Layout, classes, images of each class in the training and the test half (2, C), and images of each half."""
    layout = layout_of(folder)
    train, test = open_both(Data(dataset=layout, root=str(folder)))
    counts = np.stack([half.labels.sum(axis=0) for half in (train, test)])
    return layout, train.classes, counts, (len(train), len(test))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
