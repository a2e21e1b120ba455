"""Run folders of version 0.1 open, resume and report: old_run was made by commit 2ba8cfd, on conftest's tiny data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_coco

from krt_core.config import load_experiment
from krt_core.lab.report import collect, runs_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.weights.convert import load_model

OLD = Path(__file__).with_name("old_run")


@pytest.fixture
def old(tmp_path):
    """A copy of the folder, with its data where it says."""
    write_coco(tmp_path / "data" / "tiny")
    folder = tmp_path / "outputs" / "old"
    shutil.copytree(OLD, folder)
    (folder / "resume.pt").unlink()  # of the interrupted variant
    return Run(folder)


def experiment_of(run: Run):
    """The configuration as it is asked for today."""
    changes = {
        "name": "tiny", "data.dataset": "coco", "data.root": "data/tiny", "data.image_size": 32, "protocol.base": 2,
        "protocol.increment": 1, "model.backbone": "test_resnet", "model.embed_dim": 32, "model.heads": 4,
        "replay.per_class": 2, "train.epochs": 2, "train.batch_size": 16, "train.group": 16, "train.base_lr": 0.003,
        "train.lr": 0.003, "train.precision": "float32", "krt.mean_labels": 1.9,
    }  # fmt: skip
    return load_experiment("digits_demo", changes)


def test_it_is_done_and_known_as_the_same_experiment(old):
    assert old.done and old.finished_sessions == 3
    assert experiment_of(old).hash() == old.experiment.hash() == old.summary["config_hash"] == "00afb211"
    before = {path: path.read_bytes() for path in old.folder.rglob("*") if path.is_file()}
    assert train(experiment_of(old), old.folder, show="none").folder == old.folder
    after = {path: path.read_bytes() for path in old.folder.rglob("*") if path.is_file()}
    assert before == after


def test_its_numbers_come_out_as_they_were_written(old):
    written = json.loads((old.folder / "DONE").read_text())
    now = old.final_summary()
    assert {k: v for k, v in now.items() if k != "OP"} == {k: v for k, v in written.items() if k != "OP"}
    assert np.isnan(now["OP"])  # nothing is predicted at 0.8
    images = torch.rand(2, 3, 32, 32)
    assert load_model(old, 2)(images).logits.shape == (2, 4)


def test_it_is_reported(old):
    runs, left_out = collect([old.folder.parent])
    assert len(runs) == 1 and not left_out
    line = runs_table(runs).iloc[0]
    assert (line["name"], line.protocol, line.average_mAP) == ("krt, 2 exemplars per class", "B2-C1", 79.8454)
    assert "79.8" in html_report(runs) and "79.8" in latex_report(runs)


@pytest.mark.parametrize("resumed", ["between sessions", "inside a session"])
def test_it_goes_on_to_the_same_end(old, resumed):
    (old.folder / "DONE").unlink()
    for session in (1, 2):
        shutil.move(old.session_folder(session), old.folder.parent / f"was_{session}")
    if resumed == "inside a session":
        shutil.copy(OLD / "resume.pt", old.folder)
    was = json.loads((OLD / "session_02" / "state.json").read_text())
    run = train(experiment_of(old), old.folder, show="none", device="cpu")
    assert "continuing at session 2" in (run.folder / "log.txt").read_text().rsplit("done:", 1)[0]
    now = run.session_state(2)
    assert now["exemplar_ids"] == was["exemplar_ids"] and now["made_with"] == was["made_with"]
    assert now["method"]["thresholds"].keys() == was["method"]["thresholds"].keys()
    with np.load(OLD / "session_02" / "scores.npz", allow_pickle=False) as scores:
        np.testing.assert_allclose(run.scores(2).scores, scores["scores"], atol=2e-3)
