"""A backbone that stands still: ridge regression end to end, heads on kept features, and how fast features are made.

``KRT_COCO_SUB`` names a folder of real photos in COCO layout; without it the measurements that need one are left out.
"""

from __future__ import annotations

import copy
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from krt_core.config import Experiment, load_experiment
from krt_core.data import MultiLabelDataset
from krt_core.data.features import FeatureStore
from krt_core.data.pipeline import Batch, ImageStore, to_device
from krt_core.learn import Learner, make_optimiser
from krt_core.machine.device import Runtime
from krt_core.methods import METHODS, Context
from krt_core.model.inference import for_inference
from krt_core.model.network import Network
from krt_core.model.still import features_of
from krt_core.protocol import View, make_protocol

from .measure import side_by_side, training_step

JOBS = ("krt", "finetune", "joint", "ridge", "joint_ridge")
STILL = ("model.freeze=all", "train.augment=none")
MATRIX = 14, 5  # methods and seeds of the matrix whose time is projected


def photos() -> str:
    """The folder of real photos; says so where there is none."""
    folder = os.environ.get("KRT_COCO_SUB", "")
    if not folder:
        print("KRT_COCO_SUB is not set: no real photos, so whole runs on them are not measured", flush=True)
    return folder


def whole_run(folder: Path, name: str, *changes: str) -> dict:
    """``krt train coco_sub`` as a user starts it: seconds, seconds of processor time and peak memory of its process."""
    command = [sys.executable, "-m", "krt_core.cli", "train", "coco_sub", *changes, "--folder", str(folder / name)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "KRT_HOME": str(folder)})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 2**10, 1),
    }


def ridge(folder: Path, root: str) -> dict[str, dict]:
    """Ridge regression on B0-C10, from JPEG files to the last session: nothing decoded yet, and everything there."""
    home = folder / "ridge"
    found = {"cold": whole_run(home, "cold", "method=ridge", f"data.root={root}")}
    warm = [whole_run(home, f"warm{i}", "method=ridge", f"data.root={root}") for i in range(3)]
    found["warm"] = {key: statistics.median(run[key] for run in warm) for key in warm[0]}
    return found


def jobs(folder: Path, root: str) -> dict[str, dict]:
    """One run of each kind on kept features, in one thread as a matrix with a worker per core starts them, and the
    hours of a matrix whose runs take their mean."""
    home, found = folder / "ridge", {}
    os.environ["OMP_NUM_THREADS"] = "1"
    whole_run(home, "first", "method=krt", f"data.root={root}", *STILL)  # makes the maps
    for method in JOBS:
        found[method] = whole_run(home, f"job-{method}", f"method={method}", f"data.root={root}", *STILL)
    mean = statistics.mean(run["processor_seconds"] for run in found.values())
    del os.environ["OMP_NUM_THREADS"]
    cores = len(os.sched_getaffinity(0))
    hours = mean * MATRIX[0] * MATRIX[1] / cores / 3600
    found["matrix"] = {"processor_seconds_a_run": round(mean, 1), "hours_on_these_cores": round(hours, 2)}
    return found


def network(experiment: Experiment, sessions: int) -> Network:
    from krt_core.weights.convert import network_of

    torch.manual_seed(0)
    made = network_of(experiment)
    for _ in range(sessions):
        made.add_session(10)
    return made.to(memory_format=torch.channels_last)


def heads(runtime: Runtime, folder: Path, batch: int, repeats: int) -> dict[str, dict]:
    """An epoch of a linear head on kept means of 4,096 images (those of EfficientNet-lite0 in size), first and last of
    eight sessions, through the learner itself."""
    found, count = {}, 4096
    for sessions in (1, 8):
        changes = [*STILL, "method=finetune", "model.weights=", f"train.batch_size={batch}", "train.epochs=20"]
        experiment = load_experiment("coco_sub", changes)
        model, method = network(experiment, sessions), METHODS["finetune"](experiment.options, experiment)
        model.freeze_backbone()
        protocol = make_protocol(tuple(f"class {c:02d}" for c in range(80)), 10, 10)
        session = protocol.sessions[sessions - 1]
        method.start_session(
            Context(experiment, protocol, session, model, None, model, lambda: None, np.zeros(0), print)
        )
        labels = np.random.default_rng(0).random((count, session.stop)) < 0.04
        rows = np.arange(count)
        store = made_up(features_of(model, runtime, "means"), count, folder)
        learner = Learner(model, method, experiment.train, True, View(rows, labels, count), runtime)

        def epoch(learner: Learner = learner, store: FeatureStore = store) -> None:
            learner.schedule.last_epoch = 0  # it ends after so many epochs
            learner.epoch(store, (0, 0, 0), lambda: None)

        ways = side_by_side({"epoch": epoch}, repeats)
        spent = side_by_side({"epoch": epoch}, repeats, clock=time.process_time)["epoch"]["seconds"]
        found[f"session {sessions}"] = {
            **ways["epoch"], "images_per_second": round(count / ways["epoch"]["seconds"]),
            "images_per_processor_second": round(count / spent),
        }  # fmt: skip
    return found


def made_up(maker, count: int, folder: Path) -> FeatureStore:  # type: ignore[no-untyped-def]
    """A store whose features are there already: random ones."""
    none = np.zeros((count, 0), bool)
    ids = np.array([f"{row:06d}" for row in range(count)])
    images = ImageStore(MultiLabelDataset("made_up", "train", folder, ids, ids, none, ()), 224, cache=False)
    images.key = "made up"
    store = FeatureStore(images, maker)
    with store.files[0].begin():
        rows = np.arange(count)
        store.files[0].write(rows, np.random.default_rng(0).random(store.files[0].shape, np.float32))
        store.files[0].vouch(rows)
    return store


def step(runtime: Runtime, repeats: int) -> dict[str, dict]:
    """A step of KRT in the fourth session, batch of the preset: the whole network trained, and a head on kept maps."""
    from .speed import method_in_session

    experiment = load_experiment("coco_sub", ["model.weights="])
    batch, protocol = experiment.train.batch_size, make_protocol(tuple(f"class {c:02d}" for c in range(80)), 10, 10)
    plain, ways = network(experiment, 3), {}
    images = torch.rand(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, 40)
    labels[:, 30:] = (torch.rand(batch, 10) < 0.2).float()
    for way in ("trained", "kept"):
        model = copy.deepcopy(plain)
        if way == "kept":
            model.freeze_backbone()
            images = features_of(model, runtime, "maps")(images).clone()
        old = for_inference(model, runtime.dtype)
        model.add_session(10)
        method, optimiser = method_in_session(experiment, model, old, 3, protocol), make_optimiser(model, 1e-4)
        given = Batch(images, labels, np.arange(batch))
        ways[way] = lambda m=model, k=method, o=optimiser, b=given: training_step(m, k, b, o, runtime)
    times = side_by_side(ways, repeats)
    spent = side_by_side(ways, repeats, clock=time.process_time)
    for way, found in times.items():
        found["images_per_second"] = round(batch / found["seconds"], 1)
        found["processor_seconds"] = spent[way]["seconds"]
    return times


def extraction(runtime: Runtime, dataset: MultiLabelDataset, repeats: int) -> dict[str, dict]:
    """Means of photos whose pixels are in the image cache, from disk to disk, and the network alone on ready tensors of
    the same batch size."""
    model = network(load_experiment("coco_sub", ["model.weights="]), 1)
    model.freeze_backbone()
    maker, images, count = features_of(model, runtime, "means"), ImageStore(dataset, 224), len(dataset)
    ready = to_device(torch.from_numpy(images.rows(np.arange(128))), runtime)
    looking = for_inference(model, runtime.dtype).backbone

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(count // 128):
            with runtime.autocast():
                looking(ready)

    def kept() -> None:
        store = FeatureStore(images, maker)
        for file in (store.files[0].path, store.files[0].sums_path):
            file.unlink(missing_ok=True)
        store.ensure(np.arange(count // 128 * 128))

    ways = {"bare": bare, "kept": kept}
    times, spent = side_by_side(ways, repeats), side_by_side(ways, repeats, clock=time.process_time)
    for way, found in times.items():
        found["images_per_second"] = round(count // 128 * 128 / found["seconds"], 1)
        found["processor_seconds"] = spent[way]["seconds"]
    return times


def show(name: str, found: dict[str, dict]) -> None:
    for way, numbers in found.items():
        each = ", ".join(f"{key} {value}" for key, value in numbers.items() if key != "times")
        print(f"{name}, {way}: {each}", flush=True)
