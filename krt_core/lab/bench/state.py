"""What is known of a job on disk: ``<folder>/jobs/<id>/`` with state.json, job.json, log.txt and notebook.ipynb."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic.dataclasses import dataclass

from ...errors import KRTError, RunError
from ...machine.home import atomic_write, resolve, stamp
from ...machine.locks import is_locked, try_lock
from ...options import STRICT
from ...runs.folder import Run
from .matrix import Job
from .notebooks import notebook_path

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"

# What job.json says of a job.
DESCRIBED = {"id": str, "group": str, "notebook": str, "parameters": dict, "run_folder": str, "needs": list}


@dataclass(frozen=True, config=STRICT)
class State:
    state: Literal["queued", "running", "done", "failed"] = "queued"
    attempts: int = 0  # starts so far
    reason: str = ""  # why it is not done
    kind: str = ""  # of the failure: error, time limit, out of memory, disk full, killed, stopped, start-up
    exit_code: int | None = None  # of its process; negative: the signal that killed it
    started_at: str = ""
    ended_at: str = ""
    seconds: float = 0.0  # over all attempts
    host: str = ""
    slot: str = ""
    versions: dict | None = None
    inputs: str = ""  # what an analysis has read


class JobFiles:
    """The files of one job below the folder of its matrix."""

    def __init__(self, folder: str | Path, job: Job):
        self.job, self.folder = job, Path(folder) / "jobs" / job.id
        self.notebook = self.folder / "notebook.ipynb"
        self.log = self.folder / "log.txt"
        self._run: Run | None = None
        self._seen: list[tuple[int, int]] = []  # experiment.yaml and DONE when they were read last
        self._finished = ""

    @classmethod
    def of(cls, folder: str | Path) -> JobFiles:
        """A job by its own folder, as `write_job` described it."""
        folder = Path(folder)
        try:
            content = json.loads((folder / "job.json").read_text(encoding="utf-8"))
            wrong = [key for key, kind in DESCRIBED.items() if not isinstance(content[key], kind)]
        except (ValueError, RecursionError, LookupError, TypeError):
            wrong = list(DESCRIBED)
        wrong = wrong or not all(isinstance(name, str) for name in content["needs"])
        if wrong or content["id"] != folder.name:
            raise RunError(f"{folder / 'job.json'} does not describe the job {folder.name}: start the matrix again.")
        if content["run_folder"]:
            resolve(content["run_folder"])  # ConfigError for what no folder can be called
        job = Job(**{key: content[key] for key in DESCRIBED} | {"needs": tuple(content["needs"])})
        return cls(folder.parent.parent, job)

    @property
    def mark(self) -> str:
        """Names what the worker of this job has started among all processes of the machine."""
        return str(self.folder)

    @property
    def worker_mark(self) -> str:
        """That of workers, so that one which ends what it has started cannot end another worker of the job."""
        return f"{self.folder} worker"

    def write_job(self) -> Path:
        """What its process needs to know."""
        content = {
            "id": self.job.id, "group": self.job.group, "notebook": str(notebook_path(self.job.notebook)),
            "parameters": self.job.parameters, "run_folder": self.job.run_folder, "needs": list(self.job.needs),
        }  # fmt: skip
        path, text = self.folder / "job.json", json.dumps(content, indent=1)
        with contextlib.suppress(OSError, ValueError):
            # A start of a matrix that is nearly done writes what is new alone.
            if path.read_text(encoding="utf-8") == text:
                return path
        return atomic_write(path, text)

    def read(self) -> State:
        """The stored state; a file that cannot be read counts as a job that never started."""
        try:
            content = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            known = {key: value for key, value in content.items() if key in State.__dataclass_fields__}
            return State(**known)
        except (FileNotFoundError, ValueError, RecursionError, AttributeError):  # ValidationError is a ValueError
            return State()

    def write(self, **changes: Any) -> State:
        state = replace(self.read(), **changes)
        atomic_write(self.folder / "state.json", json.dumps(asdict(state), indent=1))
        return state

    def current(self, inputs: str = "", mine: bool = False) -> State:
        """The state as it is in truth, whatever was written last: done is what the run folder (or the inputs of an
        analysis) says, unless its notebook was cut off after that, before its figures; running is a job whose process
        holds its lock. mine: the caller holds it, so nobody runs it."""
        state = self.read()
        cut = state.state == RUNNING or (state.state == QUEUED and state.kind)
        done = self.finished and not cut if self.job.trains else state.state == DONE and state.inputs == inputs
        if done:
            return replace(state, state=DONE, reason="", kind="")
        if not mine and self.held():
            return replace(state, state=RUNNING)
        if state.state == RUNNING:
            return replace(state, state=QUEUED, kind="killed", reason="its process was killed")
        return replace(state, state=QUEUED) if state.state == DONE else state

    @property
    def run(self) -> Run | None:
        """The run folder of a training, once there is one."""
        self._look()
        return self._run

    @property
    def finished(self) -> str:
        """What DONE holds once the training is done, else empty."""
        self._look()
        return self._finished

    def _look(self) -> None:
        """Read the run folder where it has changed: a hundred of them are asked for twice a second."""
        if not self.job.trains:
            return
        folder = Path(self.job.run_folder)
        now = [stamp(folder / name) for name in ("experiment.yaml", "DONE")]
        if now != self._seen:
            run, finished = None, ""
            with contextlib.suppress(KRTError):  # of a newer version, say: its training says so when it is started
                found = Run(folder)
                if found.done:
                    finished = (folder / "DONE").read_text(encoding="utf-8")
                run = found
            self._run, self._finished, self._seen = run, finished, now

    # ---- one process per job ----

    def lock(self) -> IO | None:
        """Hold the job until the returned file, and those that other processes inherit, are closed; a killed process
        lets go of it. None where another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / "lock").open("a", encoding="utf-8")
        for wait in (0.2, 0.2, 0):  # someone may only have looked
            if try_lock(file):
                return file
            time.sleep(wait)
        file.close()
        return None

    def held(self) -> bool:
        """Does a process work on the job?"""
        return is_locked(self.folder / "lock")


def now() -> str:
    return datetime.now().isoformat(timespec="seconds")


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def inputs_of(needed: list[JobFiles]) -> str:
    """Says which finished runs an analysis reads: it is to be repeated when this changes."""
    found = [(f.job.id, finished) for f in needed if (finished := f.finished)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def host() -> str:
    return os.uname().nodename
