"""One table, of whatever program: its columns as text, its rows as a spreadsheet numbers them."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean, shown
from .finder import EXTENSIONS, spelling
from .text import decode, read_bytes

PARQUET, TEXTS = (".parquet", ".pq"), (".csv", ".tsv", ".tab")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
DELIMITERS = ",;\t"
Cell = str | tuple[str, ...]  # of Parquet also a list


@dataclass(frozen=True)
class Table:
    """names (m,) of the columns; cells (m, n), column by column, without blanks around them; numbers (n,) of the rows,
    of which the header is 1."""

    path: Path
    names: tuple[str, ...]
    cells: Sequence[Sequence[Cell]]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int, column: int | None = None) -> str:
        """A place, for messages."""
        name = "" if column is None else f", column {self.names[column]!r}"
        return f"{self.path}, row {self.numbers[row]}{name}"

    def column(self, name: str, key: str) -> int:
        """The column that the configuration's ``key`` names; DataError where there is none."""
        alike = [i for i, other in enumerate(self.names) if spelling(other) == spelling(name.strip())]
        exact = [i for i in alike if self.names[i] == name.strip()] or alike
        if len(exact) != 1:
            raise DataError(f"{self.path} has no column {name!r}, as {key} says.{did_you_mean(name, self.names)}")
        return exact[0]

    @property
    def has(self) -> str:
        """Its columns, in words."""
        more = f" and {len(self.names) - 12} more" if len(self.names) > 12 else ""
        return f"it has {', '.join(map(repr, self.names[:12]))}{more}"


def is_image(cell: Cell) -> bool:
    """Is it called as images are?"""
    return isinstance(cell, str) and "." in cell and cell.rpartition(".")[2].lower() in EXTENSIONS


def read_table(path: Path) -> Table:
    """Read a file. Raises DataError, naming it and the row, for what is no table or can be read in two ways."""
    suffix = path.suffix.lower()
    if suffix in SPREADSHEETS:
        raise DataError(f"{path} is a spreadsheet: save it as CSV (in Excel: CSV UTF-8) and name that.")
    names, cells, numbers = _parquet(path) if suffix in PARQUET else _text(path)
    table = Table(path, names, cells, numbers)
    if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
        places = [i + 1 for i, name in enumerate(names) if name == twice[0]]
        raise DataError(
            f"{path}: the columns {' and '.join(map(str, places))} are both called {twice[0]!r}. Rename one."
        )
    if not len(table):
        raise DataError(f"{path} has no rows below its header ({table.has}).")
    return table


# ---- text ----


def _text(path: Path) -> tuple[tuple[str, ...], list[list[Cell]], list[int]]:
    text = _decoded(path)
    said = re.match(r"\s*\"?sep=(.)\"?[ ,;\t]*\r?\n", text)  # Excel's own, which it does not show
    text = text[said.end() :] if said else text
    head = re.sub(r'"[^"]*"', "", next((line for line in text.splitlines() if line.strip()), ""))
    if not head.strip() and '"' not in text[:1000]:
        raise DataError(f"{path} is empty: it needs a header such as path,tags and a row for each image.")
    candidates = [said[1]] if said else [one for one in DELIMITERS if one in head] or [","]
    readings = [_rows(path, text, delimiter) for delimiter in candidates]
    sound = [one for one in readings if not one[1]]
    if len(sound) > 1:
        words = " or ".join(map(repr, candidates))
        raise DataError(
            f"{path} can be read with {words} between its cells: put cells that hold one of them in quotes."
        )
    rows, fault = sound[0] if sound else max(readings, key=lambda reading: len(reading[0][0][1]))
    if fault:
        raise DataError(fault)
    (_, header), *body = rows
    if image := next(filter(is_image, header), ""):
        raise DataError(
            f"{path} has no header: row {rows[0][0]} is about an image already ({shown(image)}). Put the names of the "
            "columns on top, such as path,tags."
        )
    columns = zip(*(row for _, row in body), strict=True) if body else ((),) * len(header)
    return tuple(header), [list(map(str.strip, column)) for column in columns], [number for number, _ in body]


def _decoded(path: Path) -> str:
    data = read_bytes(path)
    try:
        text = decode(data, path)
    except DataError as error:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as at:
            if "UTF-8" not in str(error):
                raise error from None
            line = data[: at.start].count(b"\n")
            found = data.split(b"\n")[line].decode("cp1252", "replace").strip()
            raise DataError(f"{error} Read as cp1252, line {line + 1} is {shown(found)}.") from None
        raise
    if "\0" in text:
        raise DataError(f"{path} holds zero bytes, which no table has: is it a text file?")
    return text


def _rows(path: Path, text: str, delimiter: str) -> tuple[list[tuple[int, list[str]]], str]:
    """Number and cells of each row that is not blank, the header first; and what is wrong with them."""
    rows: list[tuple[int, list[str]]] = []
    reader, number = (
        csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True),
        0,
    )
    try:
        for number, row in enumerate(reader, 1):
            if row and any(cell and not cell.isspace() for cell in row):
                rows.append((number, row))
    except csv.Error as error:
        endless = str(error).startswith(("unexpected end of data", "field larger"))  # to the end, or for 128 KB
        what = "a cell begins with a quotation mark that nothing ends"
        what = what if endless else f"{error}: within a cell in quotes a quotation mark is written twice"
        return rows or [(1, [])], f"{path}, row {number + 1}: {what}."
    header = [name.strip() for name in rows[0][1]]
    rows[0] = rows[0][0], header
    width = len(header)
    for place, (number, row) in enumerate(rows):
        if len(row) != width and (len(row) < width or any(cell.strip() for cell in row[width:])):
            hint = f"Put a cell that holds {delimiter!r} in quotes." if len(row) > width else "Fill it up."
            names = ", ".join(header[:6]) + ", ..." * (width > 6)
            return (
                rows,
                f"{path}, row {number}: {len(row)} cells for the {width} columns of the header ({names}). {hint}",
            )
        rows[place] = number, row[:width]
    return rows, ""


# ---- Parquet ----


def _parquet(path: Path) -> tuple[tuple[str, ...], list[list[Cell]], Sequence[int]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: to read Parquet, pip install pyarrow; or save the table as CSV.")
    import pandas as pd

    try:
        frame = pd.read_parquet(path, engine="pyarrow")
        frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
        columns = [frame.iloc[:, place].tolist() for place in range(frame.shape[1])]
    except PermissionError:
        raise
    except Exception as error:  # pyarrow has errors of its own for each kind of damage
        raise DataError(f"{path} cannot be read as Parquet ({type(error).__name__}: {str(error)[:200]}).") from None
    names = tuple(str(name).strip() for name in frame.columns)
    return names, [_cells(column, path) for column in columns], range(2, len(frame) + 2)


def _cells(values: list[Any], path: Path) -> list[Cell]:
    """Values as a text file would have them; each that is there often is looked at once."""
    try:
        known = {value: _cell(value, path) for value in set(values)}
        return [known[value] for value in values]
    except TypeError:  # lists, which cannot be looked up
        return [_cell(value, path) for value in values]


def _cell(value: Any, path: Path) -> Cell:
    if isinstance(value, str):
        if "\0" in value:
            raise DataError(f"{path}: {shown(value)} holds a zero byte.")
        return value.strip()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(str(_cell(one, path)) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    missing = value is None or value != value or str(value) == "<NA>"
    return "" if missing else str(value)
