"""What the columns of a table are: the one of paths, of tags or of each class, and the one of train and test."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..config import Data
from ..errors import DataError, shown
from .table_file import Cell, Table, is_image
from .text import NO, YES

PATHS = (
    "path", "paths", "filepath", "imagepath", "imgpath", "photopath", "relativepath", "relpath", "file", "files",
    "filename", "fname", "imagefile", "imagefilename", "imagename", "imgname", "image", "images", "img", "photo",
    "picture", "imageid", "imgid",
)  # fmt: skip  # as `_plain` writes them
TAGS = (
    "tags", "tag", "labels", "label", "classes", "class", "classname", "categories", "category", "keywords", "keyword",
)  # fmt: skip
SPLITS = ("split", "subset", "partition")  # and any other column of nothing else
FLAGS = {  # column of yes and no → what they say
    "istrain": ("train", "test"), "istraining": ("train", "test"), "istest": ("test", "train"),
    "isvalid": ("val", "train"), "isval": ("val", "train"), "isvalidation": ("val", "train"),
}  # fmt: skip
HALVES = {
    **dict.fromkeys(("train", "training", "trn"), "train"), **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"), "trainval": "train",
}  # fmt: skip
BLANK = ("", "nan", "null", "<na>", "n/a")
UNKNOWN = (*BLANK, "na", "-1", "-1.0")  # in the column of a class
ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+]+://", re.IGNORECASE)
CLASS = {**dict.fromkeys(UNKNOWN, -1), **dict.fromkeys((*YES, "1.0"), 1), **dict.fromkeys([*NO[:5], "0.0"], 0)}
FEWEST = 0.5  # share of the cells of a column that fit, from which on the others are mistakes
SAMPLE = 50  # paths that are looked for to tell which column has them
Find = Callable[[Sequence[str]], list[str | None]]  # where each of these images is, if it is there


class Columns(NamedTuple):
    """Places of columns. tags -1: one a class, classes. split None: none says it. left: what is none of all that."""

    paths: int
    tags: int
    classes: tuple[int, ...]
    split: int | None
    left: tuple[int, ...]


@dataclass(frozen=True)
class Said:
    """What the configuration says of a table; the rest is found."""

    paths: str = ""
    tags: str = ""
    separator: str = ""
    split: str = ""
    blank: str = ""
    classes: tuple[str, ...] = ()
    test_share: float = 0.2
    split_seed: int = 0

    @classmethod
    def by(cls, config: Data) -> Said:
        return cls(**{key: getattr(config, key) for key in cls.__dataclass_fields__})


def columns_of(table: Table, said: Said, find: Find) -> Columns:
    """Which column is which. DataError naming the candidates where none or several could be meant."""
    split = _split(table, said)
    paths = _paths(table, said, find, [i for i in range(len(table.names)) if i != split])
    others = [i for i in range(len(table.names)) if i not in (paths, split)]
    if not others:
        raise DataError(
            f"{table.path}: beside {table.names[paths]!r} it has no column of tags, and none for each class."
        )
    named = {i for i in others if _plain(table.names[i]) in TAGS}  # of which 0 and 1 may be some tags
    able = [i for i in others if table.names[i] and _plain(table.names[i]) not in FLAGS]
    fitting = [i for i in able if _share(table, i) >= (1 if i in named else FEWEST)]
    tags = _tags(table, said, others, fitting)
    classes = tuple(i for i in fitting if _is_class(table, i, said)) if tags < 0 else ()
    if tags < 0 and not classes:
        raise DataError(f"{table.path}: no column has 1, 0, -1 or blank alone, as that of a class ({table.has}).")
    return Columns(paths, tags, classes, split, tuple(i for i in others if i != tags and i not in classes))


def class_values(table: Table, column: int) -> np.ndarray:
    """(n,) int8 of a class's column: 1, 0, and -1 for unknown."""
    return np.fromiter(map(_class_codes(table.cells[column]).__getitem__, table.cells[column]), np.int8, len(table))


def halves_of(table: Table, column: int) -> list[str]:
    """ "train", "val" or "test" of each row. DataError naming the row that says something else."""
    cells, codes = table.cells[column], _half_codes(table, column)
    if None in codes.values():
        row = next(row for row, cell in enumerate(cells) if codes[cell] is None)
        found = shown(cells[row]) if cells[row] else "nothing"
        raise DataError(f"{table.where(row, column)} must say train, val or test, found {found}. {_unsplit(table)}")
    return [str(codes[cell]) for cell in cells]


def _unsplit(table: Table) -> str:
    return "Without such a column (data.split=none) data.test_share of the images are tested on."


# ---- paths ----


def _paths(table: Table, said: Said, find: Find, free: list[int]) -> int:
    if said.paths:
        return _are_files(table, table.column(said.paths, f"data.paths={said.paths}"))
    named, looking = (
        [i for i in free if _plain(table.names[i]) in PATHS],
        [i for i in free if _looks(table, i)],
    )
    found = [i for i in named if i in looking] or looking or named
    if len(found) != 1:
        places = {i: find(_sample(table, i)) for i in found or free}
        hits = {i: sum(place is not None for place in there) for i, there in places.items()}
        most = max(hits.values(), default=0)
        found = [i for i in hits if hits[i] == most] if most else found
        found = found[:1] if found and all(places[i] == places[found[0]] and most for i in found) else found
    if len(found) == 1:
        return _are_files(table, found[0])
    if not found:
        addresses = [i for i in free if any(map(_is_address, _sample(table, i)))]
        if addresses:
            _are_files(table, addresses[0])
        raise DataError(f"{table.path}: no column has paths of images ({table.has}). Say which: data.paths=NAME.")
    words = " and ".join(repr(table.names[i]) for i in found)
    raise DataError(f"{table.path}: the columns {words} both have paths of images. Say which: data.paths=NAME.")


def _are_files(table: Table, column: int) -> int:
    """The column, if its cells may be paths."""
    for row, cell in enumerate(table.cells[column]):
        if not isinstance(cell, str) or not cell:
            found = f"found {shown(cell)}" if cell else "and is blank"
            raise DataError(f"{table.where(row, column)} must name an image, {found}.")
        if "://" in cell and _is_address(cell):
            raise DataError(
                f"{table.where(row, column)}: {shown(cell)} is an address, and images must be files: get them, and "
                "write where they are."
            )
    return column


def _is_address(cell: Cell) -> bool:
    return isinstance(cell, str) and bool(ADDRESS.match(cell))


def _looks(table: Table, column: int) -> bool:
    """Do most cells look like files of images?"""
    cells = _sample(table, column)
    return 2 * sum(map(is_image, cells)) > len(cells)


def _sample(table: Table, column: int) -> list[str]:
    """Some cells from all over a column."""
    rows = np.unique(np.linspace(0, len(table) - 1, SAMPLE).astype(int))
    return [cell for row in rows if isinstance(cell := table.cells[column][row], str) and cell]


# ---- classes and tags ----


def _class_codes(cells: Sequence[Cell]) -> dict[Cell, int]:
    """What each cell that is there says of a class; not for cells that say nothing of one."""
    found = {cell: CLASS.get(cell.lower()) for cell in set(cells) if isinstance(cell, str)}
    return {cell: code for cell, code in found.items() if code is not None}


def _share(table: Table, column: int) -> float:
    """Share of the cells that are not blank which say whether an image shows a class."""
    cells = table.cells[column]
    codes = _class_codes(cells)
    if len(codes) == len(set(cells)):
        return float(any(code >= 0 for code in codes.values()))
    known = [cell for cell in cells if not (isinstance(cell, str) and cell.lower() in BLANK)]
    return sum(cell in codes for cell in known) / len(known)


def _is_class(table: Table, column: int, said: Said) -> bool:
    """Is it, of those that look like it, the column of a class? DataError names the cell that keeps it from being one;
    where classes are chosen and it is none of them, it is none."""
    cells, name = table.cells[column], table.names[column]
    if len(codes := _class_codes(cells)) == len(set(cells)):
        return True
    if said.classes and name not in said.classes:
        return False
    row = next(row for row, cell in enumerate(cells) if cell not in codes)
    raise DataError(
        f"{table.where(row, column)} must be 1, 0, or -1 or blank for unknown, found {shown(cells[row])}. If the "
        "column is none of a class, remove it, or name those that are: data.classes=[...]."
    )


def _tags(table: Table, said: Said, others: list[int], fitting: list[int]) -> int:
    """The column of tags; -1 where each class has a column."""
    if said.tags and not (said.tags == "none" and "none" not in table.names):
        column = table.column(said.tags, f"data.tags={said.tags}")
        if column not in others:
            raise DataError(f"{table.path}: {said.tags!r} holds paths, or train and test: it cannot be data.tags.")
        return column
    if said.tags:
        return -1
    named = [i for i in others if i not in fitting and _plain(table.names[i]) in TAGS]
    if len(named) == 1 and not fitting:
        return named[0]
    if not named and fitting and not (len(fitting) == 1 and _plain(table.names[fitting[0]]) in TAGS):
        return -1
    texts = named or [i for i in others if i not in fitting and table.names[i] and _are_texts(table, i)]
    if len(texts) == 1 and not fitting:
        return texts[0]
    if named and fitting:
        words, few = " and ".join(repr(table.names[i]) for i in named), ", ".join(table.names[i] for i in fitting[:4])
        raise DataError(
            f"{table.path} has tags in {words} and columns of 1 and 0 ({few}). Say which are the labels: "
            f"data.tags={table.names[named[0]]}, or data.tags=none for a column each."
        )
    if fitting:
        name = table.names[fitting[0]]
        raise DataError(
            f"{table.path}: is {name!r} a class, or are 0 and 1 tags in it? Say data.tags={name} for tags; call a "
            "class by its name."
        )
    which = " or ".join(repr(table.names[i]) for i in texts)
    which = f"and its tags could be in {which}" if texts else f"and none that is called as tags are ({table.has})"
    raise DataError(f"{table.path} has no columns of 1 and 0, one a class, {which}. Say data.tags=NAME.")


def _are_texts(table: Table, column: int) -> bool:
    """Some cell is more than a number."""
    return any(not isinstance(cell, str) or re.search(r"[^\W\d_]", cell) for cell in set(table.cells[column]) if cell)


# ---- train and test ----


def _split(table: Table, said: Said) -> int | None:
    if said.split == "none" and "none" not in table.names:
        return None
    if said.split:
        return table.column(said.split, f"data.split={said.split}")
    named = [i for i, name in enumerate(table.names) if _plain(name) in SPLITS]
    found = named or [i for i in range(len(table.names)) if _tells(table, i)]
    if len(found) > 1:
        words = " and ".join(repr(table.names[i]) for i in found)
        raise DataError(f"{table.path}: the columns {words} could both say train and test. Say which: data.split=NAME.")
    return found[0] if found else None


def _tells(table: Table, column: int) -> bool:
    """Does a column say train and test, and nothing else?"""
    if len(set(table.cells[column])) > len(HALVES):
        return False
    told = set(_half_codes(table, column).values())
    return None not in told and len(told) > 1


def _half_codes(table: Table, column: int) -> dict[Cell, str | None]:
    """What each cell that is there says; None: of no half."""
    distinct = set(table.cells[column])
    if flag := FLAGS.get(_plain(table.names[column])):
        codes = {cell: CLASS.get(cell.lower(), -1) if isinstance(cell, str) else -1 for cell in distinct}
        return {cell: None if code < 0 else flag[1 - code] for cell, code in codes.items()}
    return {cell: HALVES.get(_plain(cell)) if isinstance(cell, str) else None for cell in distinct}


def half_in(name: str) -> str | None:
    """ "train", "val" or "test", where a word of the name of a file or folder says so."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", name.casefold())]
    found = {HALVES[word] for word in words if word in HALVES}
    return found.pop() if len(found) == 1 else "train" if found == {"train", "val"} else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
