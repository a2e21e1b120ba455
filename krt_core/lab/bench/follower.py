"""The other machines of runs that span several: each starts its processes of whatever the main one is running."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ...launch import Machines
from ...machine.home import atomic_write
from ...machine.processes import MARK, end_job, parent_is_this, with_parent
from . import state as s
from .matrix import Job, Matrix
from .slots import find_slots, take
from .state import JobFiles
from .view import View

ENDED = "ended"  # file in the matrix folder: the main machine has nothing left to run
REJOINS = 3  # how often a machine's part of an attempt is started again after it has failed by itself
PATIENCE = 600.0  # seconds for which a main machine that has ended before may begin anew


def follow(matrix: Matrix, jobs: list[Job], rank: int, view: View, interval: float = 1.0) -> int:
    """Take part in the runs of the main machine, which shares the folder of the matrix, until it has none left."""
    if matrix.nnodes == 1:
        raise ConfigError("--node-rank is for runs on several machines: it needs --launch torchrun and --nnodes.")
    Machines(matrix.nnodes, rank, matrix.rendezvous)  # says what is wrong with them
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs if job.trains}
    view.say(f"machine {rank} of {matrix.nnodes}: follows {matrix.rendezvous} in {matrix.folder}")
    part = Part(matrix, files, rank, view)
    before, since = _ended_at(matrix), time.monotonic()  # of an earlier start, or of one that is over already
    try:
        while (at := _ended_at(matrix)) in (0, before):
            before = at
            part.look_after(_running(files))
            if part.joined is None and all(f.run is not None and f.run.done for f in files.values()):
                view.say("every run is done")
                break
            if part.joined is None and at and time.monotonic() - since > PATIENCE:
                view.say("the main machine has ended and did not begin anew: start this again once it runs")
                return 1
            time.sleep(interval)
    finally:
        part.end()
    return 0


@contextlib.contextmanager
def leading(matrix: Matrix) -> Iterator[None]:
    """While the main machine runs a matrix: whatever ends it, the others are told."""
    ended = Path(matrix.folder) / ENDED
    ended.unlink(missing_ok=True)
    try:
        yield
    finally:
        atomic_write(ended, s.now())


def _ended_at(matrix: Matrix) -> int:
    """When the main machine said that it has ended; 0 while it has not."""
    try:
        return (Path(matrix.folder) / ENDED).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _running(files: dict[str, JobFiles]) -> tuple[str, int] | None:
    """The job that the main machine works on, and its attempt."""
    for name, f in files.items():
        state = f.read()
        if state.state == s.RUNNING:
            return name, state.attempts
    return None


class Part:
    """This machine's processes of the run that the main one works on."""

    def __init__(self, matrix: Matrix, files: dict[str, JobFiles], rank: int, view: View):
        self.matrix, self.files, self.rank, self.view = matrix, files, rank, view
        self.joined: tuple[str, int] | None = None  # job and attempt
        self.process: subprocess.Popen | None = None
        self.failed, self.waits = 0, False

    def look_after(self, now: tuple[str, int] | None) -> None:
        """Leave what the main machine has left, join what it runs, see what has become of this part of it."""
        if now != self.joined:
            self.end()
            self.joined, self.failed = now, 0
        if self.joined is None:
            return
        if self.process is None:
            if self.failed <= REJOINS:
                self.start(*self.joined)
        elif self.process.poll():
            self.failed += 1
            again = "joins it again" if self.failed <= REJOINS else "joins its next attempt"
            code, log = self.process.returncode, self.log(self.joined[0])
            self.view.say(f"{self.joined[0]}: this machine's part ended with exit code {code}, see {log}; {again}")
            self.end()

    def start(self, name: str, attempt: int) -> None:
        """Start it, or wait: another start on this machine may have the slots."""
        matrix, files = self.matrix, self.files[name]
        slots = find_slots(matrix.workers, matrix.gpus_per_run)
        if (slot := take(slots, matrix.gpus_per_run)) is None:
            if not self.waits:
                self.view.say(f"{name}: waits for free {slots.kind} slots (taken by another krt bench)")
            self.waits = True
            return
        preset = files.folder / f"machine_{self.rank}.yaml"
        atomic_write(preset, files.job.experiment.to_yaml())
        command = with_parent(
            "krt_core.cli", "train", str(preset), "--folder", files.job.run_folder,
            "--processes", str(matrix.gpus_per_run), "--nnodes", str(matrix.nnodes), "--node-rank", str(self.rank),
            "--rendezvous", matrix.rendezvous,
        )  # fmt: skip
        environment = {**os.environ, **parent_is_this(), **slots.environment(slot.names), MARK: self.mark(name)}
        with slot, self.log(name).open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                pass_fds=slot.descriptors,
            )  # fmt: skip
        self.waits = False
        self.view.say(f"{name}: takes part in attempt {attempt}")

    def end(self) -> None:
        if self.process is not None:
            end_job(self.mark(self.joined[0]), grace=5.0)
            self.process.wait()
            self.process = None

    def log(self, name: str) -> Path:
        return self.files[name].folder / f"machine_{self.rank}.txt"

    def mark(self, name: str) -> str:
        return f"{self.files[name].mark} on machine {self.rank}"
