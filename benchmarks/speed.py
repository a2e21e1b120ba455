"""The published way against ours: ``python -m benchmarks.speed [--quick] [--json FILE] [--only NAME ...]``.

Each measurement runs both ways in turn on the same data and reports the ratio of the median times. Data are generated
in a temporary folder. ``--quick`` takes fewer images and repeats; it ends within minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader

from krt_core.config import Experiment, load_experiment
from krt_core.data import MultiLabelDataset, open_dataset
from krt_core.data.pipeline import batches
from krt_core.data.store import ImageStore
from krt_core.dpl import ThresholdRecord
from krt_core.evaluate import predict, session_metrics
from krt_core.learn import make_optimiser
from krt_core.machine.device import Runtime, choose_runtime, environment
from krt_core.memory import Ranked
from krt_core.methods import METHODS, Context, Method
from krt_core.model.ica import IncrementalCrossAttention, looped
from krt_core.model.inference import for_inference
from krt_core.model.network import Network
from krt_core.protocol import Protocol, make_protocol, session_view
from krt_core.session import _Training, train
from krt_core.weights.convert import network_of

from . import published, still
from .measure import seconds, side_by_side
from .photos import write_photos

THRESHOLD, WEIGHT = 0.8, 100.0  # a pseudo-label threshold and a weight of the distillation, the same for both ways


@dataclass
class Bench:
    quick: bool
    folder: Path
    runtime: Runtime
    ratios: dict[str, float] = field(default_factory=dict)
    absolute: dict[str, dict] = field(default_factory=dict)

    @property
    def repeats(self) -> int:
        return 3 if self.quick else 7

    def photos(self, train: int, test: int) -> tuple[MultiLabelDataset, MultiLabelDataset]:
        root = self.folder / f"photos-{train}-{test}"
        if not root.is_dir():
            write_photos(root, train, test)
        data = load_experiment("digits_demo", {"data.dataset": "coco", "data.root": str(root)}).data
        return open_dataset(data, "train"), open_dataset(data, "test")

    def report(self, name: str, times: dict[str, dict], images: int | None = None, **more: object) -> None:
        """Keep the ratio published / ours of a measurement, and what it is made of."""
        ratio = times["published"]["seconds"] / times["ours"]["seconds"]
        if images:
            for way in times.values():
                way["images_per_second"] = round(images / way["seconds"], 1)
        self.ratios[name] = round(ratio, 2)
        self.absolute[name] = {**times, **more}
        each = ", ".join(
            f"{way} {t['seconds']:.3f} s" + (f" ({t['images_per_second']} images/s)" if images else "")
            + f" {t['peak_mb']:.0f} MB" for way, t in times.items()
        )  # fmt: skip
        print(f"{name}: {ratio:.2f} x   {each}", flush=True)


def network_with(backbone: str, sessions: int, classes: int, size: int = 224, dim: int = 384) -> Network:
    experiment = load_experiment(
        "coco_b0c10", {"model.backbone": backbone, "model.weights": "", "data.image_size": size, "model.embed_dim": dim}
    )
    torch.manual_seed(0)
    network = network_of(experiment)
    for _ in range(sessions):
        network.add_session(classes)
    return network


# ---- the measurements ----


def ica(bench: Bench) -> None:
    """The attention block alone, forward and backward, 8 sessions; and how it grows from 1 to 16."""
    device, (batch, patches, dim) = bench.runtime.device, (64, 49, 384)
    x = torch.randn(batch, patches, dim, device=device)

    def block(sessions: int) -> tuple[Callable, Callable]:
        torch.manual_seed(0)
        module = IncrementalCrossAttention(dim, 8).to(device)
        for _ in range(sessions):
            module.add_session()

        def run(way: Callable) -> None:
            inputs = x.clone().requires_grad_(True)
            way(inputs)[0].square().mean().backward()

        return lambda: run(module), lambda: run(lambda inputs: looped(module, inputs))

    (ours8, loop8), (ours1, loop1), (ours16, loop16) = block(8), block(1), block(16)
    bench.report("ica_8_sessions", side_by_side({"published": loop8, "ours": ours8}, 3 * bench.repeats))
    ways = {"loop 1": loop1, "ours 1": ours1, "loop 16": loop16, "ours 16": ours16}
    grown = side_by_side(ways, 3 * bench.repeats)
    bench.ratios["ica_growth_16_over_1"] = round(grown["ours 16"]["seconds"] / grown["ours 1"]["seconds"], 2)
    loop = grown["loop 16"]["seconds"] / grown["loop 1"]["seconds"]
    bench.absolute["ica_growth_16_over_1"] = {**grown, "loop": round(loop, 2)}
    print(f"ica_growth_16_over_1: {bench.ratios['ica_growth_16_over_1']:.2f} (the loop: {loop:.2f})", flush=True)


def input_pipeline(bench: Bench) -> None:
    """Training images ready for the network, by CPU time: JPEG to augmented batch against cache to augmented batch."""
    count = 64 if bench.quick else 256
    dataset, _ = bench.photos(count, 48 if bench.quick else 192)
    rows, threads = np.arange(count), torch.get_num_threads()
    build = seconds(lambda: ImageStore(dataset, 224, workers=1))
    store = ImageStore(dataset, 224, workers=1)
    runtime = Runtime(torch.device("cpu"), torch.float32, {})

    def theirs() -> None:
        list(DataLoader(published.Images(dataset, rows, dataset.labels, 224, "published"), 64))

    def ours(kind: str) -> None:
        list(batches(store, rows, dataset.labels, 64, runtime, kind, (0,), True))

    kinds = ("none", "light", "published")
    ways = {"theirs": theirs, **{kind: partial(ours, kind) for kind in kinds}}
    torch.set_num_threads(1)
    times = side_by_side(ways, bench.repeats, clock=time.process_time)
    torch.set_num_threads(threads)
    each = {kind: round(1000 * times[kind]["seconds"] / count, 3) for kind in kinds}
    more = {"cache_built_images_per_second": round(count / build, 1), "ms_per_image": each}
    bench.report("input_pipeline", {"published": times["theirs"], "ours": times["published"]}, count, **more)
    print(f"  CPU time per image, ms: {each}", flush=True)


def evaluation_epoch(bench: Bench, backbone: str = "tf_efficientnet_lite0", name: str = "evaluation_epoch") -> None:
    """One validation in the third of four sessions: base, seen and new in a pass each, or all in one."""
    dataset, _ = bench.photos(*((64, 48) if bench.quick else (256, 192)))
    protocol, index = make_protocol(dataset.classes, 2, 2), 2
    labels, network = protocol.reorder(dataset.labels), network_with(backbone, 3, 2)
    store = ImageStore(dataset, 224)
    rows = np.flatnonzero(labels[:, : protocol.sessions[index].stop].any(axis=1))
    device = bench.runtime.device
    fast = copy.deepcopy(network).to(device).to(memory_format=torch.channels_last)
    plain = network.to(device)

    def ours() -> None:
        scores, _ = predict(fast, store, rows, bench.runtime, 64)
        session_metrics(protocol, index, scores, labels[rows], full=False)

    ways = {"published": lambda: published.evaluate(plain, dataset, protocol, index, 224, 64), "ours": ours}
    bench.report(name, side_by_side(ways, bench.repeats), len(rows))


def incremental_step(bench: Bench) -> None:
    """A training step of TResNet-M at 224 px in the last of eight sessions, images from disk, old model included."""
    batch = 24 if bench.quick else 64
    dataset, _ = bench.photos(*((64, 48) if bench.quick else (256, 192)))
    rows, runtime = np.arange(batch), bench.runtime
    labels = np.zeros((batch, 80), bool)
    labels[np.arange(batch), np.arange(batch) % 80] = True
    store = ImageStore(dataset, 224)
    model = network_with("tresnet_m", 7, 10)
    old = copy.deepcopy(model).eval().requires_grad_(False).to(runtime.device)
    model.add_session(10)
    model.to(runtime.device)
    fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
    fast_old = for_inference(old.to(memory_format=torch.channels_last), runtime.dtype)
    old = copy.deepcopy(old).to(memory_format=torch.contiguous_format)
    experiment = load_experiment("coco_b0c10", {"train.batch_size": batch, "train.group": batch})
    protocol = make_protocol(tuple(f"class {c:02d}" for c in range(80)), 10, 10)
    method = method_in_session(experiment, fast, fast_old, 7, protocol)
    optimiser, theirs = make_optimiser(fast, 1e-4), published.make_published_optimiser(model, 1e-4)
    weight = WEIGHT * np.sqrt(8)

    def ours() -> None:
        fast.train()
        for b in batches(store, rows, labels, batch, runtime, "published", (0,), True):
            with runtime.autocast():
                result = method.loss(b)
            result["loss"].backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def as_published() -> None:
        model.train()
        for images, wanted in DataLoader(published.Images(dataset, rows, labels, 224, "published"), batch):
            images, wanted = images.to(runtime.device), wanted.to(runtime.device)
            published.train_step(model, old, theirs, images, wanted, THRESHOLD, weight)

    times = side_by_side({"published": as_published, "ours": ours}, 2 if bench.quick else bench.repeats)
    bench.report("incremental_step", times, batch)


def method_in_session(experiment: Experiment, model: Network, old: Network, index: int, protocol: Protocol) -> Method:
    """KRT in session ``index`` with a given threshold, as the session loop would have set it up."""
    method = METHODS["krt"](experiment.options, experiment)
    method.records[index] = ThresholdRecord(THRESHOLD, 1.0, 1.0, 0, True)
    method.start_session(
        Context(experiment, protocol, protocol.sessions[index], model, old, model, lambda: None, np.zeros(0), print)
    )
    return method


def session(bench: Bench, backbone: str = "tf_efficientnet_lite0", name: str = "session") -> None:
    """A whole later session: pseudo-label threshold, training with a validation after every epoch, herding."""
    train_set, test_set = bench.photos(*((128, 96) if bench.quick else (256, 192)))
    index = 1
    overrides = {
        "data.dataset": "coco", "data.root": str(train_set.root), "data.image_size": 224, "protocol.increment": 2,
        "model.backbone": backbone, "model.stride": 0, "model.embed_dim": 384,
        "train.epochs": 2 if bench.quick else 3, "train.batch_size": 32, "train.group": 32,
        "train.augment": "published", "train.evaluate_every": 1,
        "replay.per_class": 2, "krt.token_weight": WEIGHT,
    }  # fmt: skip
    experiment = load_experiment("digits_demo", overrides)
    first, again = train(experiment, bench.folder / f"whole-{backbone}", show="none"), bench.folder / "again"

    def ours() -> None:
        shutil.copytree(first.folder, again)
        for t in range(index, len(first.protocol.sessions)):
            shutil.rmtree(again / f"session_{t:02d}")
        (again / "DONE").unlink()
        stop_after = patch.object(_Training, "session", one_session(_Training.session))
        with stop_after, contextlib.suppress(SessionDone):
            train(experiment, again, show="none")
        shutil.rmtree(again)

    protocol, memory = first.protocol, Ranked(experiment.replay)
    memory.load_state(first.session_state(index - 1)["memory"])
    view = session_view(protocol, protocol.reorder(train_set.labels), index, memory, "session")

    def theirs() -> None:
        network = network_of(experiment).to(bench.runtime.device)
        network.add_session(2)
        network.load_state_dict(first.model_state(index - 1))
        old = copy.deepcopy(network).eval().requires_grad_(False)
        network.add_session(2)
        published.session(experiment, network, old, train_set, test_set, protocol, index, view)

    images = experiment.train.epochs * len(view.rows)
    ways = {"published": theirs, "ours": ours}
    repeats = 2 if bench.quick else bench.repeats
    bench.report(name, side_by_side(ways, repeats, warm_up=not bench.quick), images)
    if not bench.quick and name == "session":
        session(bench, "resnet18", "session_resnet18")


def standing_still(bench: Bench) -> None:
    """What a backbone that stands still saves; see `benchmarks.still`."""
    dataset, _ = bench.photos(*((384, 16) if bench.quick else (1024, 16)))
    found = {
        "extraction": still.extraction(bench.runtime, dataset, bench.repeats),
        "step": still.step(bench.runtime, bench.repeats),
        **{f"heads, batch {n}": still.heads(bench.runtime, bench.folder, n, bench.repeats) for n in (32, 128)},
    }
    if root := still.photos():
        found["ridge"] = still.ridge(bench.folder, root)
        if not bench.quick:
            found["jobs"] = still.jobs(bench.folder, root)
    for name, numbers in found.items():
        still.show(name, numbers)
    bench.absolute["still"] = found
    for name, one, other in (("extraction", "bare", "kept"), ("step", "trained", "kept")):
        times = found[name]
        bench.ratios[f"still_{name}"] = round(times[one]["seconds"] / times[other]["seconds"], 2)
        spent = times[one]["processor_seconds"] / times[other]["processor_seconds"]
        print(f"still_{name}: {bench.ratios[f'still_{name}']:.2f} ({spent:.2f} by processor time)", flush=True)


class SessionDone(Exception):
    """Leaves the session loop."""


def one_session(original: Callable) -> Callable:
    def run(self: _Training, index: int, resume: dict | None) -> None:
        original(self, index, resume)
        raise SessionDone

    return run


MEASUREMENTS = {
    "ica": ica,
    "input_pipeline": input_pipeline,
    "evaluation_epoch": evaluation_epoch,
    "incremental_step": incremental_step,
    "session": session,
    "still": standing_still,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and repeats")
    parser.add_argument("--json", metavar="FILE", help="write ratios, absolute and machine to this file")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRT_HOME"] = folder  # caches and runs of the measurements go with the folder
        bench = Bench(options.quick, Path(folder), choose_runtime("auto", options.device))
        for name in options.only:
            MEASUREMENTS[name](bench)
        machine = {k: v for k, v in environment(bench.runtime).items() if k != "host"}
    result = {"ratios": bench.ratios, "absolute": bench.absolute, "machine": machine}
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
