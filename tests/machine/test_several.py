"""Several processes as published, each with batch statistics of its own images: the same in all of them after an epoch,
the same result again, and again after an interruption. And more than two, with numbers that do not divide."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, write_coco
from test_distributed import same

from krt_core.config import load_experiment
from krt_core.runs.folder import Run
from krt_core.session import train

pytestmark = pytest.mark.ddp
WORKER = Path(__file__).with_name("several_worker.py")
COMMON = {"train.epochs": 2, "train.evaluate_every": 1, "train.augment": "published", "replay.per_class": 2,
          "protocol.increment": 1, "protocol.base": 2, "krt.mean_labels": 1.9}  # fmt: skip


def in_processes(count, root, *jobs):
    environment = {"KRT_HOME": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(WORKER)]
    command += ["=".join([f"{root / preset}.yaml", f"{root / folder}", *stop]) for preset, folder, *stop in jobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]


def write(root, name, **changes):
    data = write_coco(root / "data" / name, train=41, test=25)
    experiment = load_experiment("digits_demo", {**TINY, **COMMON, **changes, "data.root": str(data)})
    (root / f"{name}.yaml").write_text(experiment.to_yaml())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The published kind of batch norm in two processes: once, again, and with an interruption in the third session."""
    root = tmp_path_factory.mktemp("several")
    write(root, "batch")
    assert load_experiment(root / "batch.yaml").train.batch_norm == "batch"  # the published default
    in_processes(2, root, ("batch", "once"), ("batch", "again"), ("batch", "parts", "2,1"))
    return root


def statistics(root, folder, rank):
    lines = [line.split() for line in (root / f"{folder}-{rank}.txt").read_text().splitlines()]
    return [((int(session), int(epoch)), digest) for session, epoch, digest in lines]


@pytest.mark.slow
def test_every_process_has_the_same_statistics_when_an_epoch_begins(two):
    main, other = (statistics(two, "once", rank) for rank in (0, 1))
    assert [place for place, _ in main] == [(session, epoch) for session in range(3) for epoch in range(2)]
    assert main == other
    assert len({digest for _, digest in main}) == 6  # they do change with every epoch


def identical(one, two):
    for t in range(3):
        a, b = one.session_state(t), two.session_state(t)
        drop = ("seconds", "peak_memory_mb")
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
        assert (one.scores(t).scores == two.scores(t).scores).all()
        tensors, others = one.model_state(t), two.model_state(t)
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_two_processes_repeat_to_the_last_bit(two):
    identical(Run(two / "once"), Run(two / "again"))


def test_two_processes_resumed_in_the_third_session_end_alike(two):
    parts = Run(two / "parts")
    assert "continuing at session 3, epoch 2" in (parts.folder / "log.txt").read_text()
    assert set(parts.session_state(2)["method"]["thresholds"]) == {"1", "2"}
    identical(Run(two / "once"), parts)


@pytest.mark.slow
def test_three_processes_and_odd_numbers_equal_one(tmp_path):
    """41 training and 25 test images in batches of 16: no share of three processes is even."""
    changes = {"train.precision": "float64", "train.batch_norm": "frozen"}
    write(tmp_path, "odd", **changes)
    in_processes(3, tmp_path, ("odd", "three"))
    one = train(load_experiment(tmp_path / "odd.yaml"), tmp_path / "one", show="none", device="cpu")
    same(one, Run(tmp_path / "three"))
    assert Run(tmp_path / "three").environment["reasons"]["processes"] == "3"
