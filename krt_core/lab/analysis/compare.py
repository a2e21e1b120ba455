"""Runs side by side: which may stand there, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...runs.folder import Run
from ..report import copies_of, finished_runs, labels_of, names_of, setting_of
from ..report.published import author_curves, tested_as


def comparable_runs(folder: str | Path) -> list[Run]:
    """The finished runs under a folder that have the data set and protocol of the first one, copies left out. RunError
    where there is none."""
    runs = finished_runs(folder)
    copies = [copy for copy, _ in copies_of(runs)]
    runs = [run for run in runs if run not in copies]
    return [run for run in runs if setting_of(run) == setting_of(runs[0])]


def one_per_method(runs: Sequence[Run]) -> list[Run]:
    """The first run of each method, as `labels_of` tells methods apart."""
    first: dict[str, Run] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        first.setdefault(label, run)
    return list(first.values())


def curves_table(runs: Sequence[Run], key: str = "mAP_seen") -> pd.DataFrame:
    """A line per run: one metric after each session."""
    table = pd.DataFrame([run.curve(key) for run in runs], index=names_of(runs)).round(2)
    return table.rename(columns=lambda session: f"session {session + 1}")


def forgetting_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A column per run: every definition of forgetting, in points (`krt_core.metrics.forgetting`)."""
    columns = zip(names_of(runs), runs, strict=True)
    return pd.DataFrame({name: run.forgetting() for name, run in columns}).round(2)


def authors_curves(run: Run, key: str = "seen") -> dict[str, np.ndarray]:
    """Published curves for the setting of a run, by name, in percent; empty where there are none. key: "base", "seen"
    or "new"."""
    protocol = run.protocol
    return author_curves(tested_as(run.experiment), *protocol.as_published, key, protocol.classes)
