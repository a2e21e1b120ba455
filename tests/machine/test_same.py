"""What docs/runs.md promises of two runs with one seed. The same to the last bit: in as many threads on one machine,
with and without caches. Within a stated tolerance: in other numbers of threads and processes, in other batches of
testing, and compiled. And the records name what broke it.
"""

import os
import shutil

import pytest
import torch
from conftest import TINY, write_coco
from test_several import in_processes

from krt_core.config import load_experiment
from krt_core.lab.analysis import compared
from krt_core.runs.folder import Run
from krt_core.session import train

METHODS = {
    "finetune": {},
    "krt": {"replay.per_class": 2},
    "ridge": {},
    "census": {},
    "l3a": {"l3a.expand": 64},
    "joint": {},
    "krt-still": {"method": "krt", "replay.per_class": 2, "model.freeze": "all", "train.augment": "none"},
    "ridge-first": {"method": "ridge", "model.freeze": "first", "train.batch_norm": "frozen", "train.augment": "none"},
}
CLOSED = ("ridge", "census", "l3a")  # seconds in any number of threads
WORLD = {**TINY, "protocol.base": 2, "protocol.increment": 1, "train.augment": "published", "krt.mean_labels": 1.9}
# Largest differences of scores, by what is computed otherwise.
ROUNDED = 1e-5  # float32, where sums are made in other orders and nothing is trained on what comes out
EXACT = 1e-8  # float64, training included: in float32 a training makes of a last bit what it likes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """``world(method, "folder", threads=2, home="other", train__epochs=1)``: a run, made once for a folder."""
    root = tmp_path_factory.mktemp("same")
    data = write_coco(root / "data" / "tiny", train=41, test=25)

    def experiment(method, **changes):
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        own = {"method": method, **METHODS[method], "data.root": str(data), **dotted}
        return load_experiment("digits_demo", {**WORLD, **own})

    def run(method, name, threads=1, home="home", **changes):
        folder = root / f"{method}-{name}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KRT_HOME", str(root / home))
            torch.set_num_threads(threads)
            try:
                return train(experiment(method, **changes), folder, show="none", device="cpu")
            finally:
                torch.set_num_threads(1)

    run.root, run.experiment = root, experiment
    return run


def apart(one, two):
    """Largest difference of scores, where nothing is missing and the same exemplars are stored."""
    found = compared(one, two)
    assert not found.lacking and found.sessions[0] == found.sessions[1]
    assert not found.table["exemplars"].any() and not found.table["thresholds"].gt(1e-6).any(), found.words()
    print(f"{two.folder.name}: {found.first or 'the same'}; scores {found.table['scores'].max():.2g}")
    return found.table["scores"].max(), found


# ---- the same to the last bit ----


@pytest.mark.parametrize("method", METHODS)
def test_it_repeats(world, method):
    assert compared(world(method, "base"), world(method, "again")).same


slow = pytest.mark.slow


@pytest.mark.parametrize("method", [m if m in CLOSED else pytest.param(m, marks=slow) for m in METHODS])
@pytest.mark.timeout(600)
def test_it_repeats_in_two_threads(world, method):
    quick = {"threads": 2, "train__epochs": 1}
    assert compared(world(method, "threads", **quick), world(method, "threads-again", **quick)).same


CACHES = {
    "no images": {"data__cache": False},
    "nothing there": {"home": "cold"},  # no decoded images, labels or features of before
    "no features": {"data__features": False},
    "one thread reads": {"data__workers": 1},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("method", METHODS)
def test_caches_change_nothing(world, method, cache):
    shutil.rmtree(world.root / "cold", ignore_errors=True)
    one, other = world(method, "base"), world(method, cache.replace(" ", "-"), **CACHES[cache])
    if (method, cache) == ("census", "no features"):  # parts of images are pooled from features as they are kept
        assert apart(one, other)[0] < ROUNDED
    else:
        found = compared(one, other)
        assert not found.differences and not found.lacking, found.words()


# ---- within a tolerance ----


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_testing_are_rounded(world, method):
    assert apart(world(method, "base"), world(method, "batches", train__eval_batch_size=7))[0] < ROUNDED


@pytest.mark.parametrize("method", CLOSED)
def test_threads_are_rounded_where_nothing_is_trained(world, method):
    difference, found = apart(world(method, "base"), world(method, "two", threads=2))
    assert difference < ROUNDED and found.causes == ["threads: 1 and 2"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_threads_change_rounding_alone(world, method):
    """In float64, where it does not grow to what could be seen."""
    quick = {"train__epochs": 1, "train__precision": "float64"}
    difference, found = apart(world(method, "float64", **quick), world(method, "float64-two", threads=2, **quick))
    assert difference < EXACT and found.causes == ["threads: 1 and 2"]


@pytest.mark.ddp
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.slow
def test_processes_change_rounding_alone(world, count):
    """41 training and 25 test images in batches of 16: no share of two or three is even."""
    changes = {"train__precision": "float64", "train__batch_norm": "frozen", "train__epochs": 1}
    for method in METHODS:
        (world.root / f"{method}.yaml").write_text(world.experiment(method, **changes).to_yaml())
    in_processes(count, world.root, *((method, f"{method}-{count}") for method in METHODS))
    for method in METHODS:
        one, several = world(method, "one", home="alone", **changes), Run(world.root / f"{method}-{count}")
        difference, found = apart(one, several)
        assert difference < EXACT and found.causes == [f"processes: 1 and {count}"], found.words()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (shutil.which("g++") or os.environ.get("CXX")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("method", ["krt"])
def test_compiled_backbones_change_rounding_alone(world, method):
    quick = {"train__epochs": 1, "train__precision": "float64"}
    difference, found = apart(
        world(method, "float64", **quick), world(method, "compiled", train__compile=True, **quick)
    )
    assert difference < EXACT and found.causes == ["train.compile: False and True"]
