"""The jobs of a matrix on a Slurm cluster, through submitit: an array of runs, requeued when they are preempted."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...errors import ConfigError, RunError
from ...machine.home import atomic_write
from ...machine.processes import end_child, out_of_memory_kills
from . import state as s
from .matrix import Job, Matrix, seconds_of
from .start import record_ending, start_worker
from .state import JobFiles, State
from .view import View
from .worker import CODES

INTERVAL = 10.0  # seconds between two questions to Slurm, which serves everyone
PATIENCE = 1800.0  # seconds for which it may fail to answer


class ClusterJob:
    """What submitit calls on a node: the process of one job, started again as on this machine. Slurm's warning (before
    the time limit, or when the job is preempted) ends it and queues it again; it then goes on after its last finished
    epoch."""

    process: subprocess.Popen | None = None

    def __call__(self, folder: str, time_limit: float | None = None, gpus: int = 0) -> int:
        files, ended_by = JobFiles.of(folder), Counter()
        environment = {"OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"), **os.environ}
        if (lock := files.lock()) is None:
            return CODES["elsewhere"]
        with lock:
            again = True
            while again:
                kills = out_of_memory_kills()
                self.process = start_worker(files, lock, f"slurm {_own_id()}", time_limit, gpus, environment)
                while self.process.poll() is None:  # not wait(): `checkpoint` interrupts it and could not wait then
                    time.sleep(0.5)
                state = record_ending(files, self.process.returncode, kills, ended_by)
                again = state.state == s.QUEUED and state.kind != "stopped"
        return self.process.returncode

    def checkpoint(self, folder: str, time_limit: float | None = None, gpus: int = 0) -> Any:
        """submitit's question what to queue again: the same, once this process has ended."""
        import submitit

        if self.process is not None:
            end_child(self.process, grace=20)
        return submitit.helpers.DelayedSubmission(ClusterJob(), folder, time_limit, gpus)


def _own_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "?")


def run_on_slurm(
    matrix: Matrix, jobs: list[Job], view: View, retry_failed: bool = False, tried: Collection[str] = ()
) -> bool:
    """Submit what is neither done nor in the queue, and watch until Slurm has nothing left of it. tried: jobs that are
    not submitted again where they have failed.

    Ctrl-C ends the watching, not the jobs. Returns whether everything is done.
    """
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
    queue = _queue()
    again = {name for name in files if retry_failed and name not in tried}
    wanted = [f for f in _wanted(files, queue, again) if _reset(f)]
    trainings, analyses = [f for f in wanted if f.job.trains], [f for f in wanted if not f.job.trains]
    view.begin(f"{len(wanted)} of {len(jobs)} jobs to submit to Slurm", matrix.folder)
    left = ""
    try:
        if trainings:
            queue |= _submit(matrix, trainings, [])
        if analyses:
            arrays = {_id(f).split("_")[0] for f in files.values() if f.job.trains and _id(f) in queue}
            queue |= _submit(matrix, analyses, sorted(arrays))
        left = "the jobs go on; the same command watches them again"
        _watch(files, queue, view)
        left = ""
    finally:
        states = _states(files)
        view.end(files, states)
        if left:
            view.say(left)
    return all(state.state == s.DONE for state in states.values())


def _wanted(files: dict[str, JobFiles], queue: set[str], again: Collection[str]) -> list[JobFiles]:
    """What is to be submitted: an analysis that is done too, where a training it reads is still to end."""
    states, wanted = _states(files), []
    moving = {name for name, state in states.items() if state.state == s.RUNNING or _id(files[name]) in queue}
    for name, state in states.items():  # trainings first
        if name in moving or (state.state == s.FAILED and name not in again):
            continue
        if state.state != s.DONE or moving & set(files[name].job.needs):
            wanted.append(files[name])
            moving.add(name)
    return wanted


def _reset(files: JobFiles) -> bool:
    """Make a job ready to be submitted, unless a process has begun with it."""
    if (lock := files.lock()) is None:
        return False
    with lock:
        files.write_job()
        files.write(state=s.QUEUED, kind="", reason="")
    return True


def _watch(files: dict[str, JobFiles], queue: set[str], view: View) -> None:
    """Show how far everything is until Slurm has nothing left. A controller that is away for a while is waited for."""
    answered = time.monotonic()
    while True:
        try:
            queue, answered = _queue(), time.monotonic()
        except RunError:
            if time.monotonic() - answered > PATIENCE:
                raise
        states = _states(files)
        view.show(files, states)
        if not any(state.state == s.RUNNING or _id(files[name]) in queue for name, state in states.items()):
            return
        time.sleep(INTERVAL)


def _states(files: dict[str, JobFiles]) -> dict[str, State]:
    return {name: f.current(s.inputs_of([files[other] for other in f.job.needs])) for name, f in files.items()}


def _submit(matrix: Matrix, wanted: list[JobFiles], after: list[str]) -> set[str]:
    """Submit jobs as one array that starts after the given ones have ended; returns their ids."""
    import submitit

    asked = matrix.slurm
    executor = submitit.AutoExecutor(
        folder=Path(matrix.folder) / "slurm", cluster="slurm", slurm_max_num_timeout=asked.requeues
    )
    options = {**asked.options, **({"dependency": f"afterany:{':'.join(after)}"} if after else {})}
    executor.update_parameters(
        name=f"krt-{Path(matrix.folder).name}", timeout_min=asked.minutes, cpus_per_task=asked.cpus_per_run,
        slurm_array_parallelism=asked.at_once, slurm_additional_parameters={"requeue": True, **options},
        slurm_signal_delay_s=min(90, max(15, asked.minutes * 6)),
    )  # fmt: skip
    if asked.partition:
        executor.update_parameters(slurm_partition=asked.partition)
    if asked.memory_gb:
        executor.update_parameters(mem_gb=asked.memory_gb)
    gpus = max(asked.gpus, matrix.gpus_per_run) if asked.gpus else 0
    if gpus:
        executor.update_parameters(gpus_per_node=gpus)
    count, limit = len(wanted), seconds_of(matrix.time_limit)
    try:
        made = executor.map_array(ClusterJob(), [str(f.folder) for f in wanted], [limit] * count, [gpus] * count)
    except (submitit.core.utils.FailedJobError, OSError) as error:
        raise RunError(f"Slurm did not take the jobs: {error}") from None
    for files, job in zip(wanted, made, strict=True):
        atomic_write(files.folder / "slurm_id", job.job_id)
    return {job.job_id for job in made}


def _id(files: JobFiles) -> str:
    """Slurm's id of a job that was submitted; else empty. In a file that only who submits writes: the worker may be
    writing state.json already."""
    file = files.folder / "slurm_id"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _queue() -> set[str]:
    """Ids of the user's jobs that Slurm has, waiting or running."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", getpass.getuser()]
    try:
        return set(
            subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout.split()
        )
    except FileNotFoundError:
        raise ConfigError("launch: slurm needs the commands of Slurm (squeue, sbatch) on this machine.") from None
    except subprocess.SubprocessError as error:
        raise RunError(f"squeue does not answer: {getattr(error, 'stderr', '') or error}") from None
