"""The run folder: what a training writes and everything else reads.

::

    <folder>/experiment.yaml   environment.json   log.txt   progress.json   metrics.jsonl   resume.pt   README.md   DONE
    <folder>/session_00/       model.safetensors  scores.npz  ap.npz  ahead.npz  calibration.json  state.json

Everything is written to a temporary name and renamed. Nothing is unpickled: ``resume.pt`` holds plain tensors and
numbers and is loaded with ``weights_only=True``. What each file holds, and what becomes of one that is damaged, stands
in docs/runs.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Experiment
from ..errors import KRTError, RunError
from ..machine.home import append_line, atomic_write, outputs_dir, resolve, sweep
from ..machine.locks import only_one
from ..options import METHODS
from . import configuration
from .calibration import Calibration
from .card import card
from .files import is_still, to_json, write_tensors
from .reader import Reader
from .scores import Ahead, Scores, write_ap
from .starts import precision_of
from .state import split
from .summary import ap_of_session

__all__ = ["Ahead", "Run", "Scores", "find_runs", "in_order"]


class Run(Reader):
    """A run folder, read and, during training, written."""

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self.taken: list[str] = []  # what a start asks for differently, see `settle`

    @classmethod
    def create(cls, experiment: Experiment, folder: str | Path | None = None) -> Run:
        """The folder of an experiment, made if needed.

        Where it is there already, what may differ (see `krt_core.runs.configuration`) is as it is asked for now, once
        `settle` is called. Raises RunError if it holds another experiment.
        """
        path = resolve(folder) if folder else outputs_dir() / experiment.run_name()
        if not (path / "experiment.yaml").is_file():
            configuration.write(path, experiment)
            return cls(path)
        run = cls(path)
        try:
            stored = run.experiment
        except RunError as error:
            model = run.session_folder(0) / "model.safetensors"
            if run.finished_sessions and not configuration.made_by(model, experiment):
                raise
            configuration.write(path, experiment)
            run.experiment, run.taken = experiment, [str(error)]
            return run
        run.experiment, run.taken = configuration.taken(path, stored, experiment, precision_of(run.starts))
        return run

    def settle(self, log: Callable[[str], None]) -> None:
        """Write down, and say, what the start that has just opened the folder asks for differently."""
        if self.taken:
            configuration.write(self.folder, self.experiment)
        for line in self.taken:
            log(line)
        self.taken = []

    @contextlib.contextmanager
    def lock(self, main: bool = True) -> Iterator[None]:
        """Hold the folder for one training, by its main process; RunError if another one does. A killed process
        releases it, and what it left half written is removed."""
        if not main:
            yield
            return
        taken = RunError(f"{self.folder} is being trained by another process; wait for it or stop it.")
        with only_one(self.folder / ".lock", taken):
            sweep(self.folder, deep=True)
            yield

    def append_epoch(self, record: dict) -> None:
        # On disk before the resume file that counts on it.
        append_line(self.folder / "metrics.jsonl", to_json(record), flush=True)

    def drop_after(self, session: int, epoch: int) -> None:
        """Forget what lies at or after a position: it will be made again. What was left of later sessions, where
        someone has taken one out, must not count once that one is there again."""
        lines = self.epochs
        own = [e for e in lines if e["session"] == session]  # after its epochs may stand a line of what needs none
        kept = [e for e in lines if e["session"] < session] + own[:epoch]
        atomic_write(self.folder / "metrics.jsonl", "".join(to_json(e) + "\n" for e in kept))
        for path in self.folder.glob("session_*/state.json"):
            if int(path.parent.name.removeprefix("session_")) >= session:
                path.unlink()
        if self.done and not self.complete:
            (self.folder / "DONE").unlink()
            (self.folder / "README.md").unlink(missing_ok=True)

    @property
    def features(self) -> Path:
        """Folder for what a backbone that this run has learned makes of images; gone when the run is done."""
        return self.folder / "features"

    def drop_features(self) -> None:
        shutil.rmtree(self.features, ignore_errors=True)

    def write_done(self, summary: dict) -> None:
        """The run is complete: its card, and last its numbers, `final_summary`, by which it counts."""
        self.clear_resume()  # a start that was killed as it had finished the last session has left it
        atomic_write(self.folder / "README.md", card(self, summary))
        self.write_json("DONE", summary)

    def write_json(self, name: str, content: dict) -> None:
        atomic_write(self.folder / name, to_json(content, indent=1))

    def write_session(
        self,
        session: int,
        tensors: dict[str, Tensor],
        scores: Scores,
        state: dict,
        ahead: Ahead | None = None,
        still: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        """Weights, scores and state of a finished session; state.json, written last, makes it count. still: the
        backbone is that of the first session and left out of the file of a later one."""
        folder = self.session_folder(session)
        if still and session:
            tensors = {name: tensor for name, tensor in tensors.items() if not is_still(name)}
        method, kept = split(state["method"])
        header = json.dumps({"experiment": self.experiment.to_dict(), "classes": state["classes"]})
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt", "krt": header})
        scores.write(folder / "scores.npz")
        ap = ap_of_session(self._protocol(state["classes"]), session, scores.scores, scores.labels, scores.ids)
        write_ap(folder / "ap.npz", ap)
        if ahead is not None:
            ahead.write(folder / "ahead.npz")
        if calibration is not None:
            calibration.write(folder / "calibration.json")
        if kept:
            write_tensors(folder / "method.safetensors", kept)
        size = sum(tensor.nbytes for tensor in kept.values())
        self.write_json(f"{folder.name}/state.json", {**state, "method": method, "method_bytes": size})

    def fewer_at_a_time(self) -> str:
        """What helps where there is too little memory to look at images, in words."""
        most = self.experiment.train.eval_batch_size
        if most == 1:
            return "One image at a time is the least. Free memory, or take a machine with more."
        return f"Set train.eval_batch_size={most // 2}: so many images are looked at together. The same folder goes on."

    def save_resume(self, content: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # torch.save would not say that a disk is full
        torch.save(content, buffer)
        atomic_write(self.folder / "resume.pt", lambda file: file.write(buffer.getbuffer()))

    def clear_resume(self) -> None:
        (self.folder / "resume.pt").unlink(missing_ok=True)


def find_runs(folder: str | Path = "outputs", **wanted: Any) -> list[Run]:
    """Every run under ``folder``, `in_order`; ``method="krt"`` and such keep those whose experiment has it.

    A folder that cannot be read, as one of a newer version, is left out with a warning.
    """
    runs = []
    for path in sorted(resolve(folder).rglob("experiment.yaml")):
        try:
            run = Run(path.parent)
            experiment = run.experiment
        except KRTError as error:
            warnings.warn(f"left out: {path.parent.name}: {error}", stacklevel=2)
            continue
        if all(getattr(experiment, key) == value for key, value in wanted.items()):
            runs.append(run)
    return in_order(runs)


def in_order(runs: list[Run]) -> list[Run]:
    """Runs in the order of the method registry, then by exemplars, what else is changed, class order and seed."""
    known = list(METHODS)

    def rank(run: Run) -> tuple:
        e, order = run.experiment, run.experiment.protocol.order_seed
        changes = e.changes()
        kept = len(changes), json.dumps(changes, sort_keys=True, default=str)
        place = known.index(e.method) if e.method in known else len(known)  # those of others come last, by name
        return place, e.method, e.replay.per_class, e.replay.budget, kept, -1 if order is None else order, e.seed

    return sorted(runs, key=rank)
