"""A hundred runs in one folder: what is asked for again and again, and what a notebook opens, stays quick."""

import time

import pytest

from benchmarks.made_up_runs import finished
from krt_core.lab.bench import state as s
from krt_core.lab.bench.command import current
from krt_core.lab.bench.matrix import Job
from krt_core.lab.bench.runner import Runner
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.bench.view import View
from krt_core.lab.explorers.forgetting import ForgettingExplorer

RUNS = 100
METHODS = ("krt", "pod", "finetune", "joint")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Their jobs, with an analysis of all of them."""
    folder = tmp_path_factory.mktemp("many")
    jobs = []
    for number in range(RUNS):
        method, seed = METHODS[number % 4], number // 4
        run = finished(
            overrides=[f"method={method}", f"seed={seed}"], images=12, folder=str(folder / "g" / "runs" / str(number))
        )
        jobs.append(Job(str(number), "g", "02_train_sessions", {}, str(run.folder), (), run.experiment))
    analysis = Job("look", "g", "03_forgetting_analysis", {}, "", tuple(job.id for job in jobs))
    return folder, [*jobs, analysis]


class Bench:
    """A matrix as far as the runner asks."""

    def __init__(self, folder):
        self.folder, self.time_limit, self.workers, self.gpus_per_run = str(folder), "", 1, 1


def processor_seconds(what, times=3):
    """The least of some tries, in the seconds of a processor: others may use this machine too."""

    def once():
        began = time.process_time()
        what()
        return time.process_time() - began

    return min(once() for _ in range(times))


def test_a_matrix_of_a_hundred_runs_is_looked_at_in_milliseconds(runs, slowness):
    folder, jobs = runs
    runner = Runner(Bench(folder), jobs, View(live=False))
    for files in runner.files.values():
        files.write_job()
        files.write(state=s.DONE, inputs=runner._inputs(files))
        runner.states[files.job.id] = files.current(runner._inputs(files))
    assert {state.state for state in runner.states.values()} == {s.DONE}
    assert processor_seconds(runner._look_elsewhere) < 0.05 * slowness
    assert processor_seconds(lambda: current(runner.files)) < 0.05 * slowness


def test_a_run_that_changes_is_seen(tmp_path):
    run = finished(images=12, folder=str(tmp_path / "run"))
    files = JobFiles(tmp_path, Job("a", "g", "02_train_sessions", {}, str(run.folder)))
    needs = [files]
    before = s.inputs_of(needs)
    assert files.current().state == s.DONE and before != s.inputs_of([])
    content = (run.folder / "DONE").read_text()
    (run.folder / "DONE").unlink()
    assert files.current().state == s.QUEUED and s.inputs_of(needs) == s.inputs_of([])
    (run.folder / "DONE").write_text(content + " ")
    assert files.current().state == s.DONE and s.inputs_of(needs) != before
    (run.folder / "experiment.yaml").unlink()
    assert files.run is None and files.current().state == s.QUEUED


def test_the_forgetting_explorer_opens_a_hundred_runs_at_once(runs, slowness):
    folder, _ = runs
    ForgettingExplorer(folder)  # fonts and such are loaded once
    assert processor_seconds(lambda: ForgettingExplorer(folder), 4) < 1.0 * slowness
