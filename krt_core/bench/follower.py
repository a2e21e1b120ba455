"""The other machines of runs that span several: each starts its processes of whatever the main one is running."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from ..home import atomic_write
from ..processes import MARK, end_job, parent_is_this, with_parent
from . import state as s
from .matrix import Job, Matrix
from .slots import find_slots, take
from .state import JobFiles
from .view import View

ENDED = "ended"  # file in the matrix folder: the main machine has nothing left to run


def follow(matrix: Matrix, jobs: list[Job], rank: int, view: View, interval: float = 1.0) -> int:
    """Take part in the runs of the main machine, which shares the folder of the matrix, until it has none left."""
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs if job.trains}
    view.say(f"machine {rank} of {matrix.nnodes}: follows {matrix.rendezvous} in {matrix.folder}")
    joined: tuple[str, int] | None = None
    process: subprocess.Popen | None = None
    ended = Path(matrix.folder) / ENDED
    before = ended.stat().st_mtime if ended.is_file() else 0.0  # of an earlier start
    try:
        while not (ended.is_file() and ended.stat().st_mtime > before):
            now = _running(files)
            if now != joined:
                _end(process, files, joined, rank)
                process, joined = (_join(matrix, files[now[0]], rank) if now else None), now
                if now:
                    view.say(f"{now[0]}: takes part in attempt {now[1]}")
            time.sleep(interval)
    finally:
        _end(process, files, joined, rank)
    return 0


def tell_followers(matrix: Matrix) -> None:
    """Let the other machines know that nothing is left."""
    atomic_write(Path(matrix.folder) / ENDED, s.now())


def _running(files: dict[str, JobFiles]) -> tuple[str, int] | None:
    """The job that the main machine works on, and its attempt."""
    for name, f in files.items():
        state = f.read()
        if state.state == s.RUNNING:
            return name, state.attempts
    return None


def _mark(files: JobFiles, rank: int) -> str:
    return f"{files.mark} on machine {rank}"


def _join(matrix: Matrix, files: JobFiles, rank: int) -> subprocess.Popen:
    preset = files.folder / f"machine_{rank}.yaml"
    atomic_write(preset, files.job.experiment.to_yaml())
    command = with_parent(
        "krt_core.cli", "train", str(preset), "--folder", files.job.run_folder,
        "--processes", str(matrix.gpus_per_run), "--nnodes", str(matrix.nnodes), "--node-rank", str(rank),
        "--rendezvous", matrix.rendezvous,
    )  # fmt: skip
    slots = find_slots(matrix.workers, matrix.gpus_per_run)
    while (slot := take(slots, matrix.gpus_per_run)) is None:
        time.sleep(1)
    environment = {**os.environ, **parent_is_this(), **slots.environment(slot.names), MARK: _mark(files, rank)}
    with (files.folder / f"machine_{rank}.txt").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=slot.descriptors,
        )  # fmt: skip
    slot.close()
    return process


def _end(
    process: subprocess.Popen | None, files: dict[str, JobFiles], joined: tuple[str, int] | None, rank: int
) -> None:
    if process is not None and joined is not None:
        end_job(_mark(files[joined[0]], rank), grace=5.0)
        process.wait()
