"""What ``krt bench`` does with a matrix: list it, show it, run it."""

from __future__ import annotations

import statistics
from pathlib import Path

from ...errors import ConfigError
from ...machine.home import outputs_dir
from ...runs.folder import Run, find_runs, in_order
from ..report import LeftOut
from ..report.write import write_report
from . import state as s
from .matrix import Job, Matrix
from .runner import Runner
from .slots import find_slots
from .slurm import run_on_slurm
from .state import JobFiles
from .view import View, clock, table

REPORTS = ("report.html", "table.csv", "table.tex")


def run(matrix: Matrix, jobs: list[Job], retry_failed: bool = False, max_failures: int = 0) -> int:
    """Run what is not done; 0 if everything is done then, 1 if something failed, 130 if it was stopped."""
    if matrix.launch == "slurm":
        if max_failures:
            raise ConfigError("--max-failures is for runs on this machine: Slurm has all of them from the beginning.")
        done, stopped = run_on_slurm(matrix, jobs, View(), retry_failed), False
    else:
        runner = Runner(matrix, jobs, View(), retry_failed, max_failures)
        done, stopped = runner.go(), runner.stopped
    if not stopped:
        write_reports(matrix, jobs)
    return 130 if stopped else 0 if done else 1


def write_reports(matrix: Matrix, jobs: list[Job]) -> None:
    """report.html, table.csv, table_sessions.csv and table.tex of all finished runs, in the folder of the matrix."""
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs if job.trains}
    runs = [f.run for f in files.values() if f.finished and f.run is not None]
    left_out = [
        LeftOut(name, f"{state.state}: {state.kind}: {state.reason}" if state.kind else state.state)
        for name, state in current(files).items()
        if state.state != s.DONE
    ]
    if not runs:
        return
    for path in write_report(in_order(runs), left_out, *(Path(matrix.folder) / f for f in REPORTS)):
        print(path)


def status(matrix: Matrix, jobs: list[Job]) -> int:
    """Show how far every job is, from its files alone."""
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
    View(live=False).console.print(table(files, current(files)))
    return 0


def current(files: dict[str, JobFiles]) -> dict[str, s.State]:
    return {name: f.current(s.inputs_of([files[other] for other in f.job.needs])) for name, f in files.items()}


def dry_run(matrix: Matrix, jobs: list[Job]) -> int:
    """List the jobs, what is done, and how long the rest may take, going by runs that are finished."""
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
    past = [run for run in find_runs(outputs_dir()) if run.done]
    total, unknown = 0.0, 0
    for name, state in current(files).items():
        job = files[name].job
        expected = estimate(job, past) if job.trains else None
        words = state.state + (f", {state.kind}: {state.reason}" if state.kind else "")
        if state.state != s.DONE and job.trains:
            words += f", about {clock(expected)}" if expected else ", time unknown"
            total, unknown = total + (expected or 0), unknown + (expected is None)
        print(f"{name}: {words}")
    slots = find_slots(matrix.workers, sum(job.trains for job in jobs) * matrix.gpus_per_run)
    at_once = max(1, len(slots.names) // matrix.gpus_per_run)
    print(f"{len(jobs)} jobs in {matrix.folder}, {at_once} at once on this machine ({slots.kind})")
    if total:
        print(f"about {clock(total / at_once)} to go" + (f", and {unknown} runs of unknown length" if unknown else ""))
    return 0


def estimate(job: Job, past: list[Run]) -> float | None:
    """Seconds that a run may take: the median of finished runs of the same configuration, else of the same data,
    protocol, backbone and method, by epochs. None where there is none."""
    wanted = job.experiment
    same = [run.summary["seconds"] for run in past if run.experiment.hash() == wanted.hash()]
    if same:
        return statistics.median(same)

    def alike(run: Run) -> bool:
        e = run.experiment
        return (e.method, e.data, e.protocol, e.model) == (wanted.method, wanted.data, wanted.protocol, wanted.model)

    near = [run.summary["seconds"] / run.experiment.train.epochs for run in past if alike(run)]
    return statistics.median(near) * wanted.train.epochs if near else None
