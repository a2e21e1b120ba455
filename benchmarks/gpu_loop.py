"""What surrounds the arithmetic of a step: the peak, images from the threads, the learning loop, several processes."""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from krt_core.config import load_experiment
from krt_core.data.pipeline import Batch, batches, sender
from krt_core.learn import Learner, make_optimiser
from krt_core.machine.cluster import cores
from krt_core.machine.device import Runtime, choose_runtime, peak_memory_mb, reset_peak_memory
from krt_core.machine.distributed import leave_world
from krt_core.methods import Method
from krt_core.model.inference import for_inference
from krt_core.model.network import Network
from krt_core.protocol import make_protocol

from .gpu_step import pytorchs_tf32
from .measure import side_by_side, training_step
from .speed import method_in_session, network_with

STORED = 512  # generated images in memory


def peaks(runtime: Runtime, repeats: int) -> dict:
    """Measured FLOP/s of a large matrix product in each precision, and bytes a second of a copy from pinned memory."""
    device, gpu = runtime.device, runtime.device.type == "cuda"
    size, found = 8192 if gpu else 1024, {}
    types = {"auto": runtime.dtype, "float32": torch.float32, "float16": torch.float16}
    for name, dtype in types.items() if gpu else [*types.items()][:2]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * size**3 / side_by_side({"product": lambda a=a, b=b: a @ b}, repeats)["product"]["seconds"]
    out: dict[str, Any] = {"flops": found}
    if gpu:
        images = torch.empty(128, 224, 224, 3, dtype=torch.uint8, pin_memory=True)
        send = sender(device)
        seconds = side_by_side({"copy": lambda: send(images)}, repeats)["copy"]["seconds"]
        out["copy"] = {
            "ms_of_128_images": round(1000 * seconds, 3),
            "gb_per_second": round(images.numel() / seconds / 1e9, 2),
        }
        with pytorchs_tf32():
            x, w = torch.randn(64, 256, 56, 56, device=device), torch.randn(256, 256, 3, 3, device=device)
            rough = side_by_side({"c": lambda: torch.conv2d(x, w)}, repeats)["c"]["seconds"]
        exact = side_by_side({"c": lambda: torch.conv2d(x, w)}, repeats)["c"]["seconds"]
        out["float32_convolution"] = {"ms": round(1000 * exact, 2), "ms_in_tf32": round(1000 * rough, 2)}
    return out


def store(size: int, threads: int = 0) -> Any:
    """Stands in for an `ImageStore` whose cache is in memory."""
    pixels = np.random.default_rng(0).integers(0, 255, (STORED, size, size, 3), dtype=np.uint8)
    return SimpleNamespace(size=size, workers=threads or len(cores()), rows=lambda rows: pixels[rows % STORED])


def inputs(runtime: Runtime, threads: Sequence[int], size: int, images: int) -> dict:
    """Images a second that so many threads augment and bring to the device, where nothing else is done."""
    rows, labels, found = np.arange(images), np.zeros((images, 80), bool), {}
    for kind in ("published", "light", "none"):
        found[kind] = {}
        for count in threads:
            given, times = store(size, count), []
            for _ in range(3):
                began = time.perf_counter()
                for batch in batches(given, rows, labels, 64, runtime, kind, (0,), True):
                    last = batch
                last.images[0, 0, 0, 0].item()  # all of them are there
                times.append(time.perf_counter() - began)
            found[kind][str(count)] = round(images / statistics.median(times), 1)
    return {"images_per_second": found, "size": size, "cores": len(cores())}


def learning(runtime: Runtime, backbone: str, sessions: int, batch: int, size: int) -> tuple[Network, Method, Any]:
    """A network in a session of COCO B0-C10 with its old model, the method around them, and its configuration."""
    network = network_with(backbone, sessions - 1, 10, size).to(runtime.device, memory_format=torch.channels_last)
    old = for_inference(copy.deepcopy(network), runtime.dtype)
    network.add_session(10)
    experiment = load_experiment("coco_b0c10", {"train.batch_size": batch, "train.group": batch})
    protocol = make_protocol(tuple(f"class {c:02d}" for c in range(80)), 10, 10)
    return network, method_in_session(experiment, network, old, sessions - 1, protocol), experiment


def epochs(
    runtime: Runtime,
    backbone: str,
    sessions: int,
    batch: int,
    size: int,
    steps: int,
    precision: str = "auto",
    compile: bool = False,
) -> dict:
    """Images a second of the learning loop over several epochs, the first of which only warms up."""
    runtime = runtime if precision == "auto" else replace(runtime, dtype=getattr(torch, precision))
    network, method, experiment = learning(runtime, backbone, sessions, batch, size)
    network.backbone.compiled = method.context.old_model.backbone.compiled = compile
    rows = np.arange(batch * steps)
    view = SimpleNamespace(rows=rows, labels=np.zeros((len(rows), 10 * sessions), bool), own=len(rows))
    view.labels[:, -1] = True
    learner, given = Learner(network, method, experiment.train, False, view, runtime), store(size)
    began = time.perf_counter()
    learner.epoch(given, (0, 0, 0), lambda: None, 2)
    warm = time.perf_counter() - began
    reset_peak_memory(runtime.device)
    rates = [learner.epoch(given, (0, 0, epoch), lambda: None)["images_per_second"] for epoch in (1, 2, 3)]
    return {
        "images_per_second": statistics.median(rates), "batch": batch, "first_two_steps_seconds": round(warm, 1),
        "peak_mb": round(peak_memory_mb(runtime.device), 1), "dtype": str(runtime.dtype), "compiled": compile,
    }  # fmt: skip


# ---- several processes ----


def together(runtime: Runtime, backbone: str, batch: int, size: int) -> dict:
    """A step shared by two processes (NCCL on two GPUs; gloo on the CPU) beside one process's with the same batch."""
    on_gpu = runtime.device.type == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        return {"left_out": "there is one GPU"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
               "benchmarks.gpu_loop", "cuda" if on_gpu else "cpu", backbone, str(batch), str(size)]  # fmt: skip
    threads = str(max(1, len(cores()) // 2))
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    alone = shared_step(runtime, backbone, batch, size)
    return {"one": alone, "two": json.loads(lines[-1]), "batch": batch}


def shared_step(runtime: Runtime, backbone: str, batch: int, size: int, repeats: int = 7) -> dict:
    """Milliseconds of a step on this process's share of the batch, and of adding up 100 MB over all processes."""
    world, device = runtime.world, runtime.device
    network, method, _ = learning(runtime, backbone, 2, batch, size)
    method.context.forward = world.wrap(network)
    own = batch // world.size
    images, labels = torch.rand(own, 3, size, size, device=device), torch.zeros(own, 20, device=device)
    given, optimiser = Batch(images, labels, np.arange(own), own / batch), make_optimiser(network, 1e-4)

    def step() -> None:
        training_step(network, method, given, optimiser, runtime).item()

    found = {"step_ms": _ms(step, repeats)}
    if world.size > 1:
        numbers: Tensor = torch.zeros(25_000_000 if device.type == "cuda" else 1_000_000, device=device)

        def add() -> None:
            dist.all_reduce(numbers)
            numbers[0].item()

        found["all_reduce"] = {"megabytes": numbers.numel() * 4 / 1e6, "ms": _ms(add, repeats)}
    return found


def _ms(work: Any, repeats: int) -> float:
    return round(1000 * side_by_side({"work": work}, repeats)["work"]["seconds"], 2)


if __name__ == "__main__":
    mine = choose_runtime("auto", sys.argv[1])
    found = shared_step(mine, sys.argv[2], *map(int, sys.argv[3:]))
    if mine.world.main:
        print(json.dumps(found), flush=True)
    leave_world()
