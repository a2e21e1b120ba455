"""Trainings to start, watch, stop and continue from a notebook, without blocking it."""

from __future__ import annotations

import html
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import torch
from IPython.display import display
from matplotlib.figure import Figure

from ...config import Experiment
from ...errors import KRTError, RunError
from ...launch import launch
from ...machine.cluster import cores
from ...machine.device import named_device
from ...machine.home import resolve
from ...presets.said import truth, whole
from ...runs.folder import Run
from ...runs.progress import headless_kernel
from ..figures.training import training_progress
from ..report import names_of
from . import background
from .explorer import describe
from .follow import COLUMNS, NUMBERS, Followed
from .picture import Picture
from .poller import Poller

BUTTONS = {  # state → what its button does, and its icon; in other states there is nothing to press
    "waiting": ("Start", "play"), "queued": ("Cancel", "times"), "running": ("Stop", "stop"),
    "stopped": ("Resume", "play"), "failed": ("Try again", "repeat"),
}  # fmt: skip


class TrainingView:
    """One row per experiment with its state and a button, and the curves so far.

    Everything is read from the run folders ``<folder>/runs/<run name>``, so running the cell again, after a restart of
    the kernel too, finds what is being trained. Trainings are processes of their own and go on whatever becomes of the
    notebook. The queue that `start_all` fills is driven by this view: while its kernel is down the training that runs
    goes on, but the next one begins only after the cell is run and ``Start all`` is pressed again.

    processes: that share every batch of a training. at_once: trainings that may run side by side, each on its own GPU
    where there are several. device: for all of them. Raises ConfigError for an unusable number.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        folder: str | Path = "outputs/demo",
        processes: int = 1,
        at_once: int = 1,
        device: str | None = None,
    ):
        self.processes, self.at_once = whole("processes", processes, 1), whole("at_once", at_once, 1)
        named_device(device)  # rather than in every row
        self.folder, self.device = resolve(folder), device
        planned = {self.folder / "runs" / e.run_name(): e for e in experiments}
        self.rows = [Followed(experiment, path) for path, experiment in planned.items()]
        for row, name in zip(self.rows, names_of(self.rows), strict=True):
            row.label = name
        self._lock = threading.Lock()  # of the queue, which buttons fill and the poller empties
        self._queue: list[Followed] = []
        self._stopping: set[Followed] = set()
        self._problems: dict[Followed, str] = {}  # why a start or a stop was refused
        self._poller: Poller | None = None
        self._drawn: tuple | None = None
        self._build()
        self._take_over()

    # ---- what is shown ----

    def table(self) -> pd.DataFrame:
        """State of every experiment; session and epoch count from 1, mAP in percent, time left as h:mm:ss."""
        return pd.DataFrame([self._line(row) for row in self.rows], columns=COLUMNS)

    def figure(self) -> Figure:
        """Loss and mAP of all that has begun, see `krt_core.lab.figures.training.training_progress`."""
        return training_progress([row.opened for row in self.rows if row.opened])

    def finished(self) -> list[Run]:
        """Runs that are done, in the order of the rows. Raises RunError while there is none."""
        runs = [row.opened for row in self.rows if row.opened and row.opened.done]
        if not runs:
            raise RunError("No training is done yet: press Start all above, wait, and run this cell again.")
        return runs

    def begin(self, watch: bool = True) -> None:
        """With ``watch``, in a live notebook, show the view: trainings run in the background once they are started.
        Else train one after another here and wait for them."""
        if truth("watch", watch) and not headless_kernel():
            display(self)
            return
        for row in self.rows:
            launch(row.experiment, row.folder, self.processes, self.device)

    def _ipython_display_(self) -> None:
        if headless_kernel():
            display(self.table())
            display(self.figure())
        else:
            self._watch()
            display(self.widget)

    def _line(self, row: Followed) -> dict[str, Any]:
        line = row.read()
        if row in self._stopping:
            return line | {"state": "stopping"}
        if line["state"] == "running":
            return line
        if row in self._queue:
            return line | {"state": "queued", "note": ""}
        if row in self._problems and line["state"] != "done":
            return line | {"state": "failed", "note": self._problems[row]}
        return line

    # ---- what can be done ----

    def start_all(self) -> None:
        """Queue every training that is neither done nor running, from the first row to the last."""
        self.start(*(row for row in self.rows if self._line(row)["state"] in ("waiting", "stopped", "failed")))

    def start(self, *rows: Followed) -> None:
        """Queue trainings; they begin as long as fewer than ``at_once`` run. Returns at once. RunError once closed."""
        if self._poller and self._poller.ended:
            raise RunError("This view is closed: run its cell again.")
        with self._lock:
            self._queue += [row for row in rows if row not in self._queue]
            for row in rows:
                self._problems.pop(row, None)
        self._watch()

    def stop_all(self) -> None:
        """Empty the queue and end what was started in the background; it can be resumed after its last epoch."""
        self.stop(*self.rows)

    def stop(self, *rows: Followed) -> None:
        """Take trainings out of the queue, or end them. Returns at once; their rows tell when they are stopped."""
        with self._lock:
            self._queue = [row for row in self._queue if row not in rows]
        for row in rows:
            training = background.find(row.folder)
            if training and row not in self._stopping:
                self._stopping.add(row)
                threading.Thread(target=self._end, args=(row,), daemon=True).start()
        self._watch()

    def close(self, reason: str = "This view is closed: run its cell again to go on.") -> None:
        """End the watching. Trainings go on, the queue does not."""
        if self._poller:
            self._poller.end()
        self.message.value = html.escape(reason)
        for button in self.buttons:
            button.disabled = True

    def _press(self, row: Followed) -> None:
        stops = row in self._queue or background.find(row.folder)
        self.stop(row) if stops else self.start(row)

    def _end(self, row: Followed) -> None:
        try:
            background.stop(row.folder)
        except KRTError as error:
            self._problems[row] = str(error)
        finally:
            self._stopping.discard(row)
            self._watch()

    def _start_next(self, running: int) -> bool:
        """Start as much of the queue as may run beside ``running`` others; did any begin?"""
        began = False
        while running < self.at_once and (row := self._next()):
            threads = max(1, len(cores()) // self.at_once) if self.at_once > 1 else 0
            try:
                background.start(row.experiment, row.folder, self.processes, self._free_device(), threads)
                running, began = running + 1, True
            except (KRTError, OSError) as error:
                self._problems[row] = str(error)
        return began

    def _next(self) -> Followed | None:
        with self._lock:
            return self._queue.pop(0) if self._queue else None

    def _free_device(self) -> str | None:
        """The device of the next training: the GPU with the fewest, where several trainings may run at once."""
        gpus = torch.cuda.device_count() if self.at_once > 1 and self.processes == 1 and not self.device else 0
        if gpus < 2:
            return self.device
        used = [training.device for row in self.rows if (training := background.find(row.folder))]
        return min((f"cuda:{i}" for i in range(gpus)), key=used.count)

    # ---- the widget ----

    def _build(self) -> None:
        self.message, self.notes, self.picture = widgets.HTML(), widgets.HTML(), Picture()
        one = "one after another" if self.at_once == 1 else f"{self.at_once} at once"
        above = [
            _button("Start all", "play", f"train all that is not done, {one}", self.start_all),
            _button("Stop", "stop", "stop what runs and empty the queue; Start all goes on with it", self.stop_all),
        ]
        beside = [_button("", "", "", lambda row=row: self._press(row)) for row in self.rows]
        self.buttons = [*above, *beside]
        self._cells = [[widgets.HTML() for _ in COLUMNS[:-1]] for _ in self.rows]
        cells = [widgets.HTML(), *(widgets.HTML(_cell(name, f"<b>{name}</b>")) for name in COLUMNS[:-1])]
        for button, row in zip(beside, self._cells, strict=True):  # buttons first, where a narrow page still shows them
            cells += [button, *row]
        columns = f"repeat({len(COLUMNS)}, max-content)"
        layout = {"grid_template_columns": columns, "grid_gap": "0 14px", "align_items": "center", "overflow": "auto"}
        grid = widgets.GridBox(cells, layout=layout)
        self.widget = widgets.VBox([widgets.HBox([*above, self.message]), grid, self.notes, self.picture])

    def refresh(self) -> None:
        """Start what may start and show what the files say now; the figure is drawn only if they say something new."""
        lines = [self._line(row) for row in self.rows]
        if self._start_next(sum(line["state"] in ("running", "stopping") for line in lines)):
            lines = [self._line(row) for row in self.rows]
        for line, cells, button in zip(lines, self._cells, self.buttons[2:], strict=True):
            for cell, name in zip(cells, COLUMNS, strict=False):
                text = f"{line[name]:.{NUMBERS[name]}f}" if name in NUMBERS else line[name]
                cell.value = _cell(name, html.escape("–" if text in ("", "nan") else text))
            action, icon = BUTTONS.get(line["state"], (line["state"].capitalize(), ""))
            button.description, button.icon, button.tooltip = action, icon, f"{action}: {line['run']}"
            button.disabled = line["state"] not in BUTTONS
        states = Counter(line["state"] for line in lines)
        self.message.value = ", ".join(f"{count} {state}" for state, count in states.items())
        self.notes.value = "".join(_note(row, line) for row, line in zip(self.rows, lines, strict=True) if line["note"])
        now = tuple(row.fingerprint() for row in self.rows)
        if now != self._drawn:
            figure = self.figure()
            self.picture.show(figure, describe(figure))
            self._drawn = now

    def _watch(self) -> None:
        """See to it that the files are looked at: now, and from now on."""
        if self._poller is None:
            self._poller = Poller(self)
            self._poller.start()
        self._poller.look.set()

    def _take_over(self) -> None:
        """End an older view of the same folder in this kernel and go on with its queue: its cell has been run again."""
        for thread in threading.enumerate():
            if isinstance(thread, Poller) and thread.view.folder == self.folder:
                thread.view.close("A newer view of this folder has taken over.")
                queued = [row.folder for row in thread.view._queue]
                self.start(*sorted((r for r in self.rows if r.folder in queued), key=lambda r: queued.index(r.folder)))


def _button(text: str, icon: str, tooltip: str, act) -> widgets.Button:
    button = widgets.Button(description=text, icon=icon, tooltip=tooltip, layout={"width": "104px"})
    button.on_click(lambda _: act())
    return button


def _cell(name: str, text: str) -> str:
    """Names and states begin at the left, as in a table; digits stand below each other."""
    side = "left" if name in ("run", "state") else "right"
    return f'<div style="text-align: {side}; font-variant-numeric: tabular-nums">{text}</div>'


def _note(row: Followed, line: dict[str, Any]) -> str:
    """What is unusual about a training; of one that failed, its last lines."""
    text = line["note"]
    if line["state"] == "failed" and background.failed(row.folder):
        text = background.last_words(row.folder) or text
    return f'<b>{html.escape(line["run"])}</b> <pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
