"""Published results as data: the authors' own training logs and the COCO tables of later papers."""

from __future__ import annotations

import csv
import json
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

import numpy as np


def author_curves(dataset: str, base: int, increment: int, key: str = "seen") -> dict[str, np.ndarray]:
    """Curves of the authors' complete runs on one protocol: name → mAP (%) after each session, in their log's numbers.

    dataset "coco2014" or "voc2007"; base and increment as in a `Protocol`; key "base", "seen" or "new". Empty for a
    protocol they published no log of. Source: the logs in the April 2024 archive of their code.
    """
    text = (resources.files("krt_core.reference") / "author_runs.json").read_text()
    curves = {}
    for run in json.loads(text)["runs"]:
        same = (run["dataset"], run["base_classes"], run["increment"]) == (dataset, base, increment)
        if same and run["complete"]:
            stored = run.get("exemplars_per_class") or 0
            name = f"authors: {run['method']}, {stored} per class, λ {run['token_distillation_weight']}"
            curves[name] = np.array([float(value) for value in run["mAP"][key].values()])
    return curves


def known_checkpoint(name: str, sha256: str, own: Path | None = None) -> dict[str, str] | None:
    """What ``checkpoints.csv`` says of a weights file, found by its hash or, failing that, by its name.

    own: a table of the same columns that a laboratory keeps for its own files; it is asked first. Returns the row
    (``trained_on``, ``leaks`` "yes" or "no", ``source``) or None.
    """
    tables = [(resources.files("krt_core.reference") / "checkpoints.csv").read_text()]
    if own and own.is_file():
        tables.insert(0, own.read_text())
    rows = [row for table in tables for row in csv.DictReader(table.splitlines())]
    by_hash = (row for row in rows if row["sha256"] and row["sha256"] == sha256)
    by_name = (row for row in rows if row["name"] and fnmatch(name.lower(), row["name"].lower()))
    return next(by_hash, None) or next(by_name, None)
