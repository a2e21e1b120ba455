"""The embedded data set: scenes of real handwritten digits, made in seconds without a download.

The 1,797 digits come with scikit-learn (UCI "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak).
A scene holds one to four of them at varied place, size, tilt and colour on cluttered ground. Each digit image is used
for training scenes or for test scenes, never for both. The result is a COCO-format folder, read by the COCO reader.

``data.cardinality`` asks for scenes with another mean number of labels, ``data.co_occurrence`` for classes that come
together; each such set lies in a folder of its own beside the embedded one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..machine.home import atomic_write
from ..machine.locks import only_one

SIDE = 64  # pixels
SCENES = {"train": 1500, "test": 600}
SEED = 2023
VERSION = 1  # raise it when the scenes change
NAMES = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")  # sorted, as a COCO file is
VALUES = (8, 5, 4, 9, 1, 7, 6, 3, 2, 0)
SOURCE = "scikit-learn load_digits (UCI, CC BY 4.0)"
MOST = 5  # labels of a scene with a mean that is asked for
GROUPS = 2  # every other class is of one group: with alphabetical sessions of two, each session has one of either

Asked = dict[str, float]  # cardinality and co_occurrence, see `krt_core.config.Data`; 0: as embedded
Glyphs = Callable[[str], dict[str, np.ndarray]]  # of a split: class → (m, 8, 8) in [0, 1]; names sorted, as in a file


def folder(root: Path, cardinality: float = 0.0, co_occurrence: float = 0.0) -> Path:
    """Where scenes that are asked for lie: ``root`` itself for the embedded ones, else beside it."""
    parts = (f"-{cardinality}labels" * bool(cardinality), f"-{co_occurrence}together" * bool(co_occurrence))
    return root.with_name(root.name + "".join(parts))


def handwritten(split: str) -> dict[str, np.ndarray]:
    """Of each class the first 70 % of its digits for training scenes, the rest for test scenes (writers differ)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    out = {}
    for name, value in zip(NAMES, VALUES, strict=True):
        mine = bunch.images[bunch.target == value] / 16.0
        cut = int(0.7 * len(mine))
        out[name] = mine[:cut] if split == "train" else mine[cut:]
    return out


def make(root: Path, cardinality: float = 0.0, co_occurrence: float = 0.0, glyphs: Glyphs = handwritten) -> Path:
    """Write the data set under ``root`` unless it is there. The same bytes of labels and pixels on every machine."""
    asked = {"cardinality": cardinality, "co_occurrence": co_occurrence}
    if not _is_made(root, asked):
        with only_one(root.parent / f".{root.name}.lock"):
            if not _is_made(root, asked):
                _make(root, asked, glyphs)
    return root


def _is_made(root: Path, asked: Asked) -> bool:
    try:
        info = json.loads((root / "annotations" / "info.json").read_text(encoding="utf-8"))
        if any(info.get(key, 0.0) != value for key, value in asked.items()):
            return False
        return info["version"] == VERSION and info.get("bytes") in (None, _bytes(root))  # older ones do not say
    except (OSError, ValueError, KeyError, TypeError):  # not there, or cut short
        return False


def _bytes(root: Path) -> dict[str, int]:
    """How much each folder holds of what was written."""
    kinds = {"annotations": "instances_*.json", "train2014": "*.png", "val2014": "*.png"}
    return {folder: sum(file.stat().st_size for file in (root / folder).glob(kind)) for folder, kind in kinds.items()}


def _make(root: Path, asked: Asked, glyphs: Glyphs) -> None:
    building = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        (building / "annotations").mkdir()
        for split in SCENES:
            _write_split(building, split, asked, glyphs(split))
        info = {
            "version": VERSION,
            "seed": SEED,
            "scenes": SCENES,
            **asked,
            "source": SOURCE if glyphs is handwritten else glyphs.__module__,
            "bytes": _bytes(building),
        }
        atomic_write(building / "annotations" / "info.json", json.dumps(info))
        os.chmod(building, 0o755)  # generated digits, for whoever shares the folder  # nosec B103
        if root.exists():  # an older version, or what an interrupted copy left behind
            shutil.rmtree(root)
        os.replace(building, root)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_split(root: Path, split: str, asked: Asked, glyphs: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng([SEED, split == "test"])
    digits = list(glyphs.values())
    folder = root / f"{split if split == 'train' else 'val'}2014"
    folder.mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(SCENES[split]):
        scene, placed = _scene(rng, digits, **asked)
        name = f"{split}_{index:04d}.png"
        buffer = io.BytesIO()
        scene.save(buffer, "PNG")
        (folder / name).write_bytes(buffer.getvalue())
        images.append({"id": index + 1, "file_name": name, "width": SIDE, "height": SIDE})
        for column, box in placed:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": column + 1, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(glyphs)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = "instances_train2014.json" if split == "train" else "instances_val2014.json"
    (root / "annotations" / file).write_text(json.dumps(content), encoding="utf-8")


def _labels(rng: np.random.Generator, classes: int, cardinality: float, co_occurrence: float) -> np.ndarray:
    """The classes of a scene. Their number is 1 + a binomial draw of the mean that is asked for; they are any of all
    classes, or, in a share ``co_occurrence`` of the scenes, any of one group."""
    if cardinality:
        count = 1 + int(rng.binomial(MOST - 1, (cardinality - 1) / (MOST - 1)))
    else:
        count = int(rng.choice([1, 2, 3, 4], p=[0.12, 0.33, 0.37, 0.18]))  # about 2.5 find room
    among = np.arange(classes)
    if co_occurrence and rng.random() < co_occurrence:
        among = among[rng.integers(GROUPS) :: GROUPS]
    return rng.choice(among, count, replace=False)


def _scene(
    rng: np.random.Generator, digits: list[np.ndarray], cardinality: float, co_occurrence: float
) -> tuple[Image.Image, list[tuple[int, list[int]]]]:
    """One (SIDE, SIDE) RGB scene and its [(class, [x, y, width, height] in pixels)]."""
    ground = _ground(rng)
    columns = _labels(rng, len(digits), cardinality, co_occurrence)
    placed: list[tuple[int, list[int]]] = []
    while not placed or (cardinality and len(placed) < len(columns)):  # what is asked for is laid out until it fits
        canvas, placed = ground.copy(), []
        for column in columns:
            mask = _stamp(rng, digits[column][rng.integers(len(digits[column]))])
            spot = _free_spot(rng, mask.shape, [box for _, box in placed])
            if spot is None:
                continue  # no room left: the scene keeps fewer digits
            y, x = spot
            h, w = mask.shape
            under = canvas[y : y + h, x : x + w]
            colour = rng.uniform(0.75, 1, 3)  # ink is bright, ground is dark
            canvas[y : y + h, x : x + w] = under * (1 - mask[..., None]) + colour * mask[..., None]
            placed.append((int(column), [int(x), int(y), int(w), int(h)]))
    canvas += rng.normal(0, 0.03, canvas.shape)
    return Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8)), placed


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Smooth two-colour cloud with a few thin strokes that are no digits: (SIDE, SIDE, 3) in [0, 1]."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    blend = np.asarray(coarse, dtype=np.float64)[..., None] / 255
    canvas = rng.uniform(0.1, 0.4, 3) + rng.uniform(-0.15, 0.15, 3) * blend
    for _ in range(rng.integers(2, 6)):
        x0, y0, x1, y1 = rng.integers(0, SIDE, 4)
        steps = 2 * SIDE
        xs = np.linspace(x0, x0 + (x1 - x0) / 4, steps).astype(int)
        ys = np.linspace(y0, y0 + (y1 - y0) / 4, steps).astype(int)
        canvas[ys, xs] = rng.uniform(0, 0.8, 3)
    return canvas


def _stamp(rng: np.random.Generator, digit: np.ndarray) -> np.ndarray:
    """The (8, 8) digit enlarged to 16–30 px, tilted by up to 15°, cropped to its ink: (h, w) opacity in [0, 1]."""
    size = int(rng.integers(18, 32))
    image = Image.fromarray((digit * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    image = image.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC, expand=True).filter(ImageFilter.SHARPEN)
    mask = np.asarray(image, dtype=np.float64) / 255
    ink = mask > 0.25
    rows, cols = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def _free_spot(rng: np.random.Generator, shape: tuple[int, int], taken: list[list[int]]) -> tuple[int, int] | None:
    """A corner (y, x) where a box of ``shape`` overlaps no other; None after 60 tries."""
    h, w = shape
    for _ in range(60):
        y, x = int(rng.integers(0, SIDE - h + 1)), int(rng.integers(0, SIDE - w + 1))
        if all(x >= bx + bw or bx >= x + w or y >= by + bh or by >= y + h for bx, by, bw, bh in taken):
            return y, x
    return None
