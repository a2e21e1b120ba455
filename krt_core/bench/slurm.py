"""The jobs of a matrix on a Slurm cluster, through submitit: an array of runs, requeued when they are preempted."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunError
from ..home import home
from ..processes import MARK, parent_is_this, with_parent
from . import state as s
from .matrix import Job, Matrix, seconds_of
from .state import JobFiles, State
from .view import View

PREFIX = "slurm "  # of the slot of a job that was submitted


class ClusterJob:
    """What submitit calls on a node: the process of one job. Slurm's warning (before the time limit, or when the job is
    preempted) ends it and queues it again; it then goes on after its last finished epoch."""

    process: subprocess.Popen | None = None

    def __call__(self, folder: str, time_limit: float | None = None) -> int:
        command = with_parent("krt_core.bench.worker", folder, "--slot", PREFIX + _own_id())
        command += ["--time-limit", str(time_limit)] if time_limit else []
        environment = {**os.environ, **parent_is_this(), MARK: folder, "KRT_HOME": str(home())}
        environment.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        with (Path(folder) / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.process.wait()

    def checkpoint(self, folder: str, time_limit: float | None = None) -> Any:
        """submitit's question what to queue again: the same, once this process has ended."""
        import submitit

        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return submitit.helpers.DelayedSubmission(ClusterJob(), folder, time_limit)


def _own_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "?")


def run_on_slurm(matrix: Matrix, jobs: list[Job], view: View, retry_failed: bool = False) -> bool:
    """Submit what is neither done nor in the queue, and watch until Slurm has nothing left of it.

    Ctrl-C ends the watching, not the jobs. Returns whether everything is done.
    """
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
    states, queue = _states(files), _queue()
    wanted = []
    for name, state in states.items():
        again = state.state == s.FAILED and retry_failed
        if again or (state.state == s.QUEUED and _id(state) not in queue):
            wanted.append(files[name])
    trainings, analyses = [f for f in wanted if f.job.trains], [f for f in wanted if not f.job.trains]
    view.begin(f"{len(wanted)} of {len(jobs)} jobs to submit to Slurm", matrix.folder)
    if trainings:
        _submit(matrix, trainings, [])
    if analyses:
        queue = _queue()
        arrays = {_id(state).split("_")[0] for state in _states(files).values() if _id(state) in queue}
        _submit(matrix, analyses, sorted(arrays))
    while True:
        queue, states = _queue(), _states(files)
        view.show(files, states)
        if not any(state.state == s.RUNNING or _id(state) in queue for state in states.values()):
            break
        time.sleep(2)
    view.end(files, states)
    return all(state.state == s.DONE for state in states.values())


def _states(files: dict[str, JobFiles]) -> dict[str, State]:
    return {name: f.current(s.inputs_of([files[other] for other in f.job.needs])) for name, f in files.items()}


def _submit(matrix: Matrix, wanted: list[JobFiles], after: list[str]) -> None:
    """Submit jobs as one array that starts after the given ones have ended."""
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
    if asked.gpus:
        executor.update_parameters(gpus_per_node=asked.gpus)
    for files in wanted:
        files.write_job()
    count, limit = len(wanted), seconds_of(matrix.time_limit)
    try:
        made = executor.map_array(ClusterJob(), [str(f.folder) for f in wanted], [limit] * count)
    except (submitit.core.utils.FailedJobError, OSError) as error:
        raise RunError(f"Slurm did not take the jobs: {error}") from None
    for files, job in zip(wanted, made, strict=True):
        files.write(state=s.QUEUED, slot=PREFIX + job.job_id, kind="", reason="")


def _id(state: State) -> str:
    """Slurm's id of a job that was submitted; else empty."""
    return state.slot.removeprefix(PREFIX) if state.slot.startswith(PREFIX) else ""


def _queue() -> set[str]:
    """Ids of the user's jobs that Slurm has, waiting or running."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", getpass.getuser()]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    except FileNotFoundError:
        raise ConfigError("launch: slurm needs the commands of Slurm (squeue, sbatch) on this machine.") from None
    except subprocess.SubprocessError as error:
        raise RunError(f"squeue does not answer: {getattr(error, 'stderr', '') or error}") from None
