"""A small world: images whose squares say their classes, and experiments on them that end in seconds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from krt_core.config import Experiment, load_experiment

SIDE, CELL = 32, 8  # pixels of an image, and of the square that is a class's own
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx")
KNOWN = 10  # of these in the data that runs begin with; the others are added

COMMON: dict[str, Any] = {
    "name": "torture", "data.dataset": "table", "data.image_size": SIDE, "data.validation": 0.2, "data.workers": 2,
    "protocol.increment": 2, "model.backbone": "test_resnet", "model.stride": 8, "model.embed_dim": 32,
    "model.heads": 4, "train.epochs": 3, "train.batch_size": 16, "train.group": 16, "train.precision": "float32",
    "train.base_lr": 0.003, "train.lr": 0.003, "train.augment": "published", "train.evaluate_every": 1,
}  # fmt: skip
TRAINED: tuple[dict[str, Any], ...] = (
    {"method": "krt", "replay.per_class": 2},
    {"method": "krt", "replay.budget": 12, "replay.selection": "prs", "train.report": "best"},
    {"method": "krt", "krt.target": "estimated", "krt.per_class": True, "train.batch_norm": "frozen"},
    {"method": "pod", "replay.budget": 12, "replay.selection": "ocdm"},
    {"method": "finetune", "train.optimiser": "sgd", "train.schedule": "cosine", "train.clip_norm": 1.0},
    {"method": "masked", "train.head_start": "ridge"},
    {"method": "lwf", "train.optimiser": "adamw", "train.report": "best"},
    {"method": "ewc"},
    {"method": "er", "replay.per_class": 2, "replay.selection": "random"},
    {"method": "icarl", "replay.per_class": 2},
    {"method": "derpp", "replay.budget": 12},
    {"method": "rebll", "replay.per_class": 2},
    {"method": "kbk", "replay.per_class": 2},
    {"method": "agcn", "agcn.embeddings": "learned"},
    {"method": "csc"},
    {"method": "multilane"},
    {"method": "cumulative"},
    {"method": "joint"},
)
CLOSED: tuple[dict[str, Any], ...] = (
    {"method": "ridge"},
    {"method": "census"},
    {"method": "ridge", "ridge.old": "soft", "ridge.weights": "rare", "model.freeze": "first"},
    {"method": "l3a", "model.expand": 64},
    {"method": "joint_ridge"},
    {"method": "census", "data.features": False},
)
STILL: tuple[dict[str, Any], ...] = (
    {"method": "krt", "model.freeze": "all", "train.augment": "none", "replay.per_class": 2},
    {"method": "finetune", "model.freeze": "first", "train.augment": "light", "data.views": 3},
    {"method": "krt", "model.freeze": "first", "train.augment": "published", "data.views": 2},
    {"method": "lwf", "model.freeze": "all", "train.augment": "light", "data.views": 2},
    {"method": "ridge", "data.cache": False},
    {"method": "er", "model.freeze": "first", "train.augment": "none", "replay.per_class": 2},
)


def write_images(root: Path, classes: range, train: int, test: int, seed: int) -> Path:
    """A table of images and their tags, of the classes with these numbers, each of which comes in both halves."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    rows = [("image", "tags", "split")]
    for half, count in (("train", train), ("test", test)):
        for i in range(count):
            shown = {classes[i % len(classes)], *rng.choice(list(classes), rng.integers(0, 3), replace=False).tolist()}
            image = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
            for c in shown:
                y, x = divmod(c, SIDE // CELL)
                image[CELL * y : CELL * (y + 1), CELL * x : CELL * (x + 1)] = (60 + 15 * c, 250 - 12 * c, 90 * (c % 3))
            Image.fromarray(image).save(root / (name := f"{half}_{i:03d}.png"))
            rows.append((name, "|".join(CLASSES[c] for c in sorted(shown)), half))
    with (root / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return root


def experiment_of(changes: dict[str, Any], data: Path, rng: Random) -> Experiment:
    """Five sessions of two classes."""
    return load_experiment("digits_demo", {**COMMON, **changes, "data.root": str(data), "seed": rng.randrange(1000)})


def some(kinds: tuple[dict[str, Any], ...], folder: Path, seed: int, rng: Random, images: int = 60) -> Path:
    """The preset of one of these experiments on images of its own; each of them comes once in so many seeds."""
    data = write_images(folder / "data", range(KNOWN), images, images // 2, seed)
    experiment = experiment_of(kinds[seed % len(kinds)], data, rng)
    (preset := folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return preset


def as_layout(root: Path, preset: Path, layout: str) -> None:
    """Turn the table of a data set, and the preset that reads it, into "coco" or "voc"."""
    with (root / "tags.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (root / "tags.csv").unlink()
    write = {"coco": _as_coco, "voc": _as_voc}[layout]
    write(root, rows)
    experiment = load_experiment(preset, {"data.dataset": layout})
    preset.write_text(experiment.to_yaml(), encoding="utf-8")


def _as_coco(root: Path, rows: list[dict[str, str]]) -> None:
    (root / "annotations").mkdir()
    for half, name in (("train", "train2014"), ("test", "val2014")):
        (root / name).mkdir()
        images, annotations = [], []
        for i, row in enumerate(row for row in rows if row["split"] == half):
            (root / row["image"]).rename(root / name / row["image"])
            images.append({"id": i + 1, "file_name": row["image"], "width": SIDE, "height": SIDE})
            for tag in row["tags"].split("|"):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i + 1, "category_id": CLASSES.index(tag) + 1,
                     "bbox": [0, 0, CELL, CELL], "area": CELL**2, "iscrowd": 0}
                )  # fmt: skip
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": c + 1, "name": name} for c, name in enumerate(CLASSES[:KNOWN])]
        (root / f"annotations/instances_{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _as_voc(root: Path, rows: list[dict[str, str]]) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    ids: dict[str, list[str]] = {"trainval": [], "test": []}
    for row in rows:
        name = Path(row["image"]).stem
        ids["test" if row["split"] == "test" else "trainval"].append(name)
        Image.open(root / row["image"]).save(root / f"JPEGImages/{name}.jpg")
        (root / row["image"]).unlink()
        box = f"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{CELL}</xmax><ymax>{CELL}</ymax></bndbox>"
        objects = "".join(f"<object><name>{tag}</name>{box}</object>" for tag in row["tags"].split("|"))
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(text, encoding="utf-8")
    for half, names in ids.items():
        (root / f"ImageSets/Main/{half}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
