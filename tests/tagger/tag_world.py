"""Runs of the tiny world, each trained once for all tests of this room.

PYTEST_DONT_REWRITE, since the tests also import from it.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import trained_once, write_coco
from PIL import Image

from krt_core.data import open_dataset
from krt_core.runs.calibration import Calibration
from krt_core.runs.folder import Run

OTHERS = str(Path(__file__).parents[1] / "methods")  # where mylab is


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """``trained("ridge", train__precision="bfloat16")``: a finished run of two sessions, not to be changed."""
    home = tmp_path_factory.mktemp("trained")
    return trained_once(home, {"data.root": str(write_coco(home / "data"))}, [OTHERS])


@pytest.fixture
def mine(tmp_path, trained):
    """A copy of such a run, to be changed."""

    def copy(method="ridge", **changes):
        run = trained(method, **changes)
        return Run(shutil.copytree(run.folder, tmp_path / "outputs" / run.folder.name))

    return copy


@pytest.fixture
def photos(tmp_path):
    """A folder with five photos, one of them below, one broken, and a file that is none."""
    rng, folder = np.random.default_rng(3), tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "c [1].png", "deep/d.png"):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    (folder / "notes.txt").write_text("no image")
    return folder


def own_photos(run, session=1):
    """The run's own test images and what it wrote down of them: paths, scores (n, C)."""
    dataset, stored = open_dataset(run.experiment.data, "test"), run.scores(session)
    row_of = {str(name): row for row, name in enumerate(dataset.ids)}
    return [dataset.path(row_of[str(name)]) for name in stored.ids], stored.scores


def scores_of(tags, classes):
    """(n, C) in the order of the classes."""
    return np.array([[one.scores[one.names.index(name)] for name in classes] for one in tags])


def calibrate(run, session=1):
    """Write a calibration of all classes but the first: slopes and offsets that matter, thresholds of its own."""
    count = run.protocol.sessions[session].stop
    made = Calibration(
        np.linspace(0.5, 2, count), np.linspace(-1, 1, count), np.linspace(0.2, 0.8, count), np.arange(count) > 0
    )
    made.write(run.session_folder(session) / "calibration.json")
    return made
