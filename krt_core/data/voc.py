"""PASCAL VOC layout: ``ImageSets/Main/<split>.txt``, ``Annotations/*.xml``, ``JPEGImages/*.jpg``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean
from .dataset import MultiLabelDataset, Split
from .finder import EXTENSIONS, Finder
from .text import decode, read_bytes
from .voc_xml import Annotated, read_xml

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Lists of training and test, the first pair that is there. VOC 2012 has no test list: its halves are train and val.
PAIRS = (("trainval", "test"), ("train", "test"), ("train", "val"), ("trainval", "val"))
LISTS = ("trainval", "train", "test", "val")


@dataclass(frozen=True)
class Source:
    """ids: of the split, in the order of its list. others: of the folder's other lists, whose class names count."""

    root: Path
    id_list: Path
    ids: tuple[str, ...]
    others: tuple[str, ...]
    lists: tuple[Path, ...]
    notes: tuple[str, ...]
    folders: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> Iterator[Path]:
        """The lists and every XML that they name."""
        yield from self.lists
        yield from (self.xml(image_id) for image_id in (*self.ids, *self.others))

    def xml(self, image_id: str) -> Path:
        return self.root / "Annotations" / f"{image_id}.xml"


def locate(root: Path, split: Split, name: str = "voc") -> Source:
    """Find the VOC folder (``root`` itself or one like ``VOCdevkit/VOC2007`` below it) and the id list of a split."""
    base = _base(root, name)
    for folder in ("Annotations", "JPEGImages"):
        if not (base / folder).is_dir():
            raise DataError(f"{base} has no folder {folder}.")
    lists = {one: path for one in LISTS if (path := base / "ImageSets" / "Main" / f"{one}.txt").is_file()}
    pair = _pair(base, split, PAIRS[:1] if name == "voc2007" else PAIRS, lists)
    xmls = frozenset(os.listdir(base / "Annotations"))
    id_list = lists.pop(pair[split == "test"])
    ids = read_list(id_list, xmls)
    if not ids:
        raise DataError(f"{id_list} is empty.")
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{id_list} lists {len(ids) - len(set(ids))} images twice, such as {twice[0]}.")
    others: dict[str, None] = {}
    if name != "voc2007":
        others = dict.fromkeys(one for path in lists.values() for one in read_list(path, xmls) if f"{one}.xml" in xmls)
    notes = (f"{pair[0]}.txt is for training and {pair[1]}.txt for tests",) if pair != PAIRS[0] else ()
    return Source(base, id_list, tuple(ids), tuple(sorted(others.keys() - set(ids))), (id_list, *lists.values()), notes)


def _pair(base: Path, split: Split, pairs: tuple[tuple[str, str], ...], there: Collection[str]) -> tuple[str, str]:
    """Which lists are training and test: the first pair that is there, else the first with the half that is wanted."""
    which = split == "test"
    fitting = [pair for pair in pairs if pair[which] in there]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(f"{pair[which]}.txt" for pair in pairs))
        has = f" It has {', '.join(f'{one}.txt' for one in there)}." if there else ""
        raise DataError(f"{base} has no {split} list: looked for {wanted} in ImageSets/Main.{has}")
    return next((pair for pair in fitting if pair[not which] in there), fitting[0])


def _base(root: Path, name: str) -> Path:
    year = "2007" if name == "voc2007" else "*"
    bases = [root, *sorted(root.glob(f"VOCdevkit/VOC{year}")), *sorted(root.glob(f"VOC{year}"))]
    found = [base for base in bases if (base / "ImageSets" / "Main").is_dir()]
    if not found:
        raise DataError(f"{root} is no VOC folder: it has no ImageSets/Main, nor has VOCdevkit/VOC2007 below it.")
    if len(found) > 1 and found[0] != root:
        raise DataError(f"{root} has several VOC folders: set data.root to one of {', '.join(map(str, found))}.")
    return found[0]


def read_list(path: Path, xmls: frozenset[str]) -> list[str]:
    """The image ids of a list: names with or without blanks, extension, folder, or a column of 1 and -1 behind them;
    one a line, or several with blanks or commas between them."""

    def fits(text: str) -> bool:
        return all(f"{one}.xml" in xmls for line in text.splitlines() for one in _image_ids(line, xmls))

    text = decode(read_bytes(path), path, fits=fits)
    return [one for line in text.splitlines() for one in _image_ids(line, xmls)]


def _image_ids(line: str, xmls: frozenset[str]) -> list[str]:
    """Whichever reading of a line has annotations: the whole line, or its words; the line where none has."""
    line = line.strip().replace("\\", "/")
    without = re.sub(r"[\s,;]+[-+]?[01]$", "", line)
    words = [word for word in re.split(r"[\s,;\"']+", line) if word]
    of_words = {word: found for word in words if (found := _annotated(word, xmls))}
    whole = [found for reading in (line, without) if (found := _annotated(reading, xmls))]
    if len(set(of_words.values())) > 1 and not any(f"{reading}.xml" in xmls for reading in (line, without)):
        return list(dict.fromkeys(of_words.get(word, word) for word in words))
    return (whole or [*of_words.values(), without.lstrip("/")])[:1] if line else []


def _annotated(name: str, xmls: frozenset[str]) -> str:
    """The image id that a name with folder and extension stands for; empty where it has no annotation."""
    for one in (name, name.rsplit("/", 1)[-1]):
        stem, extension = os.path.splitext(one)
        for image_id in (one, stem) if extension[1:].lower() in (*EXTENSIONS, "xml") else (one,):
            if f"{image_id}.xml" in xmls:
                return image_id
    return ""


def read(source: Source, name: str, split: Split) -> MultiLabelDataset:
    """Read every XML of the split, in the order of its list.

    Objects marked difficult are no label. ``voc2007`` has its fixed 20 classes, any other folder the sorted names that
    its train and test annotations hold. Images without a label stay (they take no part in a session). No label hangs on
    a box. Raises DataError naming the file for a missing or broken annotation, an unknown class and an empty list.
    """
    annotations = [read_xml(source.xml(image_id)) for image_id in source.ids]
    classes = VOC_CLASSES if name == "voc2007" else _all_classes(source, annotations)
    column = {called: i for i, called in enumerate(classes)}
    labels = np.zeros((len(source.ids), len(classes)), dtype=bool)
    found, difficult_only = [], 0
    for row, (image_id, annotated) in enumerate(zip(source.ids, annotations, strict=True)):
        for label, difficult, box in annotated.objects:
            if label not in column:
                raise DataError(
                    f"{source.xml(image_id)}: class {label!r} is none of the {len(classes)} of {name}."
                    f"{did_you_mean(label, classes)}"
                )
            if not difficult:
                labels[row, column[label]] = True
                if box:
                    found.append((row, column[label], *box))
        difficult_only += bool(annotated.objects) and not labels[row].any()
    if not labels.any():
        count = sum(len(annotated.objects) for annotated in annotations)
        reason = f"all {count} objects are marked difficult, which is no label" if count else "no XML has an object"
        raise DataError(f"{source.root}: no image of {source.id_list.name} has a label, as {reason}.")
    notes = list(source.notes)
    if difficult_only:
        notes.append(f"{difficult_only} images hold difficult objects only and have no label")
    if unreadable := sum(annotated.unreadable for annotated in annotations):
        notes.append(f"{unreadable} objects have a bndbox or an image size that cannot be read; their labels count")
    paths, about = _paths(source, annotations)
    boxes = np.array(found, dtype=np.float32).reshape(-1, 6)
    return MultiLabelDataset(
        name, split, source.root, np.array(source.ids), paths, labels, classes, boxes, (*notes, *about),
        str(source.id_list),
    )  # fmt: skip


def _all_classes(source: Source, annotations: list[Annotated]) -> tuple[str, ...]:
    """Names of the whole folder, so that train and test agree even if one half lacks a class."""
    others = (read_xml(source.xml(image_id)) for image_id in source.others)
    return tuple(sorted({label for found in (*annotations, *others) for label, _, _ in found.objects}))


def _paths(source: Source, annotations: list[Annotated]) -> tuple[np.ndarray, list[str]]:
    """The file of each image: called as its annotation is, whatever its extension, else as that says."""
    folder, paths = "JPEGImages", []
    images = source.root / folder
    finder = Finder(source.root, [images], source.folders)
    for image_id, annotated in zip(source.ids, annotations, strict=True):
        named = annotated.filename.replace("\\", "/").rsplit("/", 1)[-1]
        alike = finder.among(str(images), image_id)
        if os.path.splitext(named)[0] == image_id and named in alike:
            paths.append(f"{folder}/{named}")
        elif f"{image_id}.jpg" in alike or len(alike) == 1:
            paths.append(f"{folder}/{image_id}.jpg" if f"{image_id}.jpg" in alike else f"{folder}/{alike[0]}")
        elif alike:
            raise DataError(
                f"{images} has {' and '.join(sorted(alike))}: remove one, or name it in {source.xml(image_id)}."
            )
        elif found := named and finder.find(named):
            paths.append(found)
        else:
            finder.lost.append(f"{folder}/{image_id}.jpg")
            paths.append(finder.lost[-1])
    first: dict[str, str] = {}
    for image_id, path in zip(source.ids, paths, strict=True):
        if first.setdefault(path, image_id) != image_id:
            raise DataError(
                f"{source.xml(image_id)}: {image_id} and {first[path]} would both be read from {source.root / path}. "
                "Put each image into JPEGImages, called as its annotation is."
            )
    return np.array(paths), finder.notes(len(paths))
