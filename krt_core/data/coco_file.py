"""One COCO JSON, of whatever tool, as lists of images, categories and annotations with ids that can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .finder import spellings
from .text import class_name, decode, flag, number, read_bytes

Entry = dict[str, Any]
Id = int | str
NAMES = ("file_name", "filename", "coco_url", "path", "url")  # of an image, the first that is there
BOXES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


@dataclass(frozen=True)
class CocoFile:
    """images: id → entry with ``file_name``; classes: id of a category → name; annotations as they stand."""

    path: Path
    images: dict[Id, Entry]
    classes: dict[Id, str]
    annotations: list[Entry]
    notes: list[str]


def parse(path: Path) -> CocoFile:
    """Read a file. Raises DataError, naming it and the entry, for what is no COCO file or can be read in two ways."""
    try:
        content = json.loads(decode(read_bytes(path), path), object_pairs_hook=_once)
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{path} is not a COCO annotation file ({type(error).__name__}: {error}).") from None
    if not isinstance(content, dict):
        kind = "a list, as of detections" if isinstance(content, list) else repr(content)[:40]
        raise DataError(f"{path} is not a COCO annotation file: it holds {kind}, not images, categories, annotations.")
    notes: list[str] = []
    images, categories = (_entries(content, section, path) for section in ("images", "categories"))
    if not categories or not images:
        raise DataError(f"{path} lists {len(categories)} categories and {len(images)} images: nothing to learn.")
    annotations = _entries(content, "annotations", path)
    return CocoFile(path, _images(images, path, notes), _classes(categories, path, notes), annotations, notes)


def identity(value: Any, what: str, path: Path) -> Id:
    """An id, so that 7, 7.0 and "7" are one. DataError for anything but a number or text."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text
    raise DataError(f"{path}: {what} must be a number or text, found {json.dumps(value)[:60]}.")


def box_of(annotation: Entry) -> tuple[float, float, float, float] | None:
    """x, y, width and height in pixels; None where they cannot be read. No label hangs on it."""
    box = annotation.get("bbox")
    if isinstance(box, dict):
        box = next(([box[key] for key in keys] for keys in BOXES if all(key in box for key in keys)), None)
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return None
    x, y, w, h = (number(value) for value in box)
    return None if x is None or y is None or w is None or h is None else (x, y, w, h)


def is_crowd(annotation: Entry, where: str) -> bool:
    crowd = annotation.get("iscrowd")
    return bool(crowd) if type(crowd) is int and crowd in (0, 1) else flag(crowd, f"{where}: iscrowd")


def _once(pairs: list[tuple[str, Any]]) -> Entry:
    """An object of the JSON. Of two sections of one name the parser would keep the last."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        if twice := [n for n in ("images", "annotations", "categories") if names.count(n) > 1]:
            raise ValueError(f"it has {twice[0]!r} twice: merge the two")
    return made


def _entries(content: Entry, section: str, path: Path) -> list[Entry]:
    """A section as a list; in files where it is an object, its keys are the ids."""
    found = content.get(section)
    if found is None and section == "annotations":
        return []
    if found is None:
        has = ", ".join(map(repr, list(content)[:8])) or "nothing"
        raise DataError(f"{path} has no {section!r} (it has {has}): it is not a COCO file with labels.")
    if isinstance(found, dict):
        found = [{"id": key, **entry} if isinstance(entry, dict) else entry for key, entry in found.items()]
    if not isinstance(found, list):
        raise DataError(f"{path}: {section!r} must be a list, found {json.dumps(found)[:60]}.")
    for place, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {section}[{place}] must be an object, found {json.dumps(entry)[:60]}.")
    return found


def _images(entries: list[Entry], path: Path, notes: list[str]) -> dict[Id, Entry]:
    images: dict[Id, Entry] = {}
    repeated = 0
    for place, entry in enumerate(entries):
        number_of = identity(entry.get("id"), f"the id of images[{place}]", path)
        name = next((entry[key] for key in NAMES if entry.get(key)), None)
        if not isinstance(name, str) or not any(spellings(name.strip())):
            raise DataError(f"{path}: image {entry['id']} has no file_name (nor coco_url), found {name!r}.")
        entry["file_name"] = name.strip()
        before = images.setdefault(number_of, entry)
        if before is not entry:
            repeated += 1
            if before["file_name"] != entry["file_name"]:
                raise DataError(
                    f"{path}: the images {before['file_name']} and {entry['file_name']} have the id {entry['id']}; "
                    "its annotations could be of either. Number the images anew, as when files were merged."
                )
    if repeated:
        notes.append(f"{repeated} images are listed again with the same id and name")
    return images


def _classes(entries: Iterable[Entry], path: Path, notes: list[str]) -> dict[Id, str]:
    classes: dict[Id, str] = {}
    for place, entry in enumerate(entries):
        number_of = identity(entry.get("id"), f"the id of categories[{place}]", path)
        name = class_name(entry.get("name"), f"{path}: category {entry['id']}")
        if classes.setdefault(number_of, name) != name:
            raise DataError(
                f"{path}: the categories {classes[number_of]!r} and {name!r} both have the id {entry['id']}, and its "
                "annotations could mean either. Number the categories anew, as when files were merged."
            )
    names = list(classes.values())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        notes.append(f"several categories are called {', '.join(map(repr, twice))} and are learned as one class")
    return classes
