"""PASCAL VOC layout: ``ImageSets/Main/<split>.txt``, ``Annotations/*.xml``, ``JPEGImages/*.jpg``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean
from .dataset import MultiLabelDataset

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = {"train": ("trainval", "train"), "test": ("test", "val")}


@dataclass(frozen=True)
class Source:
    root: Path
    id_list: Path

    @property
    def files(self) -> list[Path]:
        return [self.id_list, self.root / "Annotations"]


def locate(root: Path, split: str) -> Source:
    """Find the VOC folder (``root`` itself or ``VOCdevkit/VOC2007`` below it) and the id list of a split."""
    bases = [root, root / "VOCdevkit" / "VOC2007", root / "VOC2007"]
    base = next((b for b in bases if (b / "ImageSets" / "Main").is_dir()), None)
    if base is None:
        raise DataError(f"{root} is no VOC folder: it has no ImageSets/Main, nor has VOCdevkit/VOC2007 below it.")
    lists = [base / "ImageSets" / "Main" / f"{name}.txt" for name in SPLITS[split]]
    id_list = next((path for path in lists if path.is_file()), None)
    if id_list is None:
        raise DataError(
            f"{base} has no {split} list: looked for {' or '.join(p.name for p in lists)} in ImageSets/Main."
        )
    for folder in ("Annotations", "JPEGImages"):
        if not (base / folder).is_dir():
            raise DataError(f"{base} has no folder {folder}.")
    return Source(base, id_list)


def read(source: Source, name: str, split: str) -> MultiLabelDataset:
    """Read every XML of the split, in the order of its list.

    Objects marked difficult are no label. ``voc2007`` has its fixed 20 classes, any other folder the sorted names that
    its train and test annotations hold. Images without a label stay (they take no part in a session). Raises DataError
    naming the file for a missing or broken annotation, an unknown class and an empty list.
    """
    ids = [line.split()[0] for line in source.id_list.read_text().splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{source.id_list} is empty.")
    if len(set(ids)) != len(ids):
        raise DataError(f"{source.id_list} lists {len(ids) - len(set(ids))} images twice.")
    annotations = [_objects(source.root / "Annotations" / f"{image_id}.xml") for image_id in ids]
    classes = VOC_CLASSES if name == "voc2007" else _all_classes(source, annotations)
    labels = np.zeros((len(ids), len(classes)), dtype=bool)
    found, difficult_only = [], 0
    for row, (image_id, objects) in enumerate(zip(ids, annotations, strict=True)):
        for label, difficult, box in objects:
            if label not in classes:
                path = source.root / "Annotations" / f"{image_id}.xml"
                raise DataError(
                    f"{path}: class {label!r} is none of the {len(classes)} of {name}.{did_you_mean(label, classes)}"
                )
            if not difficult:
                labels[row, classes.index(label)] = True
                if box:
                    found.append((row, classes.index(label), *box))
        difficult_only += bool(objects) and not labels[row].any()
    if not labels.any():
        raise DataError(f"{source.root}: no image of {source.id_list.name} has a label.")
    notes = (f"{difficult_only} images hold difficult objects only and have no label",) if difficult_only else ()
    boxes = np.array(found, dtype=np.float32).reshape(-1, 6)
    paths = np.array([f"JPEGImages/{image_id}.jpg" for image_id in ids])
    return MultiLabelDataset(name, split, source.root, np.array(ids), paths, labels, classes, boxes, notes)


def _all_classes(source: Source, annotations: list) -> tuple[str, ...]:
    """Names of the whole folder, so that train and test agree even if one half lacks a class."""
    listed = {label for objects in annotations for label, _, _ in objects}
    for id_list in sorted(source.id_list.parent.glob("*.txt")):
        if id_list != source.id_list and id_list.stem in sum(SPLITS.values(), ()):
            for line in id_list.read_text().splitlines():
                path = source.root / "Annotations" / f"{line.split()[0]}.xml" if line.strip() else None
                if path is not None and path.is_file():
                    listed.update(label for label, _, _ in _objects(path))
    return tuple(sorted(listed))


def _objects(path: Path) -> list[tuple[str, bool, tuple[float, float, float, float] | None]]:
    """(name, difficult, box as shares of the image or None) of each object of one XML."""
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path} is missing, though the image list names it.") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not readable XML: {error}.") from None
    width, height = (float(tree.findtext(f"size/{key}") or 0) for key in ("width", "height"))
    objects = []
    for node in tree.iter("object"):
        box = None
        corners = [node.findtext(f"bndbox/{key}") or "" for key in ("xmin", "ymin", "xmax", "ymax")]
        if width and height and all(corners):
            left, top, right, bottom = map(float, corners)
            box = (left / width, top / height, (right - left) / width, (bottom - top) / height)
        objects.append(((node.findtext("name") or "").strip(), (node.findtext("difficult") or "0").strip() == "1", box))
    return objects
