"""What the files of a run folder say about its training now."""

from __future__ import annotations

import contextlib
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Experiment
from ...errors import KRTError
from ...machine.home import stamp
from ...methods import class_of, is_oracle
from ...runs.folder import Run
from . import background

NUMBERS = {"mAP seen (%)": 2, "average mAP (%)": 2, "images/s": 0}  # column → decimals
COLUMNS = ("run", "state", "session", "epoch", *NUMBERS, "mAP of", "time left", "note")


class Followed:
    """An experiment and its run folder, which need not exist yet. Reading is cheap enough for once a second: what grows
    is read again only after it has changed."""

    def __init__(self, experiment: Experiment, folder: Path):
        self.experiment, self.folder = experiment, folder
        self.label = folder.name  # how the run is called in tables
        self._run: Run | None = None
        self._seen: tuple | None = None  # files that `_results` is from
        self._results: dict[str, Any] = {}

    @property
    def run(self) -> Run | None:
        """The run folder; None before the first start."""
        if not (self.folder / "experiment.yaml").is_file():
            self._run = None
        elif self._run is None:
            self._run = Run(self.folder)
        return self._run

    @property
    def opened(self) -> Run | None:
        """The run folder where its configuration can be read; of a newer version it cannot, which `read` says."""
        with contextlib.suppress(KRTError):
            return self.run if self.run and self.run.experiment else None
        return None

    @property
    def leak(self) -> str | None:
        """As of a `Run`, so that `krt_core.lab.report.names_of` can name this."""
        return self.run.leak if self.run else None

    @property
    def oracle(self) -> bool:
        """By its experiment, so that it is marked before it begins."""
        return is_oracle(class_of(self.experiment.method), self.experiment.options)

    @property
    def mixed(self) -> list[str]:
        return self.run.mixed if self.run else []

    @property
    def data(self) -> dict[str, str]:
        return self.run.data if self.run else {}

    def read(self) -> dict[str, Any]:
        """One value per column: state (waiting, running, stopped, done or failed), session and epoch as "2/5", mAP in
        percent, time left as h:mm:ss, and a note on what is unusual. Before there is one: NaN for numbers, else ""."""
        line = dict.fromkeys(COLUMNS, "") | dict.fromkeys(NUMBERS, math.nan) | {"run": self.label, "state": "waiting"}
        try:
            return line | self._read()
        except (KRTError, OSError) as error:  # a folder that is deleted while it is read, or a broken file
            return line | {"state": "failed", "note": str(error)}

    def fingerprint(self) -> tuple:
        """Changes whenever the run has a new epoch or another finished session."""
        run = self.run
        return (run is not None, stamp(self.folder / "metrics.jsonl"), run.finished_sessions if run else 0)

    def _read(self) -> dict[str, Any]:
        training = background.find(self.folder)  # before the rest: what it wrote last is there once it is gone
        run = self.run
        if run is None:
            return {}
        if (now := self.fingerprint()) != self._seen:
            self._results, self._seen = _results(run), now
        progress, note, left = run.progress, "", ""
        if training:
            state = "running"
            note = "" if training.own else f"trained by {training}, not started here"
            fresh = stamp(self.folder / "progress.json")[0] > training.created * 1e9
            if not fresh:
                note = note or "starting"
            elif "session" not in progress:
                note = note or str(progress.get("task", ""))
            elif progress.get("eta_seconds") is not None:
                left = str(timedelta(seconds=round(progress["eta_seconds"])))
        elif run.done:
            state, progress = "done", {**progress, "session": run.finished_sessions - 1}
        elif background.failed(self.folder):
            state, note = "failed", background.last_words(self.folder, 1) or "ended without a word"
        else:
            state = "stopped" if progress or run.epochs else "waiting"
        return {"state": state, "time left": left, "note": note, **_place(progress), **self._results}


def _results(run: Run) -> dict[str, Any]:
    """The newest mAP of seen classes, its mean over the finished sessions, and the rate of the last epoch."""
    curve, epochs = run.curve(), run.epochs
    validated = [e for e in epochs if "mAP_seen" in e and e["session"] >= len(curve)][-1:]
    values = [*curve, *(e["mAP_seen"] for e in validated)]
    tested = run.experiment.data.test  # what the numbers after a session are of
    return {
        "mAP of": f"{validated[0].get('mAP_of', tested) if validated else tested} images" if values else "",
        "mAP seen (%)": round(float(values[-1]), 2) if values else math.nan,
        "average mAP (%)": round(float(np.mean(curve)), 2) if len(curve) else math.nan,
        "images/s": epochs[-1]["images_per_second"] if epochs else math.nan,
    }


def _place(progress: dict) -> dict[str, str]:
    """Session and epoch, as in "2/5"; a training that still decodes its images has none."""
    if not {"session", "sessions", "epoch", "epochs"} <= progress.keys():
        return {}
    return {
        "session": f"{progress['session'] + 1}/{progress['sessions']}",
        "epoch": f"{progress['epoch'] + 1}/{progress['epochs']}",
    }
