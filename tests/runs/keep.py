"""Make the folders that test_old_run.py keeps of a version, once before its release::

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/runs/keep.py    # from the root of a checkout: tests/runs/kept/<version>

``run``: KRT on a backbone that stands still after the first session, with exemplars and calibration, on conftest's tiny
data, and with what an interruption in its last session leaves (resume.pt, features). ``grown``: what `krt extend` has
added to it, without the files that both share. ``tags.onnx`` and ``tags.pt2``: its model, exported.
"""

import filecmp
import os
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import TINY, write_coco
from grow_world import annotated
from interrupted import begun

from krt_core import __version__
from krt_core.config import load_experiment
from krt_core.session import train
from krt_core.tagger.export import export
from krt_core.tagger.extend import extend

HERE = Path("/tmp/krt")  # it stands in the folders, and in the name of what has grown
SMALL = {
    **TINY, "data.root": "data/tiny", "data.validation": 0.5, "data.classes": ["ant", "bee", "cat"],
    "protocol.base": 2, "protocol.increment": 1,
    "model.backbone": "test_byobnet", "model.embed_dim": 16, "model.heads": 2,
    "model.freeze": "first", "train.batch_norm": "frozen", "train.augment": "none", "replay.per_class": 2,
    "calibrate.kind": "isotonic", "train.epochs": 3,
}  # fmt: skip


def data(root: Path) -> Path:
    return write_coco(root / "data" / "tiny", train=80)


def photos(root: Path) -> Path:
    """New photos, annotated with dog, which is new, and cat, which is not."""
    return annotated(write_coco(root / "march", train=30, test=12, seed=5), ("cat", "dog"))


def kept() -> Path:
    torch.set_num_threads(1)
    shutil.rmtree(here := HERE, ignore_errors=True)
    os.environ["KRT_HOME"] = str(here)
    data(here)
    experiment = load_experiment("digits_demo", SMALL)
    run = train(experiment, here / "run", show="none", device="cpu")
    parts = begun(experiment, here / "parts", at=(1, 1))
    shutil.copy(parts / "resume.pt", run.folder)
    shutil.copytree(parts / "features", run.folder / "features")
    grown = extend(run, photos(here), folder=here / "grown", show="none", device="cpu")
    for path in [path for path in grown.folder.rglob("*") if path.is_file()]:
        other = run.folder / path.relative_to(grown.folder)
        if other.is_file() and filecmp.cmp(path, other, shallow=False):
            path.unlink()
    place = Path(__file__).with_name("kept") / __version__
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for folder in (run.folder, grown.folder):
        shutil.copytree(folder, place / folder.name, ignore=shutil.ignore_patterns(".*", "*.lock", "*.rows"))
    for ending in ("onnx", "pt2"):
        export(run, 1, place / f"tags.{ending}")
    return place


if __name__ == "__main__":
    print(kept())
