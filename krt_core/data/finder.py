"""Where an image is that annotations name in the way of another machine."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

EXTENSIONS = (
    "jpg", "jpeg", "jpe", "jfif", "png", "bmp", "tif", "tiff", "webp", "gif", "avif", "jp2", "ppm", "pgm",
)  # fmt: skip
Parts = tuple[str, ...]
MOST = 10_000  # folders of ``far`` that are looked into: it may be a whole disk


class Finder:
    """Looks images up below ``root``, each folder listed once.

    bases: folders in which names are meant, the likeliest first. listed: takes the time of each folder looked into (-1:
    not there); while they are unchanged, so is what was found. far: the folder of which all is looked through where a
    name says too little; empty: none, None: the first base, unless it is the root.
    """

    def __init__(self, root: Path, bases: list[Path], listed: dict[str, int], far: str | None = None):
        self.root, self.bases, self.listed = str(root), [str(base) for base in bases], listed
        self.far = far
        self.lost: list[str] = []  # images that are not there
        self.guessed: list[str] = []  # found in another spelling (case, Unicode form, extension) or a folder below
        self.outside: list[str] = []  # found outside of the root
        self._exact: dict[str, dict[str, str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}
        self._deep: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        """The path of the image that annotations call ``name``, relative to the root where it lies below it; None
        where it is not there, or where several could be meant."""
        readings = list(spellings(name))
        for exact in (True, False):
            for path in self._places(name, readings, exact):
                if not exact:
                    self.guessed.append(f"{self._below(path)} for {name}")
                return self._below(path)
        if deeper := self._deeper(readings):
            self.guessed.append(f"{self._below(deeper)} for {name}")
            return self._below(deeper)
        return None

    def prefer(self, names: list[str]) -> int:
        """Put the base that holds most of these names first; returns how many it holds."""
        hits = [sum(self._holds(base, name) for name in names) for base in self.bases]
        self.bases.insert(0, self.bases.pop(hits.index(max(hits))))
        return max(hits)

    def notes(self, images: int) -> list[str]:
        """What a user should know of the places of images."""
        notes = []
        if self.lost:
            notes.append(f"{len(self.lost)} of {images} images are not there, the first is {self.root}/{self.lost[0]}")
        if self.guessed:
            notes.append(f"{len(self.guessed)} images are called otherwise than the annotations say: {self.guessed[0]}")
        if self.outside:
            notes.append(f"{len(self.outside)} images are outside of {self.root}, as {self.outside[0]}")
        return notes

    def missing(self, name: str) -> str:
        """The path at which an image that is not there was looked for first."""
        parts = [part for part in next(spellings(name), (name,)) if part not in ("..", ".") and ":" not in part]
        return self._below(os.path.normpath("/".join([self.bases[0], *parts])))

    def among(self, base: str, stem: str) -> list[str]:
        """Images of a folder that are called ``stem``, whatever their extension."""
        names = self._fold(base).get(spelling(stem), [])
        return [name for name in names if os.path.splitext(name)[0] == stem] or names

    def has(self, base: str, name: str) -> bool:
        return name in self._names(base)

    def _holds(self, base: str, name: str) -> bool:
        for parts in spellings(name):
            for tail in (parts, parts[-1:]):
                if tail[-1] in self._names(os.path.normpath("/".join([base, *tail[:-1]]))):
                    return True
        return False

    def _places(self, name: str, readings: list[Parts], exact: bool) -> Iterator[str]:
        if os.path.isabs(name) and exact and os.path.basename(name) in self._names(os.path.dirname(name)):
            yield os.path.normpath(name)
        for parts in readings:
            for start in range(len(parts)):  # the whole name first, then without the folders of another machine
                if start and parts[start] == "..":
                    continue
                for base in self.bases:
                    folder = os.path.normpath("/".join([base, *parts[start:-1]]))
                    if exact and parts[-1] in self._names(folder):
                        yield f"{folder}/{parts[-1]}"
                    elif not exact and (alike := self._alike(folder, parts[-1])):
                        yield f"{folder}/{alike}"

    def _alike(self, folder: str, name: str) -> str | None:
        """The one name of a folder that differs from ``name`` in case, Unicode form or extension alone."""
        stem, extension = os.path.splitext(name)
        names = self._fold(folder).get(spelling(stem if _is_image(extension) else name), [])
        same = [other for other in names if spelling(other) == spelling(name)]
        return same[0] if len(same) == 1 else names[0] if len(names) == 1 else None

    def _deeper(self, readings: list[Parts]) -> str | None:
        """The one file of this name in folders far below."""
        if self._deep is None:
            self._deep = {}
            first = self.bases[0] if self.bases[0] != self.root else ""
            top, most = (first, None) if self.far is None else (self.far, MOST)
            for folder, _, _ in itertools.islice(os.walk(top), most):
                for name in self._names(folder):
                    self._deep.setdefault(name, []).append(f"{folder}/{name}")
        found = {path for parts in readings for path in self._deep.get(parts[-1], [])}
        return found.pop() if len(found) == 1 else None

    def _below(self, path: str) -> str:
        if path.startswith(f"{self.root}/"):
            return path[len(self.root) + 1 :]
        self.outside.append(path)
        return path

    def _names(self, folder: str) -> dict[str, str]:
        """Names of the files of a folder."""
        if folder not in self._exact:
            names: dict[str, str] = {}
            self.listed[folder] = folder_time(folder)
            try:
                with os.scandir(folder) as entries:
                    names = {entry.name: entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                pass
            self._exact[folder] = names
        return self._exact[folder]

    def _fold(self, folder: str) -> dict[str, list[str]]:
        """Images of a folder by their folded stem."""
        if folder not in self._folded:
            folded: dict[str, list[str]] = {}
            for name in self._names(folder):
                stem, extension = os.path.splitext(name)
                if _is_image(extension):
                    folded.setdefault(spelling(stem), []).append(name)
            self._folded[folder] = folded
        return self._folded[folder]


def spellings(name: str) -> Iterator[Parts]:
    """The parts of a name as it stands, with backslashes as separators, without %-codes, and as an address."""
    told: dict[Parts, None] = {}
    path, _, query = name.partition("?")
    values = [value for one in query.split("&") if (value := one.partition("=")[2])]  # ?d=folder/image.png
    for text in (name, *values, path) if query else (name,):
        for reading in (text, text.replace("\\", "/"), unquote(text.replace("\\", "/"))):
            parts = tuple(part for part in reading.split("/") if part not in ("", "."))
            if parts and parts[-1] != "..":
                told[parts] = None
    yield from told


def same_image(one: str, other: str) -> bool:
    """Can two names of annotations mean one image: does one end as the other does?"""
    pairs = ((p, q, min(len(p), len(q))) for p in spellings(one) for q in spellings(other))
    return any(p[-n:] == q[-n:] for p, q, n in pairs)


def folder_time(folder: str) -> int:
    """When names of a folder last changed, nanoseconds; -1 if there is none."""
    try:
        return os.stat(folder).st_mtime_ns
    except (OSError, ValueError):
        return -1


def _is_image(extension: str) -> bool:
    return extension[1:].lower() in EXTENSIONS


def spelling(name: str) -> str:
    """What names have in common that differ in case or Unicode form alone."""
    return unicodedata.normalize("NFC", name).casefold()
