"""Rows of an earlier table.csv beside finished runs: what was measured once need not be trained again to compare with.

Only the table is left of such runs. Their lines have means, spread and paired tests like any other, but no curves, no
classes and no provenance; each is marked as recorded and says the file it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import DataError
from ...machine.home import resolve
from ...runs.folder import Run
from .naming import LEAK, MIXED, ORACLE, RECORDED, setting_of
from .paper_table import HIGHER_IS_BETTER, KEPT, Line, known
from .tables import METRICS

TEXTS = ("run", "name", "dataset", "protocol", "class_order", "buffer", "backbone")
# Without these a row says too little to stand beside a run.
NEEDED = (*TEXTS, "seed", *METRICS, *KEPT, "seconds", "peak_memory_mb", "bound", "oracle", "leak")


@dataclass(frozen=True)
class Recorded:
    """The rows of some tables, as `krt_core.lab.report.runs_table` writes them; ``file``: where a row is from."""

    rows: pd.DataFrame
    left_out: tuple[str, ...] = ()  # in words, what stands beside no run here

    def lines(self, dataset: str, protocol: str) -> list[Line]:
        """One for each method and file in this setting."""
        here = self.rows[(self.rows["dataset"] == dataset) & (self.rows["protocol"] == protocol)]
        return [_line(group) for _, group in here.groupby(["name", "file"], sort=False)]


def recorded(paths: Sequence[str | Path], runs: Sequence[Run], wanted: Sequence[str] = ()) -> Recorded:
    """The rows of some tables that may stand beside ``runs``: of their settings, and not one of them. wanted: only
    those of which all of it holds, see `krt_core.lab.report.only`.

    Raises DataError for a file that is not there, is no table of runs, or is one of an older version.
    """
    if not paths:
        return Recorded(pd.DataFrame(columns=[*NEEDED, "file"]))
    rows = pd.concat([_read(path) for path in paths], ignore_index=True)
    files = rows.groupby("name")["file"].transform("nunique")
    rows["name"] = rows["name"].where(files == 1, rows["name"] + ", " + rows["file"])
    rows = rows[[all(_has(row, *one.split("=", 1)) for one in wanted) for row in rows.to_dict("records")]]
    twice = rows.duplicated("run") | rows["run"].isin([run.folder.name for run in runs])
    rows, left_out = rows[~twice], [f"{twice.sum()} recorded rows: the same runs are here already"] * bool(twice.any())
    settings, kept = {setting_of(run) for run in runs}, []
    for (dataset, protocol), group in rows.groupby(["dataset", "protocol"], sort=False):
        if (dataset, protocol) in settings:
            kept.append(group)
        else:
            left_out.append(f"{len(group)} recorded rows of {dataset} · {protocol}: no run here is in that setting")
    return Recorded(pd.concat(kept) if kept else rows[:0], tuple(left_out))


def _read(path: str | Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(resolve(path), dtype={"name": str, "buffer": str})
    except OSError as error:
        raise DataError(f"There is no table {path} ({error.strerror}).") from None
    except ValueError as error:
        raise DataError(f"{path} is no table of runs: {error}.") from None
    if missing := [key for key in NEEDED if key not in table]:
        raise DataError(
            f"{path} is no table of runs, or an older version's: it has no column {', '.join(missing)}. "
            "krt report RUNS --csv FILE writes one."
        )
    for key in ("seed", *METRICS, *KEPT, "seconds", "peak_memory_mb"):
        numbers = pd.to_numeric(table[key], errors="coerce")
        wrong = numbers.isna() & (table[key].notna() | (key in ("seed", "average_mAP")))
        _check(path, table, key, wrong, "is no number")
        table[key] = numbers
    for key in TEXTS:
        _check(path, table, key, table[key].isna(), "is missing")
    for key in ("bound", "oracle"):
        told = table[key].astype(str)
        _check(path, table, key, ~told.isin(["True", "False"]), "is neither True nor False")
        table[key] = told == "True"
    return table.assign(leak=table["leak"].notna(), file=Path(path).stem)


def _check(path: str | Path, table: pd.DataFrame, key: str, wrong: pd.Series, words: str) -> None:
    """DataError for the first row in which a column is ``wrong``."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{path}, line {row + 2}, column {key}: {table[key].iloc[row]!r} {words}.")


def _has(row: dict[str, Any], key: str, value: str) -> bool:
    """As `krt_core.lab.report.only` asks of a run."""
    told = re.split("[ ,]", row["name"])[0] if key == "method" else row[key]
    return value in (told, re.split("[ ,]", told)[0]) or (key == "buffer" and row["bound"])


def _line(rows: pd.DataFrame) -> Line:
    first: dict[str, Any] = rows.iloc[0].to_dict()
    return Line(
        method=first["name"].removesuffix(MIXED).removesuffix(ORACLE).removesuffix(LEAK),  # tables mark them
        label=first["name"] + RECORDED,
        buffer="all data" if first["bound"] and not first["oracle"] else first["buffer"],
        values={
            key: known(rows[key].to_numpy(dtype=float))
            for key in (*HIGHER_IS_BETTER, *KEPT, "seconds", "peak_memory_mb")
        },
        leak=first["leak"],
        bound=first["bound"],
        oracle=first["oracle"],
        recorded=first["file"],
        rows=tuple(rows.to_dict("records")),
    )
