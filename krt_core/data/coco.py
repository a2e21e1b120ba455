"""COCO-format annotations: COCO 2014 itself, the digits, or any folder with such a JSON per split."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .dataset import MultiLabelDataset

# split → (annotation files to look for, image folders to look for), first match wins
LAYOUT = {
    "train": (("instances_train2014.json", "train.json"), ("train2014", "images/train2014", "train", "images")),
    "test": (
        ("instances_val2014.json", "test.json", "val.json"),
        ("val2014", "images/val2014", "test", "val", "images"),
    ),
}


@dataclass(frozen=True)
class Source:
    root: Path
    annotations: Path
    images: Path

    @property
    def files(self) -> list[Path]:
        return [self.annotations]


def locate(root: Path, split: str) -> Source:
    """Find the annotation file (in ``root`` or ``root/annotations``) and the image folder of a split."""
    names, folders = LAYOUT[split]
    candidates = [root / sub / name for name in names for sub in ("annotations", "")]
    annotations = next((c for c in candidates if c.is_file()), None)
    if annotations is None:
        raise DataError(
            f"{root} has no {split} annotations: looked for {' or '.join(names)} there and in annotations/."
        )
    images = next((root / f for f in folders if (root / f).is_dir()), None)
    if images is None:
        raise DataError(f"{root} has no folder of {split} images: looked for {', '.join(folders)}.")
    return Source(root, annotations, images)


def parse(annotations: Path) -> Any:
    """The file as pycocotools' COCO; raises DataError naming it for broken JSON."""
    from pycocotools.coco import COCO

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            return COCO(str(annotations))
    except (json.JSONDecodeError, UnicodeDecodeError, AssertionError, KeyError) as error:
        raise DataError(f"{annotations} is not a COCO annotation file ({type(error).__name__}: {error}).") from None


def read(source: Source, name: str, split: str) -> MultiLabelDataset:
    """Read one JSON through pycocotools.

    Classes are sorted by name. A crowd annotation is no label: the published session sizes count images with a
    non-crowd annotation only. Images left without a label are dropped; both counts are kept in ``notes``.
    Raises DataError naming the file for broken JSON, unknown categories or images, and for a set without labels.
    """
    coco = parse(source.annotations)
    categories = sorted(coco.cats.values(), key=lambda category: category["name"])
    classes = tuple(category["name"] for category in categories)
    if not classes or not coco.imgs:
        raise DataError(
            f"{source.annotations} lists {len(classes)} categories and {len(coco.imgs)} images: nothing to learn."
        )
    column = {category["id"]: i for i, category in enumerate(categories)}
    images = sorted(coco.imgs.values(), key=lambda image: image["id"])
    row = {image["id"]: i for i, image in enumerate(images)}
    labels = np.zeros((len(images), len(classes)), dtype=bool)
    crowd = np.zeros_like(labels)
    found = []
    for annotation in coco.anns.values():
        try:
            r, c = row[annotation["image_id"]], column[annotation["category_id"]]
        except KeyError as error:
            raise DataError(
                f"{source.annotations}: annotation {annotation.get('id')} names an unknown image or category ({error})."
            ) from None
        if annotation.get("iscrowd"):
            crowd[r, c] = True
            continue
        labels[r, c] = True
        image, box = images[r], annotation.get("bbox")
        if box and image.get("width") and image.get("height"):
            w, h = image["width"], image["height"]
            found.append((r, c, box[0] / w, box[1] / h, box[2] / w, box[3] / h))
    keep = labels.any(axis=1)
    notes = []
    if crowd.any():
        notes.append(f"{int((crowd & ~labels).sum())} image-class pairs have crowd annotations only and are no label")
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(images)} images have no label and are left out")
    if not keep.any():
        raise DataError(f"{source.annotations}: no image has a label.")
    new_row = np.cumsum(keep) - 1
    boxes = np.array(found, dtype=np.float32).reshape(-1, 6)
    if len(boxes):
        boxes[:, 0] = new_row[boxes[:, 0].astype(int)]
    folder = source.images.relative_to(source.root)
    ids = np.array([str(image["id"]) for image in images])
    paths = np.array([str(folder / image["file_name"]) for image in images])
    return MultiLabelDataset(
        name, split, source.root, ids[keep], paths[keep], labels[keep], classes, boxes, tuple(notes)
    )
