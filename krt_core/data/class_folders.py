"""A folder of folders: each is called as a class is, and holds the images that show it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError
from .dataset import MultiLabelDataset, Split
from .finder import EXTENSIONS, folder_time
from .overlap import first_alike
from .table_columns import HALVES, Said
from .table_split import chosen, doubles, settled
from .text import class_name

WAY_OUT = "Write a table, such as path,tags, or put the images of each class into a folder of its own."
IGNORED = (
    "__MACOSX",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
)  # and what begins with .


@dataclass(frozen=True)
class ClassFolders:
    """images: (path relative to the root, class, half). Half: "train", "val", "test", or "" where nothing says it."""

    root: Path
    said: Said
    images: list[tuple[str, str, str]]
    notes: tuple[str, ...]
    folders: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> Iterator[Path]:
        """Every image: files of one content are one image."""
        return (self.root / path for path, _, _ in self.images)

    @property
    def options(self) -> str:
        return repr(self.said)

    def read(self, name: str, split: Split) -> MultiLabelDataset:
        """Read a half. Files of one content, in one folder or in several, are one image with the labels of them all."""
        classes = tuple(sorted({label for _, label, _ in self.images}))
        halves, notes = settled([half for _, _, half in self.images])
        mine = [
            (path, label, half)
            for (path, label, _), half in zip(self.images, halves, strict=True)
            if half in ("", split)
        ]
        if not mine:
            raise DataError(f"{self.root} has no folder of {split} images.")
        first = first_alike([self.root / path for path, _, _ in mine])
        rows = np.unique(first)
        place = np.searchsorted(rows, first)
        labels = np.zeros((len(rows), len(classes)), bool)
        labels[place, [classes.index(label) for _, label, _ in mine]] = True
        if copies := len(mine) - len(rows):
            several = int((labels.sum(axis=1) > 1).sum())
            notes.append(
                f"{copies} files are copies of others: each content is one image ({several} show several classes)"
            )
        paths = np.array([mine[row][0] for row in rows])
        of, about = chosen(paths, labels, classes, [mine[row][2] for row in rows], self.said, split, str(self.root))
        told = (*self.notes, *doubles(classes), *notes, *about)
        return MultiLabelDataset(
            name, split, self.root, paths[of], paths[of], labels[of], classes, notes=told, source=str(self.root)
        )


def class_folders(root: Path, said: Said) -> ClassFolders | None:
    """The folders of classes in ``root``, or in its train/ and test/; None where there are none. DataError where
    folders are hardly meant as classes; ConfigError for keys that are of tables."""
    halves = {path: HALVES[path.name.lower()] for path in _folders(root) if path.name.lower() in HALVES}
    halves = {path: half for path, half in halves.items() if any(holds_images(one) for one in _folders(path))}
    if "train" not in halves.values():
        halves = {}
    listed: dict[str, int] = {}
    images: list[tuple[str, str, str]] = []
    others: list[str] = []
    for top, half in (halves or {root: ""}).items():
        listed[str(top)] = folder_time(str(top))
        others += [str(path.relative_to(root)) for path in _files(top)]
        for folder in _folders(top):
            found = list(_below(folder, root, listed, others))
            label = class_name(folder.name, f"{folder}: a class") if found else ""
            images += [(path, label, half if len(set(halves.values())) > 1 else "") for path in found]
            others += [] if found else [f"{folder.relative_to(root)}/"]
    if not images:
        return None
    others += [f"{path.name}/" for path in _folders(root) if path not in halves] if halves else []
    if keys := [f"data.{key}" for key in ("paths", "tags", "separator", "split") if getattr(said, key)]:
        raise ConfigError(
            f"{' and '.join(keys)} say how to read a table, and {root} has none: its folders are classes."
        )
    classes = {label for _, label, _ in images}
    if len(classes) < 2:
        (only,) = classes
        inner = [path for top in halves or (root,) for path in _folders(top / only) if holds_images(path)]
        hint = f"Are the classes in it? Then set data.root to {inner[0].parent}." if inner else WAY_OUT
        raise DataError(f"{root} has no table, and one folder of images alone ({only}), which is one class. {hint}")
    if all(label.lower().rstrip("0123456789-_ ") in HALVES for label in classes):
        raise DataError(
            f"{root} has no annotations, and its folders ({', '.join(sorted(classes))}) are called as halves of a data "
            f"set are, not as classes. {WAY_OUT}"
        )
    notes = [f"folders are classes: {len(classes)} of them"]
    if others:
        shown = ", ".join(sorted(others)[:4])
        notes.append(f"{len(others)} files or folders are no images of a class and are left out, as {shown}")
    return ClassFolders(root, said, images, tuple(notes), listed)


def holds_images(folder: Path) -> bool:
    """Is there an image in a folder, or below it?"""
    return any(name.rpartition(".")[2].lower() in EXTENSIONS for _, _, names in os.walk(folder) for name in names)


def _below(folder: Path, root: Path, listed: dict[str, int], others: list[str]) -> Iterator[str]:
    """Paths of the images of a folder and of all below it, relative to the root."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        listed[top] = folder_time(top)
        inner = Path(top).relative_to(root).as_posix()
        for name in sorted(names):
            path = f"{inner}/{name}"
            if "." in name and name.rpartition(".")[2].lower() in EXTENSIONS and not _hidden(name):
                yield path
            elif not _hidden(name):
                others.append(path)


def _folders(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if not _hidden(path.name) and path.is_dir())


def _files(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if not _hidden(path.name) and path.is_file())


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in IGNORED
