"""Cells of tags: what stands between them, and what they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import DataError, shown
from .table_columns import BLANK
from .table_file import Cell

MARKS = ("|", ";", ",")  # and blanks, of which a tag may have some itself
NAMES = {"space": " ", "blank": " ", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "tab": "\t"}
ENOUGH = 0.9  # share of the cells of several words that must be plainly one thing, or the other
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


class Separator(NamedTuple):
    """mark: what stands between tags; empty: a cell is one tag. lists: cells are written as lists, ['a', 'b']."""

    mark: str = ""
    lists: bool = False

    @property
    def said(self) -> str:
        """In words."""
        if self.lists:
            return "read as lists"
        return f"with {'blanks' if self.mark == ' ' else repr(self.mark)} between them" if self.mark else "one a cell"

    def joined(self, tags: tuple[str, ...]) -> str:
        return (self.mark or ", ").join(tags)

    def tags(self, cell: Cell) -> tuple[str, ...]:
        """The tags of a cell, each once."""
        if isinstance(cell, tuple):
            found: Iterable[str] = cell
        elif cell.lower() in BLANK:
            return ()
        elif self.lists:
            quoted = QUOTED.findall(cell)
            found = [one or other for one, other in quoted] if quoted else cell[1:-1].split(",")
        elif self.mark == " ":
            found = cell.split()
        else:
            found = cell.split(self.mark) if self.mark else (cell,)
        return tuple(dict.fromkeys(tag for one in found if (tag := one.strip())))


def separator_of(cells: Iterable[Cell], said: str, where: str) -> Separator:
    """What stands between the tags of these cells. DataError, beginning with ``where``, naming the candidates and a
    cell of each where several could be meant."""
    distinct = set(cells)
    texts = [cell for cell in distinct if isinstance(cell, str) and cell.lower() not in BLANK]
    used = {mark: min(with_it) for mark in MARKS if (with_it := [text for text in texts if mark in text])}
    if said:
        mark = "" if said == "none" else NAMES.get(said, said)
        if used and mark and mark not in used and not any(mark in text for text in texts):
            other, example = next(iter(used.items()))
            raise DataError(f"{where}: data.separator={said} is in no cell, but {other!r} is ({shown(example)}).")
        return Separator(mark)
    lists = any(isinstance(cell, tuple) for cell in distinct) or bool(texts)
    if lists and all(text[0] == "[" and text[-1] == "]" for text in texts):
        return Separator(lists=True)
    if len(used) > 1:
        raise DataError(
            f"{where}: tags could be separated by {_either(used)}. Say which: data.separator='{next(iter(used))}'."
        )
    if used:
        (mark,) = used
        _check_words(texts, mark, where)
        return Separator(mark)
    return Separator(_of_words(texts, where))


def _either(used: dict[str, str]) -> str:
    return " or ".join(f"{mark!r} (as in {shown(example, 60)})" for mark, example in used.items())


def _check_words(texts: list[str], mark: str, where: str) -> None:
    """DataError where what stands between marks is again several tags that stand elsewhere alone."""
    pieces = {piece.strip() for text in texts for piece in text.split(mark)}
    for text in sorted(texts):
        for piece in map(str.strip, text.split(mark)):
            words = piece.split()
            if len(words) > 1 and pieces.issuperset(words):
                raise DataError(
                    f"{where}: tags could be separated by {mark!r} or by blanks: {shown(piece)} has one, and "
                    f"{' and '.join(map(repr, words[:3]))} are tags as well. Say which: data.separator='{mark}' "
                    "or space."
                )


def _of_words(texts: list[str], where: str) -> str:
    """A blank where cells are tags with blanks between them; empty where each is one tag, perhaps of several words.

    Tags stand alone in some cells and come back in others, in other company; the words of a name come back together.
    """
    several, alone = sorted(text for text in texts if len(text.split()) > 1), set(texts)
    if not several:
        return ""
    if any(alone.issuperset(text.split()) for text in several):
        return " "
    count = Counter(word for text in texts for word in set(text.split()))
    shared = [text for text in several if all(count[word] > 1 for word in text.split())]
    share = len(shared) / len(several)
    if 1 - ENOUGH < share < ENOUGH:
        other = next(text for text in several if text not in shared)
        raise DataError(
            f"{where}: are there blanks between tags, or within them? The words of {shown(shared[0], 60)} are in other "
            f"cells, too, but not all of {shown(other, 60)}. Say which: data.separator=space, or none (one tag a cell)."
        )
    return " " if share >= ENOUGH else ""
