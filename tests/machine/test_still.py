"""A backbone that stands still, in two processes as in one: every method, from features that are kept."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from test_several import in_processes, write

from krt_core.config import load_experiment
from krt_core.runs.folder import Run
from krt_core.session import train

pytestmark = pytest.mark.ddp
UNKNOWN = ("unknown", "unknown_krt", "unknown_census")  # of these runs some labels are
FIRST = {"model.freeze": "first", "train.batch_norm": "frozen", "train.augment": "none"}
CUT = {"model.tune_from": "layer2", "train.batch_norm": "frozen", "train.augment": "none"}
ALL = {"model.freeze": "all", "train.augment": "none"}
JOBS = {
    "ridge": {"method": "ridge", "ridge.weights": "rare"},
    "ridge-first": {"method": "ridge", **FIRST},
    "krt": {"method": "krt", **ALL},
    "krt-first": {"method": "krt", **FIRST},
    "finetune": {"method": "finetune", **ALL},
    "joint": {"method": "joint", **ALL},
    "cumulative-first": {"method": "cumulative", **FIRST},
    "lwf-first": {"method": "lwf", **FIRST},
    "ewc": {"method": "ewc", **ALL},
    "icarl": {"method": "icarl", **ALL, "replay.per_class": 2},
    "derpp-first": {"method": "derpp", **FIRST, "replay.per_class": 2},
    "pod-first": {"method": "pod", **FIRST},
    "krt-cut": {"method": "krt", **CUT},
    "ridge-cut": {"method": "ridge", **CUT, **FIRST},
    "kbk": {"method": "kbk", **ALL},
    "multilane": {"method": "multilane", **ALL},
    "agcn-first": {"method": "agcn", **FIRST},
    "csc": {"method": "csc", **ALL},
    "census": {"method": "census", **ALL},
    "unknown_census": {"method": "census", **ALL},
    "unknown": {"method": "ridge", "ridge.old": "class_mean"},
    "unknown_krt": {"method": "krt", **ALL, "krt.target": "estimated"},
}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, monkeypatch):
    for name, changes in JOBS.items():
        write(tmp_path, name, **changes)
        for file in (tmp_path / "data" / name / "annotations").glob("*.json") if name in UNKNOWN else ():
            content = json.loads(file.read_text())
            for number, image in enumerate(content["images"]):
                image["neg_category_ids"] = [10 * (c + 1) for c in range(4) if (number + c) % 3]
            file.write_text(json.dumps(content))
    in_processes(2, tmp_path, *((name, f"{name}-two") for name in JOBS))
    monkeypatch.setenv("KRT_HOME", str(tmp_path / "alone"))  # with features of its own
    for name in JOBS:
        two = Run(tmp_path / f"{name}-two")
        one = train(load_experiment(tmp_path / f"{name}.yaml"), tmp_path / f"{name}-one", show="none")
        for session in range(3):
            assert np.allclose(one.scores(session).scores, two.scores(session).scores, atol=1e-5), (name, session)
        first, last = one.model_state(0), one.model_state(2)
        if name != "krt-cut":
            assert all(torch.equal(first[key], last[key]) for key in first if key.startswith("backbone.")), name
        if name.startswith("pod"):
            assert "POD has nothing to distil, this is fine-tuning" in (two.folder / "log.txt").read_text()
        assert (one.scores(2).labels.dtype == np.int8) == (name in UNKNOWN)
        if one.experiment.method == "ridge":
            assert one.method_state(2)["penalty"] == two.method_state(2)["penalty"]
        if name == "ridge":  # sums in float64
            mine, theirs = one.method_state(2)["sums"], two.method_state(2)["sums"]
            assert torch.allclose(mine["Q"], theirs["Q"], rtol=1e-9)
            assert torch.allclose(mine["groups"][0]["G"], theirs["groups"][0]["G"], rtol=1e-9)
    assert TINY["train.precision"] == "float32"
