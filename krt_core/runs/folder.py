"""The run folder: what a training writes and everything else reads.

::

    <folder>/experiment.yaml   environment.json   log.txt   progress.json   metrics.jsonl   resume.pt   DONE
    <folder>/session_00/       model.safetensors  scores.npz  ahead.npz  state.json

Everything is written to a temporary name and renamed. Nothing is unpickled: ``resume.pt`` holds plain tensors and
numbers and is loaded with ``weights_only=True``.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..config import Experiment, experiment_from, parse_yaml
from ..errors import RunError
from ..machine.home import atomic_write, outputs_dir, resolve
from ..machine.locks import only_one
from ..metrics import forgetting
from ..options import METHODS
from ..protocol import Protocol, protocol_of
from .state import join, split
from .summary import ap_tables, summary_of


class Run:
    """Reads (and, during training, writes) one run folder."""

    def __init__(self, folder: str | Path):
        self.folder = resolve(folder)
        if not (self.folder / "experiment.yaml").is_file():
            raise RunError(f"{self.folder} is no run folder: it has no experiment.yaml.")

    @classmethod
    def create(cls, experiment: Experiment, folder: str | Path | None = None) -> Run:
        """The folder of an experiment, made if needed. Raises RunError if it holds another experiment."""
        path = resolve(folder) if folder else outputs_dir() / experiment.run_name()
        existing = path / "experiment.yaml"
        if existing.is_file():
            run = cls(path)
            if (run.experiment.hash(), run.experiment.seed) != (experiment.hash(), experiment.seed):
                raise RunError(f"{path} holds another experiment: choose another folder, or delete it to start afresh.")
            return run
        atomic_write(existing, experiment.to_yaml())
        return cls(path)

    @cached_property
    def experiment(self) -> Experiment:
        path = self.folder / "experiment.yaml"
        return experiment_from(parse_yaml(path.read_text(), str(path)), str(path), stored=True)

    @property
    def done(self) -> bool:
        """Is the run complete, by a DONE file of this very configuration?"""
        return self.summary is not None

    @property
    def summary(self) -> dict | None:
        """Content of DONE, or None while the run is unfinished."""
        content = _read_json(self.folder / "DONE")
        if content and isinstance(self.experiment.options, dict):  # without its method's defaults there is no hash
            return content
        return content if content and content.get("config_hash") == self.experiment.hash() else None

    @property
    def finished_sessions(self) -> int:
        """Sessions whose state.json (written last) is there, counted from the first without a gap."""
        count = 0
        while (self.session_folder(count) / "state.json").is_file():
            count += 1
        return count

    def session_folder(self, session: int) -> Path:
        return self.folder / f"session_{session:02d}"

    def session_state(self, session: int) -> dict:
        state = _read_json(self.session_folder(session) / "state.json")
        if state is None:
            raise RunError(f"{self.folder.name} has not finished session {session + 1}.")
        return state

    @property
    def environment(self) -> dict:
        return _read_json(self.folder / "environment.json") or {}

    @property
    def leak(self) -> str | None:
        """Why its first weights had seen the labels to be learned (``--allow-leak``); None: no reason known."""
        return (self.environment.get("weights") or {}).get("leak")

    @property
    def progress(self) -> dict:
        return _read_json(self.folder / "progress.json") or {}

    @property
    def epochs(self) -> list[dict]:
        """Lines of metrics.jsonl; a line cut short by a crash is left out."""
        path = self.folder / "metrics.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol as this run used it, from the classes stored with its first session."""
        state = self.session_state(0)
        made = protocol_of(self.experiment.protocol, tuple(sorted(state["classes"])))
        if list(made.classes) != state["classes"]:
            raise RunError(f"{self.folder}: the stored class order does not follow from its protocol.")
        return made

    def method_state(self, session: int) -> dict:
        """What the method kept after a session, tensors included."""
        path = self.session_folder(session) / "method.safetensors"
        tensors = load_file(path) if path.is_file() else {}
        return join(self.session_state(session)["method"], tensors)

    def scores(self, session: int) -> Scores:
        """Scores of the whole test set after a session."""
        path = self.session_folder(session) / "scores.npz"
        if not path.is_file():
            raise RunError(f"{path} is missing: session {session + 1} of {self.folder.name} is not finished.")
        with np.load(path, allow_pickle=False) as stored:
            classes = len(self.protocol.classes)
            labels = np.unpackbits(stored["labels"], axis=1, count=classes).astype(bool)
            return Scores(stored["ids"], stored["scores"], labels)

    def ahead(self, session: int) -> Ahead | None:
        """What the model after a session said to the next one's training images; None if no method asked."""
        path = self.session_folder(session) / "ahead.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            return Ahead(stored["ids"], stored["scores"])

    @cached_property
    def ap_tables(self) -> dict[str, np.ndarray]:
        """AP (sessions, classes) of the finished sessions on each pool of test images, see `ap_tables`."""
        scores = (self.scores(t) for t in range(self.finished_sessions))
        return ap_tables(self.protocol, [(s.scores, s.labels) for s in scores])

    @property
    def first_session(self) -> np.ndarray:
        """(C,) session in which each class was learned, for the classes learned so far."""
        sessions = self.protocol.sessions[: self.finished_sessions]
        return np.concatenate([np.full(s.stop - s.start, s.index) for s in sessions])

    def forgetting(self) -> dict[str, float]:
        """Every definition of forgetting over the finished sessions (see `krt_core.metrics.forgetting`)."""
        learned = len(self.first_session)
        return forgetting({pool: table[:, :learned] for pool, table in self.ap_tables.items()}, self.first_session)

    def curve(self, key: str = "mAP_seen") -> np.ndarray:
        """One metric after each finished session."""
        return np.array([self.session_state(t)["metrics"][key] for t in range(self.finished_sessions)])

    def final_summary(self) -> dict:
        """What DONE holds: the numbers of the whole run, from its session states and scores."""
        states = [self.session_state(t) for t in range(len(self.protocol.sessions))]
        about = {
            "method": self.experiment.method,
            "dataset": self.experiment.data.dataset,
            "protocol": self.protocol.name,
            "seed": self.experiment.seed,
        }
        made_by = {"config_hash": self.experiment.hash(), "commit": self.environment.get("commit")}
        return about | summary_of(states, self.forgetting()) | made_by

    # ---- writing ----

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for one training; RunError if another process does. A killed process releases it."""
        taken = RunError(f"{self.folder} is being trained by another process; wait for it or stop it.")
        return only_one(self.folder / ".lock", taken)

    def append_epoch(self, record: dict) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # on disk before the resume file that counts on it

    def drop_epochs_after(self, session: int, epoch: int) -> None:
        """Forget lines at or after a position: they will be made again."""
        kept = [e for e in self.epochs if (e["session"], e["epoch"]) < (session, epoch)]
        atomic_write(self.folder / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in kept))

    def write_json(self, name: str, content: dict) -> None:
        atomic_write(self.folder / name, json.dumps(content, indent=1))

    def write_session(
        self, session: int, tensors: dict[str, Tensor], scores: Scores, state: dict, ahead: Ahead | None = None
    ) -> None:
        """Weights, scores and state of a finished session; state.json, written last, makes it count."""
        folder = self.session_folder(session)
        method, kept = split(state["method"])
        header = {
            "format": "pt",
            "krt": json.dumps({"experiment": self.experiment.to_dict(), "classes": state["classes"]}),
        }
        atomic_write(folder / "model.safetensors", save(_plain(tensors), header))
        packed = np.packbits(scores.labels, axis=1)
        atomic_write(
            folder / "scores.npz", lambda file: np.savez(file, ids=scores.ids, scores=scores.scores, labels=packed)
        )
        if ahead is not None:
            atomic_write(folder / "ahead.npz", lambda file: np.savez(file, ids=ahead.ids, scores=ahead.scores))
        if kept:
            atomic_write(folder / "method.safetensors", save(_plain(kept)))
        atomic_write(folder / "state.json", json.dumps({**state, "method": method}, indent=1))

    def check_made_with(self, stored: dict[str, Any], now: dict[str, Any]) -> None:
        """RunError if what the run was begun with (inputs, max_steps, processes) is not what it would go on with."""
        if stored["inputs"] != now["inputs"]:
            raise RunError(f"{self.folder}: the data set has changed since this run began. Start it in a new folder.")
        if stored["max_steps"] != now["max_steps"]:
            raise RunError(
                f"{self.folder} was begun with --max-steps {stored['max_steps']}, which is not this training. "
                "Delete it or choose another --folder."
            )
        if stored["processes"] != now["processes"]:
            raise RunError(
                f"{self.folder} was begun in {stored['processes']} processes, and with train.batch_norm=batch each "
                "takes statistics of its own images: another number is another training. "
                f"Go on with --processes {stored['processes']}, or choose another --folder."
            )

    def model_state(self, session: int) -> dict[str, Tensor]:
        return load_file(self.session_folder(session) / "model.safetensors")

    def save_resume(self, content: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # torch.save would not say that a disk is full
        torch.save(content, buffer)
        atomic_write(self.folder / "resume.pt", lambda file: file.write(buffer.getbuffer()))

    def load_resume(self) -> dict[str, Any] | None:
        path = self.folder / "resume.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def clear_resume(self) -> None:
        (self.folder / "resume.pt").unlink(missing_ok=True)


@dataclass(frozen=True)
class Scores:
    """ids (n,) of the test images, scores (n, C seen) float32 in learning order, labels (n, all classes) bool."""

    ids: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Ahead:
    """ids (m,) of the images the next session trains on, as often as it shows them, and scores (m, C seen) float32."""

    ids: np.ndarray
    scores: np.ndarray


def find_runs(folder: str | Path = "outputs", **wanted: Any) -> list[Run]:
    """Every run under ``folder``, `in_order`; ``method="krt"`` and such keep those whose experiment has it."""
    runs = [Run(path.parent) for path in sorted(resolve(folder).rglob("experiment.yaml"))]
    return in_order([r for r in runs if all(getattr(r.experiment, key) == value for key, value in wanted.items())])


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


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: on the CPU, none sharing memory with another."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _read_json(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:  # no JSON, or no text at all
        raise RunError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold a JSON object, found a {type(content).__name__}.")
    return content
