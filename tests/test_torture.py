"""`make torture` in small: the frame, the seam, the comparison; and a few kills of each kind."""

import errno
import json
import os
import signal
from collections import Counter
from random import Random

import numpy as np
import pytest

from benchmarks.torture import changes, faults, halfway, ill, kills, matrix
from benchmarks.torture.__main__ import ATTEMPTS, main
from benchmarks.torture.child import FORKS
from benchmarks.torture.frame import Attempt, Lost, Tally, once, told, torture
from benchmarks.torture.same import differences
from benchmarks.torture.seam import Place, Seam, kind_of
from benchmarks.torture.world import CLOSED, STILL, TRAINED, some
from krt_core.config import load_experiment
from krt_core.data.kept import Kept
from krt_core.machine.home import atomic_write
from krt_core.options import METHODS

# ---- the frame ----


def test_kinds_take_turns_and_what_they_tried_is_counted(tmp_path):
    made = []

    def kind(name, count):
        def do(seed, folder):
            made.append((name, seed))
            (folder / "file").write_text("x")
            return Counter(kills=count)

        return Attempt(name, do)

    tallies = torture([kind("a", 2), kind("b", 3)], tmp_path, 0, 7, lambda text: None)
    assert made == [("a", 7000), ("b", 7000)] and not list(tmp_path.iterdir())  # each once, though there is no time
    assert "in all: 5 kills\nlost: nothing" in told(tallies)
    tallies = torture([kind("a", 1)], tmp_path, 0.2, 0, lambda text: None)
    assert tallies["a"].seeds == list(range(len(tallies["a"].seeds))) and len(tallies["a"].seeds) > 1


@pytest.mark.parametrize("error", [Lost("the weights are gone"), KeyError("weights")])
def test_what_is_lost_is_named_with_its_seed_and_kept(tmp_path, monkeypatch, capsys, error):
    def do(seed, folder):
        (folder / "run").write_text("half")
        raise error

    monkeypatch.setattr("benchmarks.torture.__main__.ATTEMPTS", [Attempt("train", do)])
    assert main(["--minutes", "0", "--seed", "3", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "--kinds train --one 3000" in said and "weights" in said and "lost: 1 attempts" in said
    assert (tmp_path / "train-3000" / "run").read_text() == "half"
    monkeypatch.setattr("benchmarks.torture.__main__.ATTEMPTS", [Attempt("train", lambda seed, folder: Counter())])
    assert main(["--one", "3", "--folder", str(tmp_path)]) == 0


def test_every_method_is_tried():
    assert {each["method"] for each in (*TRAINED, *CLOSED, *STILL)} == set(METHODS)
    assert len({attempt.kind for attempt in ATTEMPTS}) == len(ATTEMPTS)


def test_experiments_have_five_sessions(tmp_path):
    for seed in range(len(TRAINED)):
        experiment = load_experiment(some(TRAINED, tmp_path / str(seed), seed, Random(0)))
        assert experiment.protocol.increment == 2


# ---- what is the same ----


def test_two_folders_are_the_same_but_for_what_is_measured(tmp_path):
    for name, seconds in (("one", 1.5), ("two", 2.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"mAP": [1, 2], "seconds": seconds}))
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"loss": 1, "images_per_second": seconds}) + "\n")
        (tmp_path / name / "log.txt").write_text(str(seconds))
        (tmp_path / name / "scores.npz").write_bytes(b"1234")
    one, two = tmp_path / "one", tmp_path / "two"
    assert not differences(one, two)
    (two / "state.json").write_text(json.dumps({"mAP": [1, 3], "seconds": 1.5}))
    (two / "scores.npz").write_bytes(b"1X34")
    (two / ".resume.pt.0123abcd.tmp").write_bytes(b"half")
    (two / "metrics.jsonl").write_text(json.dumps({"loss": 1, "lr": 2}) + "\n")
    assert differences(one, two) == [
        f".resume.pt.0123abcd.tmp is in {two} alone",
        "metrics.jsonl: 0.lr is in one alone: 2",
        "scores.npz: 4 and 4 bytes, 1 differ, the first at 1",
        "state.json: 0.mAP.1: 2 and 3",
    ]


# ---- the seam ----


def test_kinds_of_files():
    assert kind_of("write", "run/session_03/.model.safetensors.0123abcd.tmp") == "write run/session_#/model.safetensors"
    assert kind_of("rename", "data/cache/labels-table-test-0123456789abcdef.npz") == (
        "rename data/cache/labels-table-test-*.npz"
    )


def stopped(seam, home, work, *arguments):
    """How a process ends that does some work with a seam."""
    process = FORKS.Process(target=_behind, args=(seam, home, work, *arguments))
    process.start()
    process.join()
    return process.exitcode


def _behind(seam, home, work, *arguments):
    seam.install(home)
    work(home, *arguments)
    seam.tell()
    os._exit(0)


def write_whole(home):
    atomic_write(home / "a.json", b"x" * 1000)
    atomic_write(home / "b.json", b"y" * 1000)


def append(home):
    for line in ("first\n", "second\n"):
        with (home / "log.txt").open("a") as file:
            file.write(line)


def keep(home):
    kept = Kept(home / "numbers.npy", (4, 8), np.dtype(np.float32), b"these")
    kept.begin()
    kept.write(np.arange(2), np.ones((2, 8), np.float32))
    kept.vouch(np.arange(2))


@pytest.mark.parametrize("byte", [0, 1, 999, 1000])
def test_a_file_is_cut_off_after_any_byte(tmp_path, byte):
    (tmp_path / "b.json").write_text("old")
    code = stopped(Seam(Place("write b.json", 0, byte)), tmp_path, write_whole)
    assert code == (-signal.SIGKILL if byte == 1000 else -signal.SIGXFSZ)
    (half,) = tmp_path.glob(".b.json.*.tmp")
    assert (tmp_path / "b.json").read_text() == "old" and half.read_bytes() == b"y" * byte
    assert stopped(Seam(Place("rename b.json", 0)), tmp_path, write_whole) == -signal.SIGKILL
    assert (tmp_path / "b.json").read_text() == "old"


def test_a_line_that_is_added_is_cut_off(tmp_path):
    assert stopped(Seam(Place("write log.txt", 1, 3)), tmp_path, append) == -signal.SIGXFSZ
    assert (tmp_path / "log.txt").read_text() == "first\nsec"


def test_a_memory_map_is_cut_off_and_its_rows_do_not_count(tmp_path):
    assert stopped(Seam(heard=tmp_path.parent / "heard.json"), tmp_path / "whole", keep) == 0
    heard = [tuple(place) for place in json.loads((tmp_path.parent / "heard.json").read_text())]
    assert ("map numbers.npy", 0, 64) in heard
    for kind, number, size in heard:
        home = tmp_path / kind_of("", f"{kind}-{number}").strip().replace("/", "_").replace(" ", "_") / str(number)
        home.mkdir(parents=True)
        assert stopped(Seam(Place(kind, number, size // 2)), home, keep) < 0, kind
        kept = Kept(home / "numbers.npy", (4, 8), np.dtype(np.float32), b"these")
        if kept.whole():
            good = kept.have(np.arange(4))
            assert (kept.array()[good] == 1).all() and not good[2:].any()
        keep(home)
        assert Kept(home / "numbers.npy", (4, 8), np.dtype(np.float32), b"these").have(np.arange(2)).all()


# ---- a few kills of each kind ----


def test_a_training_is_killed_at_random_moments(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "MOST", 3)
    monkeypatch.setattr(kills, "FRESH", 1000)
    assert kills.closed(0, tmp_path)["kills"] >= 0  # equal to the other, whenever it was hit


def test_a_training_ends_in_the_middle_of_some_files(tmp_path):
    preset = some(CLOSED, tmp_path, 2, Random(0))
    tried = halfway.stopped(
        Random(5), tmp_path, lambda home: ["train", str(preset), "--folder", str(home / "run")], most=6
    )
    assert tried == {"kills": 6, "kinds of places": 6}


# ---- a few faults of each kind ----


def with_ill(sick, home, work, *arguments):
    process = FORKS.Process(target=_with_ill, args=(sick, home, work, *arguments))
    process.start()
    process.join()
    return process.exitcode


def _with_ill(sick, home, work, *arguments):
    sick.install(home)
    try:
        work(home, *arguments)
        code = 0
    except OSError as error:
        code = error.errno
    sick.tell()
    os._exit(code)


def write_much(home):
    for i in range(100):
        atomic_write(home / f"{i}.json", b"x" * 5000)


def test_a_small_disk_is_full_and_keeps_what_was_written(tmp_path):
    if not ill.namespaces():
        pytest.skip("no user namespaces")
    (tmp_path / "before.json").write_text("before")
    assert with_ill(ill.Small(100), tmp_path, write_much) == errno.ENOSPC
    written = list(tmp_path.glob("[0-9]*.json"))
    assert 5 < len(written) < 100 and {path.stat().st_size for path in written} == {5000}
    assert (tmp_path / "before.json").read_text() == "before" and not list(tmp_path.glob(".*.tmp"))
    assert with_ill(ill.ReadOnly(), tmp_path, write_much) == errno.EROFS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_refuses_from_a_place_on(tmp_path, code):
    assert with_ill(ill.Refusing("write #.json", 3, code), tmp_path, write_much) == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "2.json"]


def test_some_faults_of_a_training(tmp_path, monkeypatch):
    """The shortest of them; all others are slow."""
    monkeypatch.setattr(faults, "KINDS", (CLOSED[0],))
    assert faults.unlocked(0, tmp_path) == {"without locks": 2}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("do", ["full", "refused", "read_only", "jumping", "numbers", "unreadable", "shared_memory"])
def test_faults(do, tmp_path):
    assert getattr(faults, do)(1, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("do", "seed"), [("data", 0), ("data", 1), ("data", 2), ("damaged", 2)])
def test_changes(do, seed, tmp_path):
    assert sum(getattr(changes, do)(seed, tmp_path).values()) >= 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("do", ["kills.trained", "kills.still", "kills.extended", "halfway.extended"])
def test_attempts(do, tmp_path):
    module, name = do.split(".")
    assert getattr({"kills": kills, "halfway": halfway}[module], name)(1, tmp_path)["kills"] > 0


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(900)
def test_one_of_two_processes_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "FEWER", 2)
    assert kills.several(0, tmp_path)["kills"] == 2


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_a_matrix_is_killed(tmp_path):
    tally = torture([Attempt("bench", matrix.benched)], tmp_path, 0, 0)["bench"]
    assert not tally.lost, tally.lost


def test_an_attempt_can_be_made_again(tmp_path):
    seeds = []
    tally = torture([], tmp_path, 0, 0)
    assert tally == {}
    once(Attempt("x", lambda seed, folder: seeds.append(seed) or Counter(inputs=1)), 17, tmp_path, Tally(), print)
    assert seeds == [17]
