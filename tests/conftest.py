"""Small worlds for the tests: a home folder per test, tiny COCO and VOC folders, a network that trains in seconds."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from krt_core.config import load_experiment
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.tagger.export import OLDEST

CLASSES = ("ant", "bee", "cat", "dog")
COLOURS = np.array([(220, 40, 40), (40, 220, 40), (60, 60, 230), (220, 220, 40)], dtype=np.uint8)


def pytest_collection_modifyitems(items):
    """Slow tests first, those that may take longest before: at the end each core has short ones to take over."""

    def allowed(item):
        marker = item.get_closest_marker("timeout")
        return marker.args[0] if marker and marker.args else 0

    # The processes of pytest-xdist must collect the same names.
    if addressed := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"a test is named by an address, which differs in each process: {addressed[0]}")
    old = pytest.mark.skip(reason=f"krt export needs PyTorch {'.'.join(map(str, OLDEST))}")
    for item in items:
        if torch.__version__ < OLDEST and item.get_closest_marker("exports"):
            item.add_marker(old)
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, -allowed(item)))


@pytest.fixture
def slowness():
    """How many times longer Python takes here and now than where limits in seconds of a processor were set; at least 1.
    There a process that imports PyTorch, and does nothing else, took two seconds. Taken anew for each test: what else
    runs on the machine lengthens a processor's seconds, too."""

    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return max(1.0, min(once() for _ in range(2)) / 2)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Every test has its own data/ and outputs/."""
    monkeypatch.setenv("KRT_HOME", str(tmp_path))
    torch.set_num_threads(1)  # tiny networks are fastest so, and repeat to the last bit
    return tmp_path


def scenes(rng, count):
    """``count`` images of 32 px whose 16 px cells carry the colours of their classes, with their labels."""
    for _ in range(count):
        present = np.sort(rng.choice(4, rng.integers(1, 4), replace=False))
        image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        for c in present:
            y, x = divmod(int(c), 2)
            image[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = COLOURS[c]
        yield image, present


def write_coco(root: Path, train=40, test=24, seed=0) -> Path:
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for split, name, count in (("train2014", "instances_train2014", train), ("val2014", "instances_val2014", test)):
        (root / split).mkdir()
        images, annotations = [], []
        for i, (image, present) in enumerate(scenes(rng, count)):
            file = f"{split}_{i:03d}.png"
            Image.fromarray(image).save(root / split / file)
            images.append({"id": 100 + i, "file_name": file, "width": 32, "height": 32})
            for c in present:
                y, x = divmod(int(c), 2)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": 10 * (int(c) + 1), "area": 256,
                     "bbox": [16 * x, 16 * y, 16, 16], "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": 10 * (c + 1), "name": name} for c, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return root


def trained_once(home: Path, about: dict, path=()):
    """A maker of finished runs on data in the tiny world, ``run("ridge", train__precision="bfloat16")``: each is
    trained once, and not to be changed. path: where Python looks for modules, too."""
    made = {}

    def run(method, **changes):
        key = method, repr(sorted(changes.items()))
        if key not in made:
            dotted = {name.replace("__", "."): value for name, value in changes.items()}
            experiment = {**TINY, **about, "method": method, "train.epochs": 1, **dotted}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("KRT_HOME", str(home))
                patch.setattr(sys, "path", [*path, *sys.path])
                torch.set_num_threads(1)
                made[key] = train(load_experiment("digits_demo", experiment), show="none").folder
        return Run(made[key])

    return run


def write_voc(root: Path, train=6, test=4, names=("cat", "dog"), seed=0) -> Path:
    rng = np.random.default_rng(seed)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    number = 0
    for split, count in (("trainval", train), ("test", test)):
        ids = []
        for i in range(count):
            image_id = f"{number:06d}"
            number += 1
            ids.append(image_id)
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(root / f"JPEGImages/{image_id}.jpg")
            write_xml(root, image_id, [(names[i % len(names)], 0)])
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids) + "\n")
    return root


def write_xml(root: Path, image_id: str, objects) -> None:
    body = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>3</xmin><ymin>2</ymin>"
        "<xmax>18</xmax><ymax>12</ymax></bndbox></object>"
        for name, difficult in objects
    )
    size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
    (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{size}{body}</annotation>")


@pytest.fixture
def coco_root(tmp_path):
    return write_coco(tmp_path / "data" / "tiny")


@pytest.fixture
def voc_root(tmp_path):
    return write_voc(tmp_path / "data" / "tinyvoc")


TINY = {
    "name": "tiny",
    "data.dataset": "coco",
    "data.image_size": 32,
    "protocol.increment": 2,
    "model.backbone": "test_resnet",
    "model.stride": 8,
    "model.embed_dim": 32,
    "model.heads": 4,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.group": 16,
    "train.precision": "float32",
    "train.base_lr": 0.003,
    "train.lr": 0.003,
}


@pytest.fixture
def tiny(coco_root):
    """Factory of experiments on the tiny COCO folder: ``tiny(method="finetune", seed=1)``."""

    def make(**overrides):
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_experiment("digits_demo", {**TINY, "data.root": str(coco_root), **dotted})

    return make
