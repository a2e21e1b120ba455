"""Two processes equal one: the same losses, thresholds, exemplars, scores and metrics at the same global batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_coco

from krt_core.config import load_experiment
from krt_core.errors import ConfigError, RunError
from krt_core.launch import launch
from krt_core.machine.distributed import World
from krt_core.runs.folder import Run
from krt_core.session import train

pytestmark = pytest.mark.ddp
WORKER = Path(__file__).with_name("ddp_worker.py")
COMMON = {
    "train.precision": "float64", "train.epochs": 3, "train.evaluate_every": 2, "train.augment": "published",
    "replay.per_class": 2, "replay.duplicates": True, "protocol.increment": 1, "protocol.base": 2,
}  # fmt: skip
VARIANTS = {
    "frozen": {"train.batch_norm": "frozen"},
    "sync": {"train.batch_norm": "sync"},
    "pod": {"train.batch_norm": "sync", "method": "pod"},
    "joint": {"train.batch_norm": "sync", "method": "joint"},
    "calibrated": {"train.batch_norm": "frozen", "train.epochs": 1, "data.validation": 0.4, "protocol.increment": 2},
    **{kind: {"train.batch_norm": "frozen", "method": "finetune", "train.epochs": 1, "replay.per_class": 0,
              "replay.budget": 9, "replay.selection": kind} for kind in ("prs", "ocdm")},
}  # fmt: skip


def in_two_processes(root, jobs, broken="none"):
    """Train jobs (variant, folder) in two processes; False if that fails."""
    environment = {"KRT_HOME": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER), broken]
    command += [f"{root / name}.yaml={root / folder}" for name, folder in jobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    print(done.stderr[-4000:])
    return done.returncode == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every variant in one process and in two."""
    root = tmp_path_factory.mktemp("ddp")
    # Odd numbers, and last batches that are not full: with 43 training images that of the first session has one image.
    # (Synchronised statistics of one image differ in the running variance alone, so those variants get two more.)
    for name, changes in VARIANTS.items():
        data = write_coco(root / "data" / name, train=45 if changes["train.batch_norm"] == "sync" else 43, test=25)
        experiment = load_experiment("digits_demo", {**TINY, **COMMON, **changes, "data.root": str(data)})
        (root / f"{name}.yaml").write_text(experiment.to_yaml())
    assert in_two_processes(root, [(name, f"{name}-two") for name in VARIANTS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRT_HOME", str(root))
        torch.set_num_threads(1)
        for name in VARIANTS:
            train(load_experiment(root / f"{name}.yaml"), root / f"{name}-one", show="none", device="cpu")
    return root


def same(one: Run, two: Run) -> None:
    assert one.done and two.done
    assert [(e["session"], e["epoch"], e["images"]) for e in one.epochs] == [
        (e["session"], e["epoch"], e["images"]) for e in two.epochs
    ]
    for a, b in zip(one.epochs, two.epochs, strict=True):
        for key in a.keys() - {"seconds", "images_per_second", "mAP_of"}:
            assert a[key] == pytest.approx(b[key], rel=1e-6), (a["session"], a["epoch"], key)
    for t in range(one.finished_sessions):
        a, b = one.session_state(t), two.session_state(t)
        assert a["exemplar_ids"] == b["exemplar_ids"]
        assert a["metrics"].pop("AP_seen") == pytest.approx(b["metrics"].pop("AP_seen"), rel=1e-6)
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-6, nan_ok=True)
        assert a["method"].get("thresholds", {}).keys() == b["method"].get("thresholds", {}).keys()
        for key, record in a["method"].get("thresholds", {}).items():
            assert record["threshold"] == b["method"]["thresholds"][key]["threshold"]
            assert record["found"] == b["method"]["thresholds"][key]["found"]
        scores, others = one.scores(t), two.scores(t)
        assert scores.ids.tolist() == others.ids.tolist() and len(set(others.ids.tolist())) == 25
        np.testing.assert_allclose(scores.scores, others.scores, rtol=1e-5)
        for key, value in vars(one.calibration(t)).items():
            np.testing.assert_allclose(value, getattr(two.calibration(t), key), rtol=1e-4, atol=1e-6, err_msg=key)
        tensors, others = one.model_state(t), two.model_state(t)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_equal_one(runs, name):
    same(Run(runs / f"{name}-one"), Run(runs / f"{name}-two"))
    assert Run(runs / f"{name}-two").environment["reasons"]["processes"] == "2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "name"), [(fault, "frozen") for fault in ("tokens", "threshold", "exemplars", "padding", "loss")]
    + [("exemplars", "prs"), ("exemplars", "ocdm")],
)  # fmt: skip
def test_the_comparison_notices_what_is_broken(runs, broken, name):
    """Each of the known faults of published multi-GPU code, put back in on purpose."""
    with pytest.raises(AssertionError):
        assert in_two_processes(runs, [(name, f"{broken}-{name}-broken")], broken)
        same(Run(runs / f"{name}-one"), Run(runs / f"{broken}-{name}-broken"))


def test_every_image_falls_to_one_process():
    for images in (1, 7, 24, 25):
        parts = [World(rank, 3).part(np.arange(images)) for rank in range(3)]
        assert np.concatenate(parts).tolist() == list(range(images))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("backbone", ["convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.slow
def test_backbones_with_layers_that_only_their_classifier_uses(tiny, tmp_path, backbone):
    """Processes would wait for ever for the gradients of such layers, or stop in the second step."""
    experiment = tiny(model__backbone=backbone, model__stride=0, train__batch_norm="frozen", train__epochs=1)
    run = launch(experiment, tmp_path / "run", 2, device="cpu")
    assert run.done and run.environment["reasons"]["processes"] == "2"


def test_the_launcher_trains_and_passes_errors_on(tiny, tmp_path, capfd):
    run = launch(tiny(train__batch_norm="frozen"), tmp_path / "run", 2, device="cpu")
    assert run.done and run.environment["reasons"]["processes"] == "2"
    assert "2 processes" in capfd.readouterr().out
    with pytest.raises(ConfigError, match="processes must lie between"):
        launch(tiny(), processes=0)
    with pytest.raises(RunError, match="exit code"):
        launch(tiny(data__root=str(tmp_path / "nowhere")), tmp_path / "fails", 2, device="cpu")
    assert "nowhere" in capfd.readouterr().out
