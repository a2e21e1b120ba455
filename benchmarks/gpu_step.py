"""A training step and an evaluation on a processor, the published way beside ours: images a second, the share that the
backbones' arithmetic takes of the peak, memory; where the time goes; and the hours of COCO B0-C10 at these rates.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from krt_core.config import load_experiment
from krt_core.data.pipeline import Batch
from krt_core.learn import make_optimiser
from krt_core.machine.device import Runtime
from krt_core.model.inference import for_inference
from krt_core.protocol import make_protocol

from . import published
from .measure import side_by_side, training_step
from .speed import THRESHOLD, WEIGHT, method_in_session, network_with

TRAIN_IMAGES = (18599, 28071, 27930, 17218, 51104, 18851, 16845, 21750)  # COCO B0-C10, images of each session
TEST_IMAGES = 40_504  # of val2014; an upper bound of those with a class seen so far
REPLAYED = 200  # exemplars that a session adds, at 20 per class
EPOCHS = 20


@contextlib.contextmanager
def pytorchs_tf32() -> Iterator[None]:
    """TF32 in convolutions, which PyTorch has on and the published code leaves on."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def step_and_look(backbone: str, sessions: int, batch: int, runtime: Runtime, size: int = 224) -> dict:
    """Ways of a training step and of an evaluation in the last of ``sessions`` sessions, and their FLOPs."""
    device = runtime.device
    network = network_with(backbone, max(1, sessions - 1), 10, size)
    old = copy.deepcopy(network).eval().requires_grad_(False).to(device)
    if sessions > 1:
        network.add_session(10)
    network.to(device)
    model = copy.deepcopy(network).to(memory_format=torch.channels_last)
    fast_old = for_inference(copy.deepcopy(old).to(memory_format=torch.channels_last), runtime.dtype)
    experiment = load_experiment("coco_b0c10", {"train.batch_size": batch, "train.group": batch})
    protocol = make_protocol(tuple(f"class {c:02d}" for c in range(80)), 10, 10)
    method = method_in_session(experiment, model, fast_old, sessions - 1, protocol)
    optimiser, theirs = make_optimiser(model, 1e-4), published.make_published_optimiser(network, 1e-4)
    images = torch.rand(batch, size, size, 3, device=device).permute(0, 3, 1, 2)
    labels = torch.zeros(batch, 10 * sessions, device=device)
    labels[:, -1] = 1
    given = Batch(images, labels, np.arange(batch))

    def ours() -> None:
        training_step(model, method, given, optimiser, runtime).item()

    @pytorchs_tf32()
    def as_published() -> None:
        """With mixed precision on a GPU, as published; the old model in full precision."""
        network.train()
        network.to(memory_format=torch.contiguous_format)
        autocast = torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")
        with autocast:
            output = published.forward(network, images)
        if sessions > 1:
            with torch.no_grad():
                before = published.forward(old, images)
            loss = published.asymmetric_loss(output.logits.float(), labels)
            loss = loss + WEIGHT * published.token_distillation(before.tokens, output.tokens.float())
            (torch.sigmoid(before.logits) > THRESHOLD).sum().item()
        else:
            loss = published.asymmetric_loss(output.logits.float(), labels)
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        loss.item()

    looking = for_inference(model, runtime.dtype)

    def look() -> None:
        with torch.inference_mode(), runtime.autocast():
            torch.sigmoid(looking(images).logits).cpu()

    @pytorchs_tf32()
    def look_as_published() -> None:
        network.eval()
        with torch.no_grad():
            torch.sigmoid(published.forward(network, images).logits).cpu()

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval().backbone(images[:1])
    forward = batch * counter.get_total_flops()  # of the backbone alone, which is nearly all
    flops = {"step": forward * (4 if sessions > 1 else 3), "evaluation": forward}  # backward counts twice
    return {"step": (ours, as_published), "evaluation": (look, look_as_published), "flops": flops}


def measure(
    backbone: str, sessions: int, batch: int, runtime: Runtime, best: float | None, repeats: int, size: int
) -> dict:
    ways = step_and_look(backbone, sessions, batch, runtime, size)
    found = {"backbone": backbone, "sessions": sessions, "batch": batch}
    for what in ("step", "evaluation"):
        ours, theirs = ways[what]
        times = side_by_side({"published": theirs, "ours": ours}, repeats)
        found[what] = {
            "ms": round(1000 * times["ours"]["seconds"], 2),
            "published_ms": round(1000 * times["published"]["seconds"], 2),
            "images_per_second": round(batch / times["ours"]["seconds"], 1),
            "published_images_per_second": round(batch / times["published"]["seconds"], 1),
            "ratio": round(times["published"]["seconds"] / times["ours"]["seconds"], 2),
            "share_of_peak": round(ways["flops"][what] / times["ours"]["seconds"] / best, 3) if best else None,
            "peak_mb": times["ours"]["peak_mb"],
            "published_peak_mb": times["published"]["peak_mb"],
        }
    return found


def projected_hours(rows: list[dict]) -> dict[str, float]:
    """Hours of COCO B0-C10 at the rates of the measured sessions (the nearest one stands for those between): training,
    one validation an epoch, one pass for herding and pseudo labels."""
    seconds = {"ours": 0.0, "published": 0.0}
    for index, own in enumerate(TRAIN_IMAGES):
        row = min(rows, key=lambda r: abs(r["sessions"] - index - 1))
        trained = own + REPLAYED * index
        for way, prefix, passes in (("ours", "", 1), ("published", "published_", 3)):
            step, look = (row[what][f"{prefix}images_per_second"] for what in ("step", "evaluation"))
            seconds[way] += EPOCHS * (trained / step + passes * TEST_IMAGES / 2 / look) + 2 * trained / look
    return {way: round(value / 3600, 2) for way, value in seconds.items()}


def where_time_goes(backbone: str, batch: int, runtime: Runtime, size: int, trace: str | None) -> list[dict]:
    """The operations that take most of a step in the eighth session."""
    from torch.profiler import ProfilerActivity, profile

    ours, _ = step_and_look(backbone, 8, batch, runtime, size)["step"]
    ours()
    gpu = runtime.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        ours()
    if trace:
        profiler.export_chrome_trace(trace)
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    return [{"operation": e.key, "share": round(getattr(e, key) / total, 3), "calls": e.count} for e in events[:15]]
