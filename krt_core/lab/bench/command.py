"""What ``krt bench`` does with a matrix: list it, show it, run it."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import replace
from pathlib import Path

from ...errors import ConfigError, printable
from ...machine.home import atomic_write, outputs_dir
from ...runs.folder import Run, in_order
from ..report import LeftOut
from ..report.finding import collect
from ..report.write import write_report
from . import state as s
from .matrix import Job, Matrix, Plan, final_runs, plan
from .runner import Runner
from .search import THRESHOLDS, Score
from .slots import find_slots
from .slurm import run_on_slurm
from .state import JobFiles
from .view import View, clock, table

# Columns of trials.csv; the keys that are searched for stand behind the first two.
ABOUT = ("contest", "setting", "seed", "class_order", "state", *Score._fields, "chosen", *THRESHOLDS, "run")
REPORTS = ("report.html", "table.csv", "table.tex")


def run(matrix: Matrix, planned: Plan, retry_failed: bool = False, max_failures: int = 0) -> int:
    """Run what is not done; 0 if everything is done then, 1 if something failed, 130 if it was stopped. Where settings
    are searched for, the runs of those that are chosen follow when all trials have ended."""
    if matrix.launch == "slurm" and max_failures:
        raise ConfigError("--max-failures is for runs on this machine: Slurm has all of them from the beginning.")
    tried: set[str] = set()  # what failed in this start is not tried again in it
    while True:
        jobs = planned.jobs
        tell_search(matrix, planned)
        if matrix.launch == "slurm":
            done, stopped, failures = run_on_slurm(matrix, jobs, View(), retry_failed, tried), False, 0
        else:
            runner = Runner(matrix, jobs, View(), retry_failed, max_failures, tried)
            done, stopped, failures = runner.go(), runner.stopped, runner.failures
        tried |= {job.id for job in jobs}
        planned = plan(matrix) if matrix.search else planned
        if stopped or {job.id for job in planned.jobs} <= tried or (max_failures and failures >= max_failures):
            break
        max_failures -= failures if max_failures else 0
    tell_search(matrix, planned)
    if not stopped:
        write_reports(matrix, planned)
    return 130 if stopped else 0 if done and not planned.open else 1


def tell_search(matrix: Matrix, planned: Plan, write: bool = True) -> None:
    """Say what each method's trials have come to, and write all of them to trials.csv, in the folder of the matrix.
    Trials that stand in it and are no longer asked for stay there."""
    if not planned.contests:
        return
    import pandas as pd

    files = {job.id: JobFiles(matrix.folder, job) for job in planned.jobs if job.trial}
    states = current(files)
    failed = {name: state.kind or state.state for name, state in states.items() if state.state == s.FAILED}
    for contest in planned.contests:
        if contest.asked:
            print(printable(contest.told(failed)))
    if not write:
        return
    told, folder = {name: state.state for name, state in states.items()}, Path(matrix.folder)
    rows = pd.DataFrame([row for contest in planned.contests for row in contest.rows(told, folder)])
    path = folder / "trials.csv"
    with contextlib.suppress(OSError, ValueError, KeyError):  # not there, or not ours
        before = pd.read_csv(path)
        told_now = {Path(run).name for run in (rows["run"] if len(rows) else ())}
        before = before[[Path(run).name not in told_now for run in before["run"]]]
        rows = pd.concat([rows, before.assign(chosen=False, state="earlier")]) if len(before) else rows
    if len(rows):
        keys = [key for key in rows if key not in ABOUT]
        atomic_write(path, rows[[*ABOUT[:2], *keys, *ABOUT[2:]]].to_csv(index=False))


def write_reports(matrix: Matrix, planned: Plan) -> None:
    """Reports of all finished runs, in the folder of the matrix (see `write_report`); of those, too, that
    ``matrix.only`` leaves alone: one run more must not take the others out of the tables."""
    planned = plan(replace(matrix, only=())) if matrix.only else planned
    files = {job.id: JobFiles(matrix.folder, job) for job in planned.jobs if job.trains and not job.trial}
    runs = [f.run for f in files.values() if f.finished and f.run is not None]
    left_out = [
        LeftOut(name, f"{state.state}: {state.kind}: {state.reason}" if state.kind else state.state)
        for name, state in current(files).items()
        if state.state != s.DONE
    ]
    left_out += [LeftOut(contest.name, "waits for its trials") for contest in planned.open]
    if not runs:
        return
    chosen = [contest.told({}) for contest in planned.contests if contest.chosen is not None]
    thresholds = {
        str(run.folder): contest.thresholds
        for contest in planned.contests if contest.thresholds
        for job in final_runs(matrix, contest) if job.id in files and (run := files[job.id].run)
    }  # fmt: skip
    reports = (Path(matrix.folder) / name for name in REPORTS)
    for path in write_report(in_order(runs), left_out, *reports, chosen=chosen, thresholds=thresholds):
        print(path)


def status(matrix: Matrix, planned: Plan) -> int:
    """Show how far every job is, from its files alone."""
    files = {job.id: JobFiles(matrix.folder, job) for job in planned.jobs}
    View(live=False).console.print(table(files, current(files)))
    tell_search(matrix, planned, write=False)
    return 0


def current(files: dict[str, JobFiles]) -> dict[str, s.State]:
    return {name: f.current(s.inputs_of([files[other] for other in f.job.needs])) for name, f in files.items()}


def dry_run(matrix: Matrix, planned: Plan) -> int:
    """List the jobs, what is done, and how long the rest may take, going by runs that are finished."""
    jobs = planned.jobs
    files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
    past = collect([outputs_dir()])[0] if outputs_dir().is_dir() else []
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
    for contest in planned.contests:
        if contest.asked:
            print(printable(contest.told({})))
    if planned.open:
        runs = sum(len(contest.replicates) for contest in planned.open)
        print(f"{runs} more runs, and the analyses, follow when their settings are chosen")
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
