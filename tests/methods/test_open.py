"""Methods, readers, transforms and callbacks from outside the package, by their dotted places."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from krt_core import data
from krt_core.config import load_experiment
from krt_core.data.custom import read_by
from krt_core.errors import ConfigError, DataError, RunError
from krt_core.lab.explorers import background
from krt_core.lab.report import labels_of
from krt_core.launch import launch
from krt_core.methods import class_of
from krt_core.options import find, options_of
from krt_core.runs.folder import Run, find_runs
from krt_core.runs.progress import Progress
from krt_core.session import train

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def lab(home, monkeypatch):
    """The lab's file lies beside data/ and outputs/, and nothing but that leads there."""
    shutil.copy(HERE / "mylab.py", home)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(HERE)])
    monkeypatch.delitem(sys.modules, "mylab", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    options_of.cache_clear()
    yield home
    options_of.cache_clear()


# ---- finding ----


def test_a_method_is_found_from_the_home_folder_and_named_shortly(tiny):
    experiment = tiny(method="mylab:Frozen", train__epochs=1)
    run = train(experiment, show="none")
    assert run.folder.name == f"tiny-Frozen-{experiment.hash()}-s0" and run.done
    assert labels_of([run]) == ["Frozen"]
    assert [r.experiment.method for r in find_runs("outputs")] == ["mylab:Frozen"]


def test_whole_maps_are_kept_for_a_method_that_does_not_say_that_means_are_enough(tiny, tmp_path):
    still = {"model__freeze": "all", "train__augment": "none", "train__epochs": 1}
    for method, maps in (("mylab:Frozen", True), ("mylab:Means", False), ("finetune", False)):
        run = train(tiny(method=method, **still), tmp_path / method[-5:], show="none")
        log = (run.folder / "log.txt").read_text()
        assert ("features: maps of" in log, f"since {method} does not say needs_maps = False" in log) == (maps, maps)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("mylab:Frzoen", "no 'Frzoen'. Did you mean 'Frozen'"),
        ("yourlab.lwf:LwF", "no module 'yourlab' for yourlab.lwf:LwF.*KRT_HOME"),
        ("mylab.sub:LwF", "cannot be imported|no module 'mylab.sub'"),
        ("mylab", "no method 'mylab'"),
        ("my lab:LwF", "no method 'my lab:LwF'"),
    ],
)
def test_what_cannot_be_found_is_named_with_a_way_out(tiny, method, words):
    with pytest.raises(ConfigError, match=words):
        tiny(method=method)


def test_an_error_inside_the_file_is_passed_on(tiny, lab):
    (lab / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match=r"broken:X cannot be imported: No module named 'nothing_of_this_name'"):
        tiny(method="broken:X")


def test_its_options_are_as_strict_as_ours(tiny):
    scaled = tiny(method="mylab:Scaled", Scaled__start=2)
    assert scaled.options.start == 2 and scaled.hash() != tiny(method="mylab:Scaled").hash()
    assert load_experiment("digits_demo", ["method=mylab:Scaled", "Scaled.start=1e-3"]).options.start == 1e-3
    for override, words in (("Scaled__stat", "Did you mean 'start'"), ("Scaled__start", "more than 0")):
        with pytest.raises(ConfigError, match=words):
            tiny(method="mylab:Scaled", **{override: -1})


def test_a_preset_of_ones_own_can_train_another_method(lab, monkeypatch):
    (lab / "own.yaml").write_text("extends: digits_demo\nmethod: mylab:Scaled\nScaled: {start: 3}\n")
    monkeypatch.chdir(lab)
    assert load_experiment("own.yaml").options.start == 3
    assert load_experiment("own.yaml", ["method=finetune"]).options.head == "linear"


def test_a_run_can_be_looked_at_where_its_method_is_gone(tiny, lab, monkeypatch):
    run = train(tiny(method="mylab:Scaled", train__epochs=1, Scaled__start=2), show="none")
    (lab / "mylab.py").unlink()
    monkeypatch.delitem(sys.modules, "mylab")
    options_of.cache_clear()
    again = Run(run.folder)
    assert again.done and again.experiment.options == {"head": "linear", "start": 2.0}
    assert again.final_summary()["average_mAP"] == run.summary["average_mAP"]
    assert labels_of([again]) == ["Scaled"] and class_of("mylab:Scaled").replays
    with pytest.raises(ConfigError, match="no module 'mylab'"):
        again.experiment.hash() and train(again.experiment, lab / "outputs" / "other", show="none")


# ---- the contract ----


def same(one: Run, two: Run, tolerance: float = 0) -> None:
    for t in range(2):
        np.testing.assert_allclose(one.scores(t).scores, two.scores(t).scores, rtol=tolerance, atol=tolerance)
        a, b = one.method_state(t), two.method_state(t)
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], torch.Tensor):
                torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance)


def test_parameters_of_its_own_learn_and_survive(tiny, tmp_path, monkeypatch):
    experiment = tiny(method="mylab:Scaled", train__epochs=3)
    whole = train(experiment, tmp_path / "whole", show="none")
    factor = whole.method_state(1)["factor"]
    assert factor.shape == (4,) and (factor != 1).all()
    assert whole.session_state(1)["method"] == {"factor": {"tensor": "factor"}, "sessions": [{"seen": 4}]}
    original = Progress.epoch

    def stop(self, record):
        original(self, record)
        if (record["session"], record["epoch"]) == (1, 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "parts", show="none")
    monkeypatch.setattr(Progress, "epoch", original)
    same(whole, train(experiment, tmp_path / "parts", show="none"))


def test_without_gradients_a_session_is_one_pass(tiny, tmp_path):
    run = train(tiny(method="mylab:Ridge", replay__per_class=2), tmp_path / "ridge", show="none")
    assert [(e["session"], e["epoch"], e["images"] > 0) for e in run.epochs] == [(0, 0, True), (1, 0, True)]
    assert "loss" not in run.epochs[0] and run.done
    assert run.session_state(1)["exemplar_ids"] and run.scores(1).scores.dtype == np.float32
    state, model = run.method_state(1), run.model_state(1)
    assert state["gram"].dtype == torch.float64 and state["shown"].shape[1] == 4
    assert all(torch.equal(tensor, run.model_state(0)[name]) for name, tensor in model.items() if "backbone" in name)


def test_what_no_file_can_hold_is_named(tiny):
    with pytest.raises(RunError, match=r"state has a ndarray at deep\.0\.table: make it a tensor"):
        train(tiny(method="mylab:Careless"), show="none")


@pytest.mark.ddp
@pytest.mark.parametrize("method", ["Frozen", "Scaled", "Ridge"])
@pytest.mark.slow
def test_in_two_processes_as_in_one(tiny, tmp_path, method):
    """A method that freezes, one with parameters of its own, one without gradients."""
    changes = dict(train__precision="float64", train__batch_norm="frozen", train__epochs=2)
    experiment = tiny(method=f"mylab:{method}", **changes)
    one = train(experiment, tmp_path / "one", show="none", device="cpu")
    two = launch(experiment, tmp_path / "two", 2, device="cpu")
    same(one, two, 1e-6)


def test_in_the_background(tiny, tmp_path):
    experiment = tiny(method="mylab:Frozen", train__epochs=1)
    background.start(experiment, tmp_path / "run", threads=1)
    for _ in range(600):
        if not background.find(tmp_path / "run"):
            break
        background.time.sleep(0.1)
    assert Run(tmp_path / "run").done, background.last_words(tmp_path / "run")


def test_from_a_folder_below_by_the_command(tiny, lab):
    """As a notebook in a folder of its own, without KRT_HOME."""
    (lab / "e.yaml").write_text(tiny(method="mylab:Frozen", train__epochs=1).to_yaml())
    (lab / "notebooks").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "KRT_HOME"} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    command = [sys.executable, "-m", "krt_core.cli", "train", str(lab / "e.yaml"), "--folder", str(lab / "run")]
    done = subprocess.run(command, cwd=lab / "notebooks", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and Run(lab / "run").done, done.stderr


# ---- readers, transforms, callbacks ----


def write_tags(coco_root: Path, lab: Path) -> None:
    for split, name in (("train", "train2014"), ("test", "val2014")):
        content = json.loads((coco_root / "annotations" / f"instances_{name}.json").read_text())
        classes = {c["id"]: c["name"] for c in content["categories"]}
        lines = []
        for image in content["images"]:
            tags = [classes[a["category_id"]] for a in content["annotations"] if a["image_id"] == image["id"]]
            lines.append(",".join([f"tiny/{name}/{image['file_name']}", *tags]))
        (lab / "data" / f"tags_{split}.csv").write_text("\n".join(lines) + "\n")


def test_a_reader_of_ones_own(tiny, coco_root, lab, monkeypatch):
    write_tags(coco_root, lab)
    own = tiny(data__dataset="mylab:read", data__root="data", method="finetune", train__epochs=1)
    run, other = train(own, show="none"), train(tiny(method="finetune", train__epochs=1), show="none")
    assert run.protocol.classes == other.protocol.classes and own.hash() != tiny(method="finetune").hash()
    np.testing.assert_array_equal(run.scores(1).labels, other.scores(1).labels)
    calls = []
    monkeypatch.setattr(data, "read_by", lambda place, root, split: calls.append(split) or read_by(place, root, split))
    data.open_both(own.data)
    assert calls == ["train", "test"]  # once each: it may be slow
    calls.clear()
    data.open_both(dataclasses.replace(own.data, validation=0.5, test="validation"))
    assert calls == ["train"]
    said = r"read_wrong, train split of .*data: labels must be a boolean \(40, 4\).*found 2 for class \w+ of \S+ \(row"
    with pytest.raises(DataError, match=said):
        train(tiny(data__dataset="mylab:read_wrong", data__root="data"), show="none")


def test_a_transform_of_ones_own(tiny, tmp_path):
    own = tiny(train__augment="mylab:flip", method="finetune")
    one, two = (train(own, tmp_path / name, show="none") for name in ("one", "two"))
    assert own.hash() != tiny(method="finetune").hash() and one.epochs[0]["loss"] == two.epochs[0]["loss"]
    plain = train(tiny(train__augment="none", method="finetune"), show="none")
    assert plain.epochs[0]["loss"] != one.epochs[0]["loss"]


def test_callbacks_mirror_the_numbers_and_cannot_stop_a_training(tiny, lab):
    changes = dict(method="finetune", train__callbacks=["mylab:Mirror", "mylab:Away"])
    run = train(tiny(**changes), show="none")
    assert tiny(**changes).hash() == tiny(method="finetune").hash()
    told = [json.loads(line) for line in (lab / "outputs" / "tracker.jsonl").read_text().splitlines()]
    assert [t["kind"] for t in told] == ["epoch", "epoch", "session"] * 2
    assert told[2]["mAP_seen"] == run.curve()[0] and told[0]["loss"] == run.epochs[0]["loss"]
    assert (
        "mylab:Away failed after the epoch (ConnectionError: the tracker is away)"
        in (run.folder / "log.txt").read_text()
    )
    with pytest.raises(ConfigError, match=r"train\.callbacks: mylab has no 'Miror'. Did you mean 'Mirror'"):
        train(tiny(method="finetune", seed=5, train__callbacks=["mylab:Miror"]), show="none")


def test_find_takes_anything_importable():
    assert find("json:dumps", "key") is json.dumps
