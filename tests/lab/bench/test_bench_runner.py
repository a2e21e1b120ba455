"""Who runs what: one start of a matrix, and two at once, with a stand-in for the workers."""

import subprocess
import sys

import pytest
from bench_world import ENDS, KILLED, wait_for

from krt_core.lab.bench import state as s
from krt_core.lab.bench.matrix import expand, load_matrix
from krt_core.lab.bench.runner import Runner
from krt_core.lab.bench.slots import Slots, take
from krt_core.lab.bench.view import View
from krt_core.machine.processes import MARK, Minder
from krt_core.session import train

pytest_plugins = ("bench_world",)
SLEEPS = "import time; time.sleep(60)"


@pytest.fixture
def run_matrix(matrix_file, stand, machine):
    def go(plan, **options):
        matrix = load_matrix(matrix_file(methods=["krt", "finetune"], workers=2))
        jobs = expand(matrix)
        stand.update({job.id: list(plan[job.experiment.method]) for job in jobs})
        runner = Runner(matrix, jobs, View(live=False), **options)
        runner.go()
        return {job.experiment.method: runner.states[job.id] for job in jobs}, stand

    return go


@pytest.mark.slow
def test_what_was_killed_goes_on_and_what_failed_waits_to_be_asked(run_matrix):
    states, left = run_matrix({"krt": [KILLED, ENDS["start-up"], ENDS[""]], "finetune": [ENDS["disk full"], ENDS[""]]})
    assert states["krt"].state == s.DONE and states["finetune"].state == s.FAILED
    assert states["finetune"].kind == "disk full" and [len(v) for v in left.values()] == [0, 1]
    states, left = run_matrix({"krt": [KILLED] * 4, "finetune": [ENDS[""]]})
    assert states["krt"].state == s.FAILED and "signal 9" in states["krt"].reason
    assert states["finetune"].state == s.FAILED and sum(map(len, left.values())) == 2  # not asked to be tried again
    states, left = run_matrix({"krt": [ENDS[""]], "finetune": [ENDS[""]]}, retry_failed=True)
    assert states["krt"].state == states["finetune"].state == s.DONE


@pytest.mark.slow
def test_a_limit_of_failures_ends_it(run_matrix, monkeypatch):
    monkeypatch.setattr("krt_core.lab.bench.runner.find_slots", lambda *_: Slots("cpu", ("0",), 1))
    states, left = run_matrix({"krt": [ENDS["error"]], "finetune": [ENDS[""]]}, max_failures=1)
    assert states["krt"].state == s.FAILED and states["finetune"].state == s.QUEUED


@pytest.mark.slow
def test_a_worker_that_crashes_says_where_to_look(run_matrix):
    """A traceback of Python ends with 1, which must not pass for an error that the worker has explained."""
    states, _ = run_matrix({"krt": ["1 / 0"] * 2, "finetune": [ENDS["error"]]})
    assert states["krt"].kind == "start-up" and "exit code 1: see" in states["krt"].reason
    assert states["finetune"].kind == "error"


# ---- two starts ----


@pytest.fixture
def starts(matrix_file, stand, machine, capfd):
    """Makes runners of one matrix, each with its own first picture, as two starts at the same moment have."""
    made = []

    def make(**content):
        options = {key: content.pop(key) for key in ("retry_failed",) if key in content}
        matrix = load_matrix(matrix_file(**content))
        runner = Runner(matrix, expand(matrix), View(live=False), **options)
        for name, files in runner.files.items():
            files.write_job()
            runner.states[name] = runner._first_state(files)
        made.append(runner)
        return runner

    yield make
    for runner in made:
        runner._end_all()


def test_who_loses_the_race_for_a_run_leaves_the_winner_alone(starts, stand, machine, monkeypatch):
    one, two = starts(), starts()
    (name,) = one.files
    stand[name] = [SLEEPS, SLEEPS]
    one.step(machine)
    kernel = subprocess.Popen([sys.executable, "-c", SLEEPS], env={MARK: one.files[name].mark})
    monkeypatch.setattr(two, "_still_queued", lambda *_, **__: True)  # it looked just before
    assert two.step(machine) and not two.running and two.states[name].state == s.RUNNING
    late = starts()  # while it runs: its processes are no leftovers
    assert late.states[name].state == s.RUNNING
    assert one.running[name].process.poll() is None and kernel.poll() is None and len(stand[name]) == 1
    assert len(take(machine, 2).names) == 2  # and the loser's slot is free again
    kernel.kill()
    kernel.wait()


def test_a_job_is_held_until_its_end_is_written_down(starts, stand, machine, monkeypatch):
    runner = starts()
    (name,), (files,) = runner.files, runner.files.values()
    stand[name] = [ENDS["error"]]
    runner.step(machine)
    runner.running[name].process.wait()
    assert files.held()  # though the process that inherited the lock is gone
    seen = []
    monkeypatch.setattr("krt_core.lab.bench.start.Minder.end", lambda *_, **__: seen.append(files.held()))
    runner.step(machine)
    assert seen == [True] and not files.held() and files.read().state == s.FAILED


def test_what_a_worker_ends_is_no_other_worker(starts, stand, machine):
    runner = starts()
    (name,), (files,) = runner.files, runner.files.values()
    stand[name] = [SLEEPS]
    runner.step(machine)
    wait_for(lambda: Minder(files.worker_mark).processes(), 10)
    Minder(files.mark).end(grace=0.1)  # as Worker.end does
    assert runner.running[name].process.poll() is None


def test_leftovers_are_ended_unless_someone_holds_the_job(starts, machine):
    files = next(iter(starts().files.values()))
    left = subprocess.Popen([sys.executable, "-c", SLEEPS], env={MARK: files.mark})
    wait_for(lambda: Minder(files.mark).processes(), 10)
    with files.lock():
        starts()
        assert left.poll() is None
    starts()
    assert left.wait(10) is not None and not files.held()


def test_what_another_start_has_finished_is_not_started_again(starts, stand, machine):
    two = starts()
    (name,), (files,) = two.files, two.files.values()
    train(files.job.experiment, files.job.run_folder, show="none")
    assert two.states[name].state == s.QUEUED and not two.step(machine)
    assert two.states[name].state == s.DONE and not two.running


def test_what_failed_is_tried_again_once_for_all_starts(starts, stand, machine):
    files = next(iter(starts().files.values()))
    files.write(state=s.FAILED, attempts=1, kind="error", reason="so it was")
    one, two = starts(retry_failed=True), starts(retry_failed=True)
    name = files.job.id
    stand[name] = [ENDS["error"]]
    one.step(machine)
    files.write(attempts=2)  # of the worker
    one.running[name].process.wait()
    one.step(machine)
    assert not two.step(machine) and two.states[name].state == s.FAILED and not stand[name]


def test_who_gets_no_slot_says_so_once(starts, machine, capfd):
    runner = starts()
    with take(machine, 3):
        for _ in range(3):
            assert runner.step(machine)
    assert capfd.readouterr().out.count("waits for a free cpu slot (taken by another krt bench)") == 1
