"""What others published, as data: the authors' training logs, the COCO tables of later papers, known weights files."""

from __future__ import annotations

import csv
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path


def known_checkpoint(name: str, sha256: str, own: Path | None = None) -> dict[str, str] | None:
    """What ``checkpoints.csv`` says of a weights file, found by its hash or, failing that, by its name.

    own: a table of the same columns that a laboratory keeps for its own files; it is asked first. Returns the row
    (``trained_on``, ``leaks`` "yes" or "no", ``source``) or None.
    """
    tables = [text("checkpoints.csv")]
    if own and own.is_file():
        tables.insert(0, own.read_text(encoding="utf-8"))
    rows = [row for table in tables for row in csv.DictReader(table.splitlines())]
    by_hash = (row for row in rows if row["sha256"] and row["sha256"] == sha256)
    by_name = (row for row in rows if row["name"] and fnmatch(name.lower(), row["name"].lower()))
    return next(by_hash, None) or next(by_name, None)


def text(name: str) -> str:
    """The content of one of the files beside this one."""
    return (resources.files("krt_core.reference") / name).read_text(encoding="utf-8")
