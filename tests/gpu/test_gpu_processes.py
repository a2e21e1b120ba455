"""Several processes on several GPUs, and several runs at once."""

import numpy as np
import pytest
import torch
from on_gpu import GPUS, on_gpu

from krt_core.errors import ConfigError
from krt_core.launch import launch
from krt_core.session import train

COMMON = {"train__augment": "published", "replay__per_class": 2, "train__evaluate_every": 2, "train__epochs": 3}


@on_gpu()
def test_more_processes_than_gpus_are_refused(tiny):
    with pytest.raises(ConfigError, match=f"{GPUS + 1} processes need a GPU each, and PyTorch sees {GPUS} here"):
        launch(tiny(), processes=GPUS + 1)
    with pytest.raises(ConfigError, match="cuda:0 is one GPU, and 2 processes need one each"):
        launch(tiny(), processes=2, device="cuda:0")
    with pytest.raises(ConfigError, match=f"no device 'cuda:{GPUS}' here"):
        train(tiny(), device=f"cuda:{GPUS}")


@on_gpu(2)
@pytest.mark.parametrize(
    "changes", [{"train__batch_norm": "sync"}, {"train__batch_norm": "frozen", "method": "pod"}], ids=str
)
def test_two_gpus_equal_one(tiny, tmp_path, changes):
    experiment = tiny(**COMMON, train__precision="float64", **changes)
    one = train(experiment, tmp_path / "one", show="none", device="cuda:0")
    two = launch(experiment, tmp_path / "two", processes=2)
    assert two.done and two.environment["reasons"]["processes"] == "2"
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["images"] == b["images"]
    for session in range(one.finished_sessions):
        a, b = one.session_state(session), two.session_state(session)
        assert a["exemplar_ids"] == b["exemplar_ids"] and a["metrics"]["mAP_seen"] == pytest.approx(
            b["metrics"]["mAP_seen"]
        )
        np.testing.assert_allclose(one.scores(session).scores, two.scores(session).scores, rtol=1e-4, atol=1e-6)


@on_gpu(2)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_two_gpus_in_half_precision(tiny, tmp_path, precision):
    """As published: each with the statistics of its own images."""
    run = launch(tiny(**COMMON, train__precision=precision), tmp_path / "run", processes=2)
    assert run.done and np.isfinite([epoch["loss"] for epoch in run.epochs]).all()


@on_gpu(2)
def test_a_run_goes_on_with_another_number_of_gpus(tiny, tmp_path):
    experiment = tiny(**COMMON, train__batch_norm="frozen", train__precision="float64")
    whole = train(experiment, tmp_path / "whole", show="none", device="cuda:0")
    parts = launch(experiment, tmp_path / "parts", processes=2)
    for name in ("DONE", "session_01/state.json"):
        (parts.folder / name).unlink()
    parts = train(experiment, tmp_path / "parts", show="none", device="cuda:1")
    np.testing.assert_allclose(whole.scores(1).scores, parts.scores(1).scores, rtol=1e-4, atol=1e-6)


@on_gpu(2)
def test_two_runs_at_once_take_a_gpu_each(tmp_path, monkeypatch):
    for module in ("papermill", "ipykernel", "ipywidgets"):
        pytest.importorskip(module)
    import yaml

    from krt_core.cli import main
    from krt_core.runs.folder import find_runs

    monkeypatch.setenv("KRT_SLOTS", str(tmp_path))
    matrix = {"presets": ["digits_demo"], "methods": ["finetune"], "seeds": list(range(GPUS)), "analysis": [],
              "overrides": {"train.epochs": 1}, "folder": str(tmp_path / "matrix")}  # fmt: skip
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    assert main(["bench", str(tmp_path / "matrix.yaml")]) == 0
    runs = find_runs(tmp_path / "matrix")
    assert len(runs) == GPUS and all(run.environment["hardware"]["gpu"] for run in runs)


def test_nccl_is_in_this_build():
    if torch.version.cuda is None:
        pytest.skip("a build of PyTorch without CUDA")
    assert torch.distributed.is_nccl_available() and torch.distributed.is_gloo_available()
