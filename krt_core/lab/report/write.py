"""The report in its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...machine.home import atomic_write
from ...runs.folder import Run
from .finding import LeftOut
from .tables import runs_table, sessions_table


def write_report(
    runs: Sequence[Run],
    left_out: Sequence[LeftOut] = (),
    html: str | Path | None = None,
    csv: str | Path | None = None,
    latex: str | Path | None = None,
    chosen: Sequence[str] = (),
) -> list[Path]:
    """Write what has a name, of finished runs; returns the files. Beside ``table.csv``, one line per run, there is
    ``table_sessions.csv``, one per run and session. chosen: what a search for settings chose from what, in words."""
    written = []
    if csv:
        path = Path(csv)
        written.append(atomic_write(path, runs_table(runs).to_csv(index=False)))
        sessions = path.with_name(f"{path.stem}_sessions{path.suffix}")
        written.append(atomic_write(sessions, sessions_table(runs).to_csv(index=False)))
    if latex:
        from .latex import latex_report

        written.append(atomic_write(latex, latex_report(runs)))
    if html:
        from .html import html_report

        written.append(atomic_write(html, html_report(runs, left_out, chosen)))
    return written
