"""Many classes and many images, generated: each image is a file of its own, as a user's is."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16  # pixels
PER_FOLDER = 1000

SMALL: dict[str, Any] = {  # a network that costs next to nothing, on images that are decoded and computed once
    "name": "endurance", "data.dataset": "table", "data.image_size": 32, "data.workers": 1,
    "model.backbone": "test_resnet", "model.stride": 8, "model.embed_dim": 32, "model.heads": 4, "model.freeze": "all",
    "train.epochs": 1, "train.batch_size": 32, "train.group": 32, "train.precision": "float32", "train.augment": "none",
    "train.base_lr": 0.003, "train.lr": 0.003, "train.evaluate_every": 0,
}  # fmt: skip


def name_of(c: int) -> str:
    return f"class_{c:04d}"


def write_world(root: Path, classes: int, train: int, test: int, seed: int = 0) -> Path:
    """A table with a split: of each class so many training and test images, each of which may show two more classes.
    A class is a pattern of colours that an image is made of."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((classes, SIDE, SIDE, 3)) ** 2
    rows = []
    for half, each in (("train", train), ("test", test)):
        for i in range(classes * each):
            shown = sorted({i % classes, *rng.choice(classes, rng.integers(0, 3)).tolist()})
            image = patterns[shown].mean(axis=0) + 0.1 * rng.random((SIDE, SIDE, 3))
            rows.append((_write(root, f"{half}/{i:06d}", 230 * image / 1.1), "|".join(map(name_of, shown)), half))
    return _table(root, ("image", "tags", "split"), rows)


def write_rows(root: Path, count: int, classes: int, seed: int = 0) -> Path:
    """A table of so many images with one to three tags, and nothing that says which are for tests."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    rows = []
    for i in range(count):
        shown = sorted({i % classes, *rng.choice(classes, rng.integers(0, 3)).tolist()})
        rows.append((_write(root, f"{i // PER_FOLDER:03d}/{i:06d}", small[i]), "|".join(map(name_of, shown))))
    return _table(root, ("image", "tags"), rows)


def _write(root: Path, name: str, pixels: np.ndarray) -> str:
    path = root / f"{name}.png"
    if path.name.endswith("000.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png", compress_level=1)
    path.write_bytes(buffer.getvalue())
    return f"{name}.png"


def _table(root: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with (root / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return root
