"""The rows of tables as images with a label matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..errors import DataError, shown
from .table_columns import Columns, Said, class_values
from .table_file import Table
from .table_tags import separator_of
from .text import class_name

LARGEST = 4 << 30  # bytes of a label matrix
PLAUSIBLE = 20  # tags that may each be in one image alone


@dataclass
class Part:
    """A table; halves (n,) of its rows: "train", "test", or "" where nothing says it; whole: all are of one, by its
    name."""

    table: Table
    columns: Columns
    halves: list[str]
    whole: bool


class Labels(NamedTuple):
    """labels and unknown (images, C) bool; what is to be said of them."""

    labels: np.ndarray
    unknown: np.ndarray
    classes: tuple[str, ...]
    notes: list[str]


class Images:
    """Rows (n,) of tables, one after another, of which several may be about one image."""

    def __init__(self, at: list[tuple[Part, int]], files: list[str], halves: list[str], notes: list[str]):
        self.at, self.notes = at, notes
        first: dict[str, int] = {}
        self.first_of_row = [first.setdefault(file, row) for row, file in enumerate(files)]
        self.first = np.array(list(first.values()))  # row of each image
        self.paths = list(first)
        self.halves = [halves[row] for row in first.values()]

    @cached_property
    def of_row(self) -> np.ndarray:
        """(n,) image of each row."""
        return np.searchsorted(self.first, self.first_of_row)

    def again(self) -> Iterator[tuple[int, int]]:
        """Each row that is about an image of an earlier one, and that one."""
        return ((row, first) for row, first in enumerate(self.first_of_row) if row != first)

    def where(self, row: int, column: int | None = None) -> str:
        part, place = self.at[row]
        return part.table.where(place, column)

    def number(self, row: int) -> int:
        part, place = self.at[row]
        return part.table.numbers[place]

    def differ(self, row: int, first: int, one: str, other: str, way_out: str) -> DataError:
        """Two rows about an image that say other things of it."""
        return DataError(
            f"{self.where(row)} is about the image of row {self.number(first)} ({self.paths[self.of_row[row]]}) and "
            f"says {one}, where that says {other}. {way_out}"
        )


def by_columns(parts: list[Part], images: Images, said: Said) -> Labels:
    """A column for each class."""
    codes = [
        {class_name(p.table.names[i], f"{p.table.path}: a column"): class_values(p.table, i) for i in p.columns.classes}
        for p in parts
    ]
    classes = tuple(sorted(codes[0]))
    for part, other in zip(parts, codes, strict=True):
        if lacks := sorted(set(classes) ^ set(other)):
            raise DataError(
                f"{part.table.path} and {parts[0].table.path}: only one has a column of the class {lacks[0]!r}."
            )
    values = np.stack([np.concatenate([one[name] for one in codes]) for name in classes], axis=1)  # (n, C)
    if said.blank == "absent":
        values[values < 0] = 0
    if not said.blank and (values < 0).any() and not (values == 0).any():
        raise DataError(
            f"{parts[0].table.path}: the columns of classes ({', '.join(classes[:4])}) hold 1 and -1 or blank alone: "
            "write 0 where an image does not show a class, or say blank=absent (data.blank of a training), or unknown."
        )
    twice = 0
    for row, first in images.again():
        if (values[row] != values[first]).any():
            name = classes[int((values[row] != values[first]).argmax())]
            says, instead = (("0", "1", "unknown")[int(values[r][classes.index(name)])] for r in (row, first))
            raise images.differ(row, first, f"{says} for {name!r}", instead, "Remove the row that is wrong.")
        twice += 1
    values = values[images.first]
    notes = [_columns_read(part, f"{len(classes)} columns are classes") for part in parts]
    notes += [f"{twice} rows say again what an earlier one says"] if twice else []
    return Labels(values == 1, values == -1, classes, [*notes, *_left(parts)])


def by_tags(parts: list[Part], mine: list[Part], images: Images, said: Said) -> Labels:
    """A column of tags: several in a cell, or a row for each. parts: all tables, as train and test name the same
    classes. What is not there is absent."""
    cells = [part.table.cells[part.columns.tags] for part in parts]
    places = [f"{part.table.path}, column {part.table.names[part.columns.tags]!r}" for part in parts]
    separator = separator_of((cell for column in cells for cell in column), said.separator, places[0])
    known = {cell: separator.tags(cell) for column in cells for cell in set(column)}
    classes = tuple(sorted({class_name(tag, places[0]) for tags in known.values() for tag in tags}))
    if len(classes) * len(images.paths) > LARGEST:
        raise DataError(
            f"{places[0]} has {len(classes)} tags, too many for {len(images.paths)} images: is it that of tags?"
        )
    column_of = {name: place for place, name in enumerate(classes)}
    tags = [known[part.table.cells[part.columns.tags][row]] for part, row in images.at]
    one_a_row, several = max(map(len, tags), default=0) <= 1, 0
    for row, first in images.again():
        if not one_a_row and set(tags[row]) != set(tags[first]):
            way_out = "Write one row for each image, or one tag a row."
            raise images.differ(
                row, first, shown(separator.joined(tags[row])), shown(separator.joined(tags[first])), way_out
            )
        several += 1
    labels = np.zeros((len(images.paths), len(classes)), bool)
    rows = np.repeat(images.of_row, [len(found) for found in tags])
    labels[rows, [column_of[tag] for found in tags for tag in found]] = True
    often = Counter(tag for column in cells for cell in column for tag in known[cell])
    if len(classes) > PLAUSIBLE and max(often.values()) == 1:
        raise DataError(
            f"{places[0]}: none of its {len(classes)} tags is in two images (the first is {shown(classes[0])}): is it "
            "the column of tags, and what stands between them? Say data.tags=NAME and data.separator."
        )
    notes = [_columns_read(part, f"tags in {part.table.names[part.columns.tags]!r}, {separator.said}") for part in mine]
    if several:
        what = "the tags of one image are put together" if one_a_row else "they say what an earlier one says"
        notes.append(f"{several} rows are about an image of an earlier one: {what}")
    if empty := int((~labels.any(axis=1)).sum()):
        notes.append(f"{empty} images have no tag and are taken to show none of the {len(classes)} classes")
    return Labels(labels, np.zeros_like(labels), classes, [*notes, *_left(mine)])


def _columns_read(part: Part, rest: str) -> str:
    """What a table's columns were taken for."""
    split = part.columns.split
    halves = "" if split is None else f", train and test in {part.table.names[split]!r}"
    return f"{part.table.path.name}: paths are in {part.table.names[part.columns.paths]!r}, {rest}{halves}"


def _left(parts: list[Part]) -> Iterator[str]:
    """Columns that are none of all that."""
    for part in parts:
        names = [part.table.names[i] or f"number {i + 1}, which has no name" for i in part.columns.left]
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            yield f"{part.table.path.name}: these columns are left out: {', '.join(names[:8])}{more}"
