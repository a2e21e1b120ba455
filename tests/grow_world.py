"""A finished run of three classes in the tiny world, and new data with a fourth.

PYTEST_DONT_REWRITE, since the tests also import from it.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import trained_once, write_coco

from krt_core.runs.folder import Run


def annotated(root: Path, names, called=None) -> Path:
    """A COCO folder whose images are annotated with some of its classes only, by other names where they are said."""
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [one for one in content["categories"] if one["name"] in names]
        kept = {one["id"] for one in content["categories"]}
        content["annotations"] = [one for one in content["annotations"] if one["category_id"] in kept]
        for one in content["categories"]:
            one["name"] = (called or {}).get(one["name"], one["name"])
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def grown_ups(tmp_path_factory):
    """``grown_ups("ridge")``: a finished run of ant, bee and cat, one a session, not to be changed."""
    home = tmp_path_factory.mktemp("grown")
    root = write_coco(home / "old")
    return trained_once(home, {"data.root": str(root), "data.classes": ["ant", "bee", "cat"], "protocol.increment": 1})


@pytest.fixture
def own(tmp_path, grown_ups):
    """A copy of such a run and of its data, to be changed."""

    def copy(method="ridge", **changes):
        run = grown_ups(method, **changes)
        folder = tmp_path / "outputs" / run.folder.name
        shutil.copytree(run.folder, folder)
        old = shutil.copytree(run.experiment.data.root, tmp_path / "old")
        text = (folder / "experiment.yaml").read_text()
        (folder / "experiment.yaml").write_text(text.replace(run.experiment.data.root, str(old)))
        return Run(folder)

    return copy


@pytest.fixture
def march(tmp_path):
    """New photos, annotated with dog, which is new, and cat, which is not."""
    return annotated(write_coco(tmp_path / "march", train=30, test=12, seed=5), ("cat", "dog"))
