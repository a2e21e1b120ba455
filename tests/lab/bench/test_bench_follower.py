"""The other machines of runs that span several."""

import itertools
import sys
import time
from types import SimpleNamespace

import pytest

from krt_core.cli import main
from krt_core.lab.bench import follower
from krt_core.lab.bench import state as s
from krt_core.lab.bench.command import run
from krt_core.lab.bench.follower import follow, leading
from krt_core.lab.bench.matrix import expand, load_matrix
from krt_core.lab.bench.slots import take
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.bench.view import View
from krt_core.session import train

pytest_plugins = ("bench_world",)
SLEEPS = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"launch": "torchrun"}, ["nnodes"]),
        ({"nnodes": 2}, ["launch: torchrun"]),
        ({"launch": "torchrun", "nnodes": 2}, ["--rendezvous HOST:PORT"]),
        ({"launch": "torchrun", "nnodes": 2, "rendezvous": "here"}, ["HOST:PORT", "here"]),
    ],
)
def test_several_machines_need_to_know_where_to_meet(matrix_file, content, words, capsys):
    assert main(["bench", str(matrix_file(**content))]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--node-rank", "1"], ["--launch torchrun"]),
        (["--node-rank", "2", "--launch", "torchrun", "--nnodes", "2"], ["--node-rank must be 0 to 1", "found 2"]),
        (["--node-rank", "-1", "--launch", "torchrun", "--nnodes", "2"], ["--node-rank must be 0 to 1", "found -1"]),
    ],
)
def test_a_rank_that_cannot_be_is_refused_at_once(matrix_file, arguments, words, capsys):
    assert main(["bench", str(matrix_file(rendezvous="here:1")), *arguments]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


@pytest.fixture
def shared(matrix_file, machine, monkeypatch):
    """A matrix on two machines: its jobs' files, and ``follows(*steps)``, which follows and at each look takes a step.

    The parts of this machine end as ``follows.part`` says.
    """
    matrix = load_matrix(matrix_file(launch="torchrun", nnodes=2, rendezvous="here:1", seeds=[0, 1]))
    jobs = expand(matrix)
    files = [JobFiles(matrix.folder, job) for job in jobs]
    monkeypatch.setattr(follower, "with_parent", lambda *_: [sys.executable, "-c", follows.part])

    def follows(*steps):
        steps = iter(steps)

        def pause(_):
            next(steps, lambda: pytest.fail("it follows on and on"))()

        monkeypatch.setattr(follower, "time", SimpleNamespace(sleep=pause, monotonic=follows.clock))
        return follow(matrix, jobs, 1, View(live=False), interval=0)

    follows.part, follows.clock = SLEEPS, time.monotonic
    return matrix, files, follows


def test_another_machine_follows_the_main_one(shared, capsys):
    matrix, files, follows = shared
    assert files[0].job.parameters["machines"] == 2 and files[0].job.parameters["rendezvous"] == "here:1"
    main_one = leading(matrix)
    code = follows(
        main_one.__enter__,
        lambda: files[0].write(state=s.RUNNING, attempts=1),
        lambda: None,
        lambda: files[0].write(state=s.RUNNING, attempts=2),
        lambda: (files[0].write(state=s.DONE), files[1].write(state=s.RUNNING, attempts=1)),
        lambda: (files[1].write(state=s.DONE), main_one.__exit__(None, None, None)),
    )
    said = [line for line in capsys.readouterr().out.splitlines() if "takes part" in line]
    names = [f.job.id for f in files]
    expected = [(names[0], 1), (names[0], 2), (names[1], 1)]  # each attempt once
    assert code == 0 and said == [f"{name}: takes part in attempt {attempt}" for name, attempt in expected]


def test_the_others_are_told_whatever_ends_the_main_one(shared, monkeypatch):
    matrix, files, follows = shared
    for error in (KeyboardInterrupt, OSError):

        def go(runner, error=error):
            raise error

        monkeypatch.setattr("krt_core.lab.bench.command.Runner.go", go)
        with leading(matrix):
            pass  # an earlier start

        def fails(error=error):
            with pytest.raises(error):
                run(matrix, [f.job for f in files])

        assert follows(lambda: None, fails) == 0


def test_who_comes_after_the_end_does_not_wait_for_it(shared, capsys):
    matrix, files, follows = shared
    with leading(matrix):
        files[0].write(state=s.FAILED)
    follows.clock = itertools.count(0, 250.0).__next__
    assert follows(*[lambda: None] * 9) == 1 and "did not begin anew" in capsys.readouterr().out
    for f in files:
        train(f.job.experiment, f.job.run_folder, show="none")
    assert follows() == 0 and "every run is done" in capsys.readouterr().out


def test_a_part_that_fails_is_told_and_joined_again_a_few_times(shared, capsys):
    matrix, files, follows = shared
    follows.part = "import os; os._exit(3)"
    files[0].write(state=s.RUNNING, attempts=1)

    def waits():
        time.sleep(0.4)

    def ends():
        with leading(matrix):
            pass

    assert follows(*[waits] * 12, ends) == 0
    said = capsys.readouterr().out
    log = files[0].folder / "machine_1.txt"
    assert said.count(f"ended with exit code 3, see {log}; joins it again") == follower.REJOINS
    assert said.count("takes part in attempt 1") == 1 + follower.REJOINS and said.count("joins its next attempt") == 1


def test_a_machine_whose_slots_are_taken_says_so_and_can_be_ended(shared, machine, monkeypatch, capsys):
    matrix, files, follows = shared
    monkeypatch.setattr(follower, "find_slots", lambda *_: machine)
    files[0].write(state=s.RUNNING, attempts=1)

    def ends():
        with leading(matrix):
            pass

    with take(machine, 3):
        assert follows(lambda: None, lambda: None, ends) == 0
    assert capsys.readouterr().out.count("waits for free cpu slots") == 1
