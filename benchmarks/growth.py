"""How cost grows: ``python -m benchmarks.growth [--quick] [--json FILE] [--figure FILE]``.

A training step and an evaluation against sessions and classes; an epoch of reading and an evaluation against images,
on the labels of COCO train2014 (the file named by ``KRT_COCO_LABELS``) with tiny generated images; reading COCO's
annotations at full size; the metrics of 40,000 images. Medians; the exponent is the slope of log cost over log size.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from krt_core.config import load_experiment
from krt_core.data import open_dataset
from krt_core.data.pipeline import Batch, batches
from krt_core.data.store import ImageStore
from krt_core.dpl import ThresholdRecord
from krt_core.errors import DataError
from krt_core.evaluate import predict, session_metrics
from krt_core.learn import make_optimiser
from krt_core.machine.device import choose_runtime, environment
from krt_core.methods import METHODS, Context
from krt_core.metrics import average_precision, forgetting, precision_recall_f1
from krt_core.model.inference import for_inference
from krt_core.protocol import make_protocol
from krt_core.runs.summary import ap_tables
from krt_core.weights.convert import network_of

from .measure import seconds, side_by_side, training_step

BATCH, SIZE = 32, 64  # a small backbone: what grows should show


def grown(sessions: int, classes: int, runtime):
    """KRT in the last of ``sessions`` sessions with ``classes`` classes in all; one step and one look at a batch."""
    each = classes // sessions
    overrides = {
        "model.embed_dim": 384, "protocol.increment": each, "train.batch_size": BATCH, "train.group": BATCH,
        "data.image_size": SIZE,
    }  # fmt: skip
    experiment = load_experiment("digits_demo", overrides)
    torch.manual_seed(0)
    model, old = network_of(experiment), None
    for session in range(sessions):
        if session == sessions - 1 and session:
            old = for_inference(model.to(runtime.device), runtime.dtype)
        model.add_session(each)
    model.to(runtime.device).to(memory_format=torch.channels_last)
    protocol = make_protocol(tuple(f"{c:04d}" for c in range(sessions * each)), each, each)
    method = METHODS["krt"](experiment.options, experiment)
    method.records[sessions - 1] = ThresholdRecord(0.8, 1.0, 1.0, 0, True)
    method.start_session(
        Context(experiment, protocol, protocol.sessions[-1], model, old, model, lambda: None, np.zeros(0), print)
    )
    optimiser = make_optimiser(model, 1e-4)
    images = torch.rand(BATCH, SIZE, SIZE, 3, device=runtime.device).permute(0, 3, 1, 2)
    labels = torch.zeros(BATCH, sessions * each, device=runtime.device)
    batch = Batch(images, labels, np.arange(BATCH))

    def step() -> None:
        training_step(model, method, batch, optimiser, runtime)

    looking = for_inference(model, runtime.dtype)

    def look() -> None:
        with torch.inference_mode(), runtime.autocast():
            torch.sigmoid(looking(images).logits).cpu()

    return step, look


def against(sizes: list[int], make, repeats: int) -> dict[str, dict[int, float]]:
    """Milliseconds of step and look for each size, all sizes in turn."""
    ways = {}
    for size in sizes:
        ways[f"step {size}"], ways[f"evaluation {size}"] = make(size)
    times = side_by_side(ways, repeats)
    return {what: {size: 1e3 * times[f"{what} {size}"]["seconds"] for size in sizes} for what in ("step", "evaluation")}


def exponent(costs: dict[int, float]) -> float:
    """Slope of log cost over log size, by least squares over the upper half of the sizes."""
    upper = sorted(costs)[len(costs) // 2 :] if len(costs) > 3 else sorted(costs)
    return float(np.polyfit(np.log(upper), np.log([costs[size] for size in upper]), 1)[0])


def coco_labels() -> np.ndarray:
    """(82081, 80) bool labels of COCO train2014; DataError where KRT_COCO_LABELS names no file."""
    path = Path(os.environ.get("KRT_COCO_LABELS", ""))
    if not path.is_file():
        raise DataError("Set KRT_COCO_LABELS to the npz file with the labels of COCO train2014.")
    with np.load(path, allow_pickle=False) as stored:
        packed = next(stored[key] for key in stored.files if stored[key].ndim == 2)
        return packed if packed.dtype == bool else np.unpackbits(packed, axis=1, count=80).astype(bool)


def write_coco(root: Path, labels: np.ndarray, side: int = 16) -> None:
    """A COCO folder with these labels, one annotation (with box and outline) for each, and tiny JPEG images."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": c + 1, "name": f"class {c:02d}", "supercategory": "thing"} for c in range(labels.shape[1])]
    for split, chosen in (("train", labels), ("test", labels[:64])):
        (root / split).mkdir()
        images, annotations = [], []
        for i, row in enumerate(chosen):
            file = f"COCO_{split}2014_{i:012d}.jpg"
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(root / split / file, quality=60)
            images.append({"id": i, "file_name": file, "width": 640, "height": 480, "license": 1, "flickr_url": file})
            for c in np.flatnonzero(row):
                outline = rng.uniform(0, 480, 40).round(2).tolist()
                number, box = len(annotations), [10, 20, 100, 200]
                annotations.append(
                    {"id": number, "image_id": i, "category_id": int(c) + 1, "iscrowd": 0, "bbox": box,
                     "area": 20000.0, "segmentation": [outline]}
                )  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def images(runtime, folder: Path, counts: list[int]) -> tuple[dict, dict]:
    """Seconds of an epoch of reading and augmenting and of an evaluation, against images; and of opening the set."""
    labels = coco_labels()
    write_coco(folder / "coco", labels[: max(counts)])
    data = load_experiment("digits_demo", {"data.dataset": "coco", "data.root": str(folder / "coco")}).data
    opened = {"first_time": seconds(lambda: open_dataset(data, "train"))}
    opened["from_cache"] = min(seconds(lambda: open_dataset(data, "train")) for _ in range(3))
    opened["annotation_megabytes"] = round((folder / "coco/annotations/train.json").stat().st_size / 1e6, 1)
    dataset = open_dataset(data, "train")
    opened["decoding"] = seconds(lambda: ImageStore(dataset, 32))
    store, protocol = ImageStore(dataset, 32), make_protocol(dataset.classes, 10, 10)
    network = network_of(load_experiment("digits_demo", {"data.image_size": 32, "model.backbone": "test_resnet"}))
    for _ in protocol.sessions:
        network.add_session(10)
    network.to(runtime.device)
    costs: dict[str, dict[int, float]] = {"epoch of reading": {}, "evaluation": {}}

    def read(rows: np.ndarray) -> None:
        for _ in batches(store, rows, dataset.labels[rows], 128, runtime, "published", (0,), True):
            pass

    def evaluate(rows: np.ndarray) -> None:
        scores, _ = predict(network, store, rows, runtime, 128)
        session_metrics(protocol, 7, scores, dataset.labels[rows], full=True)

    for count in counts:
        rows = np.arange(count)
        costs["epoch of reading"][count] = seconds(lambda rows=rows: read(rows))
        costs["evaluation"][count] = seconds(lambda rows=rows: evaluate(rows))
    return costs, opened


def metrics(count: int = 40_000, classes: int = 80, sessions: int = 8) -> dict[str, float]:
    """Seconds of mAP and F1 of (40,000, 80) scores, and of every definition of forgetting over eight sessions."""
    rng = np.random.default_rng(0)
    labels = rng.random((count, classes)) < 2.9 / classes
    scores = [(rng.random((count, classes)) * 0.6 + 0.3 * labels).astype(np.float32) for _ in range(sessions)]
    protocol = make_protocol(tuple(f"{c:02d}" for c in range(classes)), classes // sessions, classes // sessions)
    seen = [s[:, : session.stop] for s, session in zip(scores, protocol.sessions, strict=True)]

    def every_definition() -> None:
        first = np.repeat(np.arange(sessions), classes // sessions)
        forgetting(ap_tables(protocol, [(s, labels) for s in seen]), first)

    return {
        "mAP": min(seconds(lambda: average_precision(scores[0], labels).mean()) for _ in range(3)),
        "CP to OF1": min(seconds(lambda: precision_recall_f1(scores[0], labels)) for _ in range(3)),
        "forgetting": min(seconds(every_definition) for _ in range(3)),
    }


def draw_figure(result: dict, path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    panels = [("sessions", "sessions", "ms"), ("classes", "classes (8 sessions)", "ms"), ("images", "images", "s")]
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.4), layout="constrained")
    for axis, (key, label, unit) in zip(axes, panels, strict=True):
        for (name, costs), marker in zip(result.get(key, {}).items(), "os", strict=False):
            sizes = sorted(costs)
            slope = result["exponents"][f"{key}: {name}"]
            axis.loglog(sizes, [costs[s] for s in sizes], marker=marker, label=f"{name} (exponent {slope:.2f})")
        axis.set(xlabel=label, ylabel=f"{unit} per batch of {BATCH}" if unit == "ms" else "seconds")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(bottom=min(axis.get_ylim()[0], axis.get_ylim()[1] / 20))  # small changes shall look small
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--figure", metavar="FILE", help="a PNG or PDF")
    options = parser.parse_args(arguments)
    runtime, repeats = choose_runtime("auto"), 3 if options.quick else 9
    sessions = [1, 4, 16] if options.quick else [1, 2, 4, 8, 16, 32]
    classes = [80, 320] if options.quick else [16, 80, 160, 320, 640, 1000]
    result = {
        "sessions": against(sessions, lambda n: grown(n, 10 * n, runtime), repeats),
        "classes": against(classes, lambda n: grown(8, n, runtime), repeats),
        "metrics": metrics(),
    }
    if os.environ.get("KRT_COCO_LABELS"):
        counts = [1000, 4000] if options.quick else [5130, 10_260, 20_520, 41_040, 82_081]
        with tempfile.TemporaryDirectory() as folder:
            before = os.environ.get("KRT_HOME")
            os.environ["KRT_HOME"] = folder
            result["images"], result["opening"] = images(runtime, Path(folder), counts)
            os.environ.pop("KRT_HOME") if before is None else os.environ.update(KRT_HOME=before)
    result["exponents"] = {
        f"{key}: {name}": round(exponent(costs), 2)
        for key in ("sessions", "classes", "images")
        for name, costs in result.get(key, {}).items()
    }
    result["machine"] = {k: v for k, v in environment(runtime).items() if k != "host"}
    if options.figure:
        draw_figure(result, Path(options.figure))
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
