"""Tables: a CSV, TSV or Parquet with a row for each image, tags in a column or a column for each class; and folders of
folders, whose names are the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import Data
from ..errors import DataError
from .class_folders import WAY_OUT, ClassFolders, class_folders
from .dataset import MultiLabelDataset, Split
from .finder import Finder, same_image
from .table_columns import Said, columns_of, half_in, halves_of
from .table_file import PARQUET, SPREADSHEETS, TEXTS, Table, read_table
from .table_labels import Images, Part, by_columns, by_tags
from .table_split import chosen, doubles, settled

SAMPLE = 50  # images looked for to tell which folder is meant


@dataclass(frozen=True)
class Source:
    root: Path
    tables: dict[Path, str]  # table → "train", "val" or "test" where its name says so, else ""
    said: Said
    notes: tuple[str, ...] = ()
    folders: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> Iterable[Path]:
        return self.tables

    @property
    def options(self) -> str:
        """What else decides the labels."""
        return repr(self.said)


def locate(root: Path, split: Split, config: Data) -> Source | ClassFolders:
    """Find the table, or one for each half, in ``root``, which may be the table itself; or the folders of classes."""
    said = Said.by(config)
    if root.is_file():
        if root.suffix.lower() not in (*TEXTS, ".txt", *PARQUET, *SPREADSHEETS):
            raise DataError(
                f"data.root={root} is no table: a file that is one ends in {', '.join((*TEXTS, *PARQUET))}."
            )
        return Source(root.parent, {root: ""}, said)
    tables = tables_in(root)
    if len(tables) == 1:
        return Source(root, {tables[0]: ""}, said)
    if tables:
        by_name, notes = _by_name(root, tables)
        return Source(root, by_name, said, notes)
    if found := class_folders(root, said):
        return found
    odd = [path.name for path in sorted(root.iterdir()) if path.suffix.lower() in SPREADSHEETS]
    hint = f"It has {odd[0]}: save that as CSV (in Excel: CSV UTF-8)." if odd else WAY_OUT
    raise DataError(
        f"{root} has no table ({', '.join((*TEXTS, *PARQUET))}) and no folders of images, a class each. {hint}"
    )


def tables_in(root: Path) -> list[Path]:
    return sorted(
        p for p in root.iterdir() if p.suffix.lower() in (*TEXTS, *PARQUET) and p.name[0] != "." and p.is_file()
    )


def _by_name(root: Path, tables: list[Path]) -> tuple[dict[Path, str], tuple[str, ...]]:
    """Which table is of which half, and what is to be said of that."""
    halves: dict[str | None, list[Path]] = {}
    for path in tables:
        halves.setdefault(half_in(path.stem), []).append(path)
    beside = [path.name for path in halves.pop(None, [])]
    if "train" not in halves or len(halves) < 2 or any(len(paths) > 1 for paths in halves.values()):
        raise DataError(
            f"{root} has several tables: {', '.join(path.name for path in tables[:8])}. Set data.root to the one that "
            "is meant, or call one train and one test."
        )
    notes = [f"{', '.join(beside)} is not read"] if beside else []
    return {path: str(half) for half, (path,) in halves.items()}, tuple(notes)


def read(source: Source | ClassFolders, name: str, split: Split) -> MultiLabelDataset:
    """Read a half: of each image, which classes it shows, or that nobody knows.

    Classes are sorted by name. Images without a label stay (they take no part in a session). Which column is which,
    what stands between tags and which images are for tests is found where the configuration does not say it, and told
    in ``notes``. Raises DataError naming file, row and column for a cell that is not what it must be, for what can be
    read in two ways, and for a set without labels.
    """
    if isinstance(source, ClassFolders):
        return source.read(name, split)
    parts, about = _parts(source)
    mine = [part for part in parts if not part.whole or split in part.halves]
    images = _images(mine, source, split)
    said = source.said
    found = by_columns(mine, images, said) if parts[0].columns.tags < 0 else by_tags(parts, mine, images, said)
    where = " and ".join(str(part.table.path) for part in mine)
    if not found.labels.any():
        raise DataError(
            f"{where}: no image has a label: every cell of a tag or a class is blank or 0.{_one_of(source)}"
        )
    ids = np.array(images.paths)
    of, which = chosen(ids, found.labels, found.classes, images.halves, source.said, split, where)
    notes = (*source.notes, *found.notes, *doubles(found.classes), *about, *which, *images.notes)
    made = MultiLabelDataset(
        name, split, source.root, ids[of], ids[of], found.labels[of], found.classes, notes=notes, source=where
    )
    return made.with_unknown(found.unknown[of])


def _parts(source: Source) -> tuple[list[Part], list[str]]:
    """Every table, with the half of each row; and what is to be said of that."""
    parts: list[Part] = []
    for path, half in source.tables.items():
        table = read_table(path)
        try:
            columns = columns_of(table, source.said, lambda cells: _found(source, cells))
        except DataError as error:
            raise DataError(f"{error}{_one_of(source)}") from None
        parts.append(Part(table, columns, _halves(table, columns.split, half), bool(half)))
    if len({part.columns.tags < 0 for part in parts}) > 1:
        raise DataError(
            f"{source.root}: one table has a column of tags, another one a column a class. Write both alike."
        )
    every, about = settled([half for part in parts for half in part.halves])
    for part in parts:
        part.halves, every = every[: len(part.table)], every[len(part.table) :]
    return parts, about


def _one_of(source: Source) -> str:
    """The way out where one of several tables is none of images with labels, as the test half of a contest."""
    train = next((path for path, half in source.tables.items() if half == "train"), None)
    return f" Or set data.root to {train}, and a share of it is for tests." if train else ""


def _halves(table: Table, column: int | None, half: str) -> list[str]:
    """What a table's column says of its rows, or its name; DataError for a row of which they say other things."""
    if column is None:
        return [half] * len(table)
    halves = halves_of(table, column)
    fitting = ("train", "val") if half == "train" else (half,) if half else ("train", "val", "test")
    if odd := [row for row, found in enumerate(halves) if found not in fitting]:
        raise DataError(
            f"{table.where(odd[0], column)} says {halves[odd[0]]}, and the table is called as one for {half}. Set "
            "data.root to one table, or data.split=none to go by the names."
        )
    return halves


# ---- images ----


def _images(parts: list[Part], source: Source, split: Split) -> Images:
    """The images of some tables. DataError where rows of one image are of two halves, and where two names lead to one
    file."""
    at = [(part, row) for part in parts for row in range(len(part.table))]
    texts = [str(part.table.cells[part.columns.paths][row]) for part, row in at]
    halves = [part.halves[row] for part, row in at]
    files, notes = [""] * len(at), []
    for half in sorted(set(halves)):
        rows = [row for row, of in enumerate(halves) if of == half]
        names = list(dict.fromkeys(texts[row] for row in rows))
        finder = _finder(source, names, half)
        there = {name: _place(finder, name) for name in names}
        notes += finder.notes(len(names)) if half in ("", split) else []
        for row in rows:
            files[row] = there[texts[row]]
    images = Images(at, files, halves, notes)
    for row, first in enumerate(images.first_of_row):
        if texts[row] != texts[first] and not same_image(texts[row], texts[first]):
            raise DataError(
                f"{images.where(row)}: {texts[row]} and {texts[first]} (row {images.number(first)}) would both be read "
                f"from {source.root / files[row]}. Write paths in which they differ."
            )
        if halves[row] != halves[first]:
            raise DataError(
                f"{images.where(row)}: {texts[row]} is for {halves[row]}, and in row {images.number(first)} for "
                f"{halves[first]}. An image is of one half."
            )
    return images


def _place(finder: Finder, name: str) -> str:
    """Where an image is, or should be."""
    if (found := finder.find(name)) is None:
        found = finder.missing(name)
        finder.lost.append(found)
    return found


def _found(source: Source, names: Sequence[str]) -> list[str | None]:
    finder = _finder(source, list(names), "")
    return [finder.find(name) for name in names]


def _finder(source: Source, names: list[str], half: str) -> Finder:
    """Where images are looked for first: beside the table, else in the one folder there that has most of a sample,
    which may be called as the half is; then everywhere. DataError where several folders have them."""
    root, sample = source.root, names[:: max(1, len(names) // SAMPLE)]
    hits = {root: _hits(source, root, sample)}
    if hits[root] < len(sample):
        inner = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."]
        hits |= {path: _hits(source, path, sample) for path in inner}
    best = [path for path, count in hits.items() if count == max(hits.values())]
    of_half = [path for path in best if half and half_in(path.name) == half]
    if len(best) > 1 and best[0] != root and len(of_half) != 1:
        raise DataError(
            f"{root}: the images are in {best[0].name}/ as well as in {best[1].name}/, by their names ({sample[0]}). "
            "Write the folder into the column of paths."
        )
    return Finder(root, [*dict.fromkeys([*of_half[:1], best[0], root])], source.folders, far=str(root))


def _hits(source: Source, folder: Path, names: list[str]) -> int:
    """How many of these images a folder has."""
    finder = Finder(source.root, [folder], source.folders, far="")
    return sum(finder.find(name) is not None for name in names)
