"""The report in its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...machine.home import atomic_write, resolve
from ...runs.folder import Run
from .f1 import Chosen
from .finding import LeftOut
from .paper_table import settings_of
from .recorded import Recorded
from .significance import table_of_tests
from .tables import runs_table, sessions_table


def write_report(
    runs: Sequence[Run],
    left_out: Sequence[LeftOut] = (),
    html: str | Path | None = None,
    csv: str | Path | None = None,
    latex: str | Path | None = None,
    chosen: Sequence[str] = (),
    thresholds: Chosen | None = None,
    earlier: Recorded | None = None,
) -> list[Path]:
    """Write what has a name, of finished runs; returns the files. Beside ``table.csv``, one line per run, there are
    ``table_sessions.csv``, one per run and session, and ``table_tests.csv``, one per pair of methods. chosen: what a
    search for settings chose from what, in words. thresholds: those of F1 that validation images chose. earlier:
    recorded rows, which stand beside the runs everywhere but in the tables that hold one line per run."""
    written = []
    if csv:
        path = resolve(csv)
        written.append(atomic_write(path, runs_table(runs, thresholds).to_csv(index=False)))
        sessions = path.with_name(f"{path.stem}_sessions{path.suffix}")
        written.append(atomic_write(sessions, sessions_table(runs).to_csv(index=False)))
        tests = path.with_name(f"{path.stem}_tests{path.suffix}")
        written.append(
            atomic_write(tests, table_of_tests(settings_of(runs, earlier)).to_csv(index=False, float_format="%.6g"))
        )
    if latex:
        from .latex import latex_report

        written.append(atomic_write(resolve(latex), latex_report(runs, earlier)))
    if html:
        from .html import html_report

        written.append(atomic_write(resolve(html), html_report(runs, left_out, chosen, thresholds or {}, earlier)))
    return written
