"""A small world: images whose squares say their classes, and experiments on them that end in seconds."""

from __future__ import annotations

import csv
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
