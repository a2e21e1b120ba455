"""What others published, as data: the authors' training logs, the COCO tables of later papers, known weights files."""

from __future__ import annotations

import csv
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

from ..errors import CheckpointError

COLUMNS = ("name", "sha256", "trained_on", "leaks", "source")


def known_checkpoint(name: str, sha256: str, own: Path | None = None) -> dict[str, str] | None:
    """What ``checkpoints.csv`` says of a weights file, found by its hash or, failing that, by its name.

    own: a table of the same columns that a laboratory keeps for its own files; it is asked first. Returns the row
    (``trained_on``, ``leaks`` "yes" or "no", ``source``) or None. CheckpointError for an own table that is no such one.
    """
    rows = _rows(text("checkpoints.csv"), "checkpoints.csv")
    if own and own.is_file():
        try:
            rows = _rows(own.read_text(encoding="utf-8-sig"), str(own)) + rows  # Excel begins its files with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{own} cannot be read as UTF-8 ({error}).") from None
    by_hash = (row for row in rows if row["sha256"] and row["sha256"].lower() == sha256)
    by_name = (row for row in rows if row["name"] and fnmatch(name.lower(), row["name"].lower()))
    return next(by_hash, None) or next(by_name, None)


def _rows(content: str, where: str) -> list[dict[str, str]]:
    reader = csv.DictReader(content.splitlines())
    if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
        raise CheckpointError(
            f"{where} lacks the columns {', '.join(missing)}: its first line must be {','.join(COLUMNS)}."
        )
    rows = [{column: (row[column] or "").strip() for column in COLUMNS} for row in reader]
    for number, row in enumerate(rows, start=2):
        row["leaks"] = row["leaks"].lower()
        if row["leaks"] not in ("yes", "no"):
            raise CheckpointError(f"{where}, line {number}: leaks must be yes or no, found {row['leaks']!r}.")
    return rows


def text(name: str) -> str:
    """The content of one of the files beside this one."""
    return (resources.files("krt_core.reference") / name).read_text(encoding="utf-8")
