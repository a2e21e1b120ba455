"""COCO-format annotations: COCO itself, the digits, or any folder with such a JSON per split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError
from .coco_file import CocoFile, Entry, Id, box_of, identity, is_crowd, parse
from .dataset import MultiLabelDataset, Split
from .finder import Finder, same_image
from .text import number

# split → what its annotations and its image folder are called; the first whose annotations are there counts
WORDS = {
    "train": ("train2014", "train2017", "train"),
    "test": ("val2014", "val2017", "test", "val", "valid", "validation"),
}
FILES = ("annotations/{}", "{}", "annotations/instances_{}", "instances_{}", "annotations/lvis_v1_{}", "lvis_v1_{}",
         "{}/_annotations.coco", "{0}/{0}")  # fmt: skip  # without .json
SAMPLE = 50  # images looked for to tell which folder is meant


@dataclass(frozen=True)
class Source:
    root: Path
    annotations: dict[Path, str]  # files of this half → what it is called in them; the first with labels counts
    folders: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> Iterable[Path]:
        return self.annotations


def locate(root: Path, split: Split, name: str = "coco") -> Source:
    """Find the annotation file, in ``root``, ``root/annotations`` or beside the images."""
    words = WORDS[split][:1] if name == "coco2014" else WORDS[split]
    found = {root / f"{file.format(word)}.json": word for word in words for file in FILES}
    odd = [path for path in found if path.is_symlink() or path.exists()]
    found = {path: word for path, word in found.items() if path.is_file()}
    if not found and odd:
        what = f"a link to {odd[0].readlink()}, which is not there" if odd[0].is_symlink() else "no file"
        raise DataError(f"{odd[0]} is {what}: put the {split} annotations there.")
    if not found:
        wanted = " or ".join(f"instances_{w}.json" if w[-1].isdigit() else f"{w}.json" for w in words)
        there = sorted({path.name for path in (*root.glob("*.json"), *root.glob("annotations/*.json"))})
        has = f" JSON files that are there: {', '.join(there[:8])}." if there else ""
        raise DataError(f"{root} has no {split} annotations: looked for {wanted} there and in annotations/.{has}")
    return Source(root, found)


def read(source: Source, name: str, split: Split) -> MultiLabelDataset:
    """Read the JSON of a split.

    Classes are sorted by name. A crowd annotation is no label: the published session sizes count images with a
    non-crowd annotation only. Images left without a label are dropped; both counts, and whatever was repaired, are kept
    in ``notes``. No label hangs on a box. Of an image that says which categories it was looked through for in vain
    (``neg_category_ids``, as in LVIS) all others are unknown that it has no annotation of. Raises DataError naming the
    file for broken JSON, for entries that are none, unknown categories or images, and for a set without labels.
    """
    notes: list[str] = []
    file = _labelled(source, notes)
    finder = _finder(source, file, split, notes)
    images, row_of = _rows(file, finder)
    classes = tuple(sorted(set(file.classes.values())))
    column = {number_of: classes.index(called) for number_of, called in file.classes.items()}
    labels = np.zeros((len(images), len(classes)), dtype=bool)
    crowd = np.zeros_like(labels)
    found, unreadable = [], 0
    for place, annotation in enumerate(file.annotations):
        r, c = _meant(annotation, place, file.path, row_of, column)
        if is_crowd(annotation, f"{file.path}: annotation {annotation.get('id', place)}"):
            crowd[r, c] = True
            continue
        labels[r, c] = True
        image, box = images[r], box_of(annotation)
        w, h = number(image.get("width")), number(image.get("height"))
        if box and w and h:
            found.append((r, c, box[0] / w, box[1] / h, box[2] / w, box[3] / h))
        elif annotation.get("bbox") and not box:
            unreadable += 1
    if not labels.any():
        raise DataError(_without_labels(file))
    notes += [*file.notes, *_told(finder, images, labels, crowd, unreadable)]
    keep = labels.any(axis=1)
    boxes = np.array(found, dtype=np.float32).reshape(-1, 6)
    boxes[:, 0] = (np.cumsum(keep) - 1)[boxes[:, 0].astype(int)]
    ids = np.array([str(image["id"]) for image in images])
    paths = np.array([image["file"] for image in images])
    made = MultiLabelDataset(
        name, split, source.root, ids[keep], paths[keep], labels[keep], classes, boxes, tuple(notes), str(file.path)
    )
    return made.with_unknown(_unknown(file, row_of, column, labels)[keep])


def _unknown(file: CocoFile, row_of: dict[Id, int], column: dict[Id, int], labels: np.ndarray) -> np.ndarray:
    """(n, C) classes of which an image has neither an annotation nor the word that it does not show them."""
    told, absent = np.zeros(len(labels), bool), np.zeros_like(labels)
    for number_of, image in file.images.items():
        listed = image.get("neg_category_ids")
        if listed is None:
            continue
        where = f"neg_category_ids of image {image['id']}"
        if not isinstance(listed, list):
            raise DataError(f"{file.path}: {where} must be a list, found {listed!r}.")
        told[row_of[number_of]] = True
        for one in listed:
            category = identity(one, where, file.path)
            if category not in column:
                raise DataError(f"{file.path}: {where} name an unknown category ({one!r}). List it, or leave it out.")
            absent[row_of[number_of], column[category]] = True
    return told[:, None] & ~absent & ~labels


def _labelled(source: Source, notes: list[str]) -> CocoFile:
    """The first annotation file that has annotations: a test half is often published without."""
    files = list(source.annotations)
    for path in files:
        file = parse(path)
        if file.annotations:
            break
        notes.append(f"{path.name} has no annotations")
    else:
        file = parse(files[0])
        notes.clear()
    if unread := [path.name for path in files if path != file.path and f"{path.name} has no annotations" not in notes]:
        notes.append(f"{file.path.name} is read, {', '.join(unread)} is not")
    return file


def _finder(source: Source, file: CocoFile, split: Split, notes: list[str]) -> Finder:
    """Where the images of an annotation file are: the folder that is called as it is, else one for all images."""
    root, word, words = source.root, source.annotations[file.path], WORDS[split]
    named = [root / word, root / "images" / word, root / "images"]
    others = [root / sub / other for other in words for sub in ("", "images")]
    folders = [path for path in named if path.is_dir()] or [path for path in others if path.is_dir()]
    bases = [*dict.fromkeys([*folders, file.path.parent, root])]
    finder = Finder(root, bases, source.folders)
    hits = finder.prefer([image["file_name"] for image in file.images.values()][:SAMPLE])
    if not folders and not hits:
        raise DataError(f"{root} has no folder of {split} images: looked for {', '.join(words)} there and in images/.")
    if folders and folders[0] not in named:
        notes.append(f"the images of {file.path.name} are read from {folders[0].relative_to(root)}/")
    return finder


def _rows(file: CocoFile, finder: Finder) -> tuple[list[Entry], dict[Id, int]]:
    """The images in order of their ids, each with the ``file`` it lies in; and the row of each id. An image that is
    listed under several ids has one row."""
    images: list[Entry] = []
    row_of: dict[Id, int] = {}
    rows: dict[str, int] = {}
    for number_of in sorted(file.images, key=lambda one: (isinstance(one, str), one)):
        image = file.images[number_of]
        where = finder.find(image["file_name"])
        image["file"] = where or finder.missing(image["file_name"])
        row = row_of[number_of] = rows.setdefault(image["file"], len(images))
        if row == len(images):
            images.append(image)
            if where is None:
                finder.lost.append(image["file"])
        elif not same_image(image["file_name"], images[row]["file_name"]):
            raise DataError(
                f"{file.path}: the images {images[row]['file_name']} and {image['file_name']} would both be read from "
                f"{finder.root}/{image['file']}. Put each where the annotations say."
            )
        elif len(image["file_name"]) > len(images[row]["file_name"]):
            images[row]["file_name"] = image["file_name"]  # says more of where it comes from
    if len(images) < len(row_of):
        file.notes.append(
            f"{len(row_of) - len(images)} images are listed under several ids; their labels are put together"
        )
    return images, row_of


def _meant(annotation: Entry, place: int, path: Path, rows: dict[Id, int], columns: dict[Id, int]) -> tuple[int, int]:
    """Row and column of an annotation."""
    found = []
    for key, known in (("image_id", rows), ("category_id", columns)):
        value = annotation.get(key)
        if type(value) is not int:
            value = identity(value, f"{key} of annotation {annotation.get('id', place)}", path)
        if value not in known:
            what = key.removesuffix("_id")
            raise DataError(
                f"{path}: annotation {annotation.get('id', place)} names an unknown {what} ({value!r}). List it, or "
                "remove the annotation."
            )
        found.append(known[value])
    return found[0], found[1]


def _without_labels(file: CocoFile) -> str:
    if not file.annotations:
        return f"{file.path}: no image has a label, as it holds no annotations."
    return (
        f"{file.path}: no image has a label, as all {len(file.annotations)} annotations are marked iscrowd=1. A crowd "
        "is no label; brush masks are exported so too. Export them as polygons or boxes, or set iscrowd to 0."
    )


def _told(finder: Finder, images: list[Entry], labels: np.ndarray, crowd: np.ndarray, unreadable: int) -> list[str]:
    """What reading left out, repaired and guessed, in words."""
    notes, empty = [], int((~labels.any(axis=1)).sum())
    if crowd.any():
        notes.append(f"{int((crowd & ~labels).sum())} image-class pairs have crowd annotations only and are no label")
    if empty:
        notes.append(f"{empty} of {len(images)} images have no label and are left out")
    if unreadable:
        notes.append(f"{unreadable} annotations have a bbox that cannot be read; their labels count")
    return notes + finder.notes(len(images))
