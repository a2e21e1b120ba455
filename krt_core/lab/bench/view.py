"""The table of all jobs: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ...errors import printable
from . import state as s
from .state import JobFiles, State

COLUMNS = ("run", "state", "session", "epoch", "mAP so far", "images/s", "time", "")
COLOURS = {s.DONE: "green", s.RUNNING: "cyan", s.FAILED: "red", s.QUEUED: "dim"}


class View:
    """Shows how far everything is. live None: a table where the output is a terminal, else lines."""

    def __init__(self, live: bool | None = None, interval: float = 2.0):
        self.live = sys.stdout.isatty() if live is None else live
        self.console = Console(width=None if sys.stdout.isatty() else 200)
        self.interval, self._shown, self._told = interval, 0.0, {}
        self._display: Live | None = None

    def begin(self, slots: str, folder: str) -> None:
        self.say(f"{folder}: {slots}")
        if self.live:
            self._display = Live(console=self.console, refresh_per_second=2, vertical_overflow="ellipsis")
            self._display.start()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def show(self, files: Mapping[str, JobFiles], states: Mapping[str, State]) -> None:
        if time.monotonic() - self._shown < self.interval:
            return
        self._shown = time.monotonic()
        if self._display is not None:
            self._display.update(table(files, states, brief=True))
            return
        for name, state in states.items():
            if state.state == s.RUNNING and files[name].job.trains:
                row = row_of(files[name], state)
                at = row[2]
                if at != self._told.get(name) and at:  # a line for each session
                    self._told[name] = at
                    self.say(f"{name}: session {at}, mAP so far {row[4] or '–'}, {row[6] or 'time unknown'}")

    def end(self, files: Mapping[str, JobFiles], states: Mapping[str, State]) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None
        self.console.print(table(files, states))


def table(files: Mapping[str, JobFiles], states: Mapping[str, State], brief: bool = False) -> Table:
    """A line per job; brief: what runs, what failed, and of the rest as much as gives an idea."""
    counts = Counter(state.state for state in states.values())
    title = ", ".join(f"{counts[key]} {key}" for key in (s.RUNNING, s.QUEUED, s.DONE, s.FAILED))
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        made.add_column(column, overflow="fold", justify="right" if column in COLUMNS[2:7] else "left")
    left = {s.DONE: 5, s.QUEUED: 5} if brief else {}
    for name, state in sorted(states.items(), key=lambda item: _rank(item[1])):
        if left.get(state.state, 1) > 0:
            cells = (escape(printable(cell)) for cell in row_of(files[name], state))
            made.add_row(*cells, style=COLOURS[state.state])
        if state.state in left:
            left[state.state] -= 1
    return made


def _rank(state: State) -> int:
    return (s.RUNNING, s.FAILED, s.QUEUED, s.DONE).index(state.state)


def row_of(files: JobFiles, state: State) -> tuple[str, ...]:
    """What is known of a job, as text for `COLUMNS`."""
    note = f"{state.kind}: {state.reason}" if state.kind else state.slot if state.state == s.RUNNING else ""
    run, name = files.run, files.job.id + " (trial)" * files.job.trial
    if run is None:
        return name, state.state, "", "", "", "", "", note
    if run.done:
        summary = run.summary
        return name, state.state, "", "", f"{summary['average_mAP']:.2f}", "", "", clock(summary["seconds"])
    p, curve = run.progress, run.curve()
    done, total = run.finished_sessions, p.get("sessions")
    session = f"{done + 1 if state.state == s.RUNNING else done}/{total}" if total else ""
    epoch = f"{p['epoch'] + 1}/{p['epochs']}" if "epoch" in p else ""
    running = state.state == s.RUNNING
    return (
        name,
        state.state,
        session,
        epoch,
        f"{curve.mean():.2f}" if len(curve) else "",
        f"{p['images_per_second']:.0f}" if running and "images_per_second" in p else "",
        f"{clock(p['eta_seconds'])} left" if running and p.get("eta_seconds") is not None else "",
        note,
    )


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
