import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import krt_core.session as session_module
from krt_core.errors import CheckpointError, ConfigError, DataError, RunError
from krt_core.lab.analysis.explain import choose_images, evidence, grad_cam, look
from krt_core.learn import make_optimiser
from krt_core.runs.folder import Run, find_runs
from krt_core.runs.progress import Progress
from krt_core.session import train
from krt_core.weights.convert import load_model


def test_krt_end_to_end(tiny):
    experiment = tiny(replay__per_class=2, train__epochs=8, train__evaluate_every=4)
    run = train(experiment, show="none")
    done = json.loads((run.folder / "DONE").read_text())
    for key in ("method", "dataset", "seed", "average_mAP", "last_mAP", "forgetting", "seconds", "config_hash"):
        assert key in done
    assert run.folder.name == experiment.run_name() and run.done and run.finished_sessions == 2
    assert done["average_mAP"] == pytest.approx(run.curve().mean(), abs=1e-3)
    assert [e["session"] for e in run.epochs] == [0] * 8 + [1] * 8
    assert (
        "mAP_seen" in run.epochs[3] and "mAP_seen" not in run.epochs[2]
    )  # the last epoch's value is the session's own
    state = run.session_state(1)
    assert state["replayed_images"] == 4 and [len(ids) for ids in state["exemplar_ids"]] == [2, 2, 2, 2]
    assert set(state["method"]["thresholds"]) == {"1"}
    scores = run.scores(0)
    assert scores.scores.dtype == np.float32 and scores.scores.shape == (24, 2) and scores.labels.shape == (24, 4)
    assert (run.folder / "experiment.yaml").is_file() and run.environment["versions"]["torch"]
    assert run.progress["step"] >= 1 and run.progress["state"] == "done"
    assert not (run.folder / "resume.pt").exists() and not list(run.folder.rglob("*.tmp"))


def test_the_tiny_world_is_learned_and_joint_is_best(tiny):
    longer = dict(train__epochs=12, train__evaluate_every=0)
    results = {m: train(tiny(method=m, **longer), show="none").summary for m in ("joint", "finetune")}
    assert results["joint"]["last_mAP"] > 80 > results["finetune"]["last_mAP"]
    assert results["joint"]["forgetting"] == 0


def test_a_finished_run_returns_at_once_and_another_experiment_is_refused(tiny):
    run = train(tiny(method="finetune"), show="none")
    stamp = (run.folder / "DONE").stat().st_mtime_ns
    assert train(tiny(method="finetune"), show="none").folder == run.folder
    assert (run.folder / "DONE").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match="holds another experiment"):
        train(tiny(method="finetune", seed=1), run.folder, show="none")
    with pytest.raises(RunError, match="no run folder"):
        Run(run.folder / "session_00")


def _same(one: Run, two: Run) -> None:
    """Weights, scores and records agree to the last bit."""
    for t in range(2):
        a, b = one.model_state(t), two.model_state(t)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert (one.scores(t).scores == two.scores(t).scores).all()
        drop = ("seconds", "peak_memory_mb", "starts")  # measured, not computed; how often it was begun
        x, y = ({k: v for k, v in r.session_state(t).items() if k not in drop} for r in (one, two))
        assert x == y
    keep = ("session", "epoch", "loss", "lr")
    assert [[e[k] for k in keep] for e in one.epochs] == [[e[k] for k in keep] for e in two.epochs]


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [((0, 1), {}), ((0, 2), {"train__report": "best"}), ((1, 1), {"train__report": "best", "krt__per_class": True})],
)
def test_resume_after_any_epoch_equals_an_uninterrupted_run(tiny, tmp_path, monkeypatch, stop_at, changes):
    changes = {"train__evaluate_every": 1, **changes}
    experiment = tiny(replay__per_class=2, train__epochs=3, train__augment="published", **changes)
    whole = train(experiment, tmp_path / "whole", show="none")
    original = Progress.epoch

    def stop(self, record):
        original(self, record)
        if (record["session"], record["epoch"]) == stop_at:
            raise KeyboardInterrupt  # after the line is written, before its checkpoint: the worst moment

    monkeypatch.setattr(Progress, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "parts", show="none")
    monkeypatch.undo()
    monkeypatch.setenv("KRT_HOME", str(tmp_path))
    parts = train(experiment, tmp_path / "parts", show="none")
    assert "continuing at" in (parts.folder / "log.txt").read_text()
    _same(whole, parts)


@pytest.mark.slow
def test_a_killed_process_continues_where_it_was(tiny, tmp_path):
    experiment = tiny(train__epochs=60, replay__per_class=2)
    (tmp_path / "e.yaml").write_text(experiment.to_yaml())
    command = [sys.executable, "-m", "krt_core.cli", "train", str(tmp_path / "e.yaml"), "--folder"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(12):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, env=env)
        epochs = tmp_path / "killed" / "metrics.jsonl"
        before = len(epochs.read_text().splitlines()) if epochs.is_file() else 0
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            now = len(epochs.read_text().splitlines()) if epochs.is_file() else 0
            if killed < 5 and now > before + 8:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.01)
        if process.wait() == 0:
            break
    assert killed >= 3
    subprocess.run([*command, str(tmp_path / "whole")], stdout=subprocess.DEVNULL, env=env, check=True)
    _same(Run(tmp_path / "whole"), Run(tmp_path / "killed"))


def test_a_training_that_is_stopped_takes_back_the_record_of_who_started_it(tiny, tmp_path):
    """By it an explorer tells one that was stopped from one that failed."""
    (tmp_path / "e.yaml").write_text(tiny(train__epochs=500).to_yaml())
    (record := tmp_path / "record.json").write_text("{}")
    start = [sys.executable, "-m", "krt_core.machine.processes", "--record", str(record), "krt_core.cli", "train"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*start, str(tmp_path / "e.yaml"), "--folder", str(tmp_path / "run")], env=env)
    deadline = time.time() + 120
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.time() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 130 and not record.exists()


def test_fewer_images_than_exemplars_is_said_and_goes_on(tiny):
    run = train(tiny(method="finetune", replay__per_class=500), show="none")
    assert "fewer images than exemplars asked for" in (run.folder / "log.txt").read_text() and run.done


def test_a_class_without_images_is_named_before_training(tiny, coco_root):
    for split in ("train", "val"):
        path = coco_root / "annotations" / f"instances_{split}2014.json"
        content = json.loads(path.read_text())
        content["categories"].append({"id": 99, "name": "yak"})
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labelled with yak.*data\.classes"):
        train(tiny(), show="none")


def test_what_was_computed_stays_when_an_image_breaks(tiny, coco_root, tmp_path, monkeypatch):
    experiment = tiny(data__cache=False)
    original = session_module._Training.session

    def break_images(self, index, resume):
        if index == 1:
            for path in (coco_root / "train2014").iterdir():
                path.write_bytes(b"no image")
        original(self, index, resume)

    monkeypatch.setattr(session_module._Training, "session", break_images)
    with pytest.raises(DataError, match="cannot be read"):
        train(experiment, tmp_path / "run", show="none")
    assert Run(tmp_path / "run").finished_sessions == 1


def test_a_loss_that_is_not_finite_stops_with_advice(tiny):
    with pytest.raises(
        RunError,
        match=r"loss became no finite number in session 1, .* on the images 1.*lower train\.base_lr",
    ):
        train(tiny(train__base_lr=1e30), show="none")


def test_weight_decay_is_for_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    plain, decayed = make_optimiser(model, 0.1).param_groups
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 3 and [p.shape for p in decayed["params"]] == [(3, 3)]


def test_max_steps_is_a_quick_look_and_never_done(tiny):
    run = train(tiny(method="finetune"), show="none", max_steps=1)
    assert run.finished_sessions == 2 and not run.done and [e["images"] for e in run.epochs] == [16] * 4
    with pytest.raises(RunError, match="--max-steps 1"):  # its numbers must never pass for a training's
        train(tiny(method="finetune"), show="none")


def test_a_second_process_and_a_changed_data_set_are_refused(tiny, coco_root, monkeypatch):
    run = Run.create(tiny(method="finetune"))
    with run.lock(), pytest.raises(RunError, match="another process"):
        train(tiny(method="finetune"), show="none")
    monkeypatch.setattr(session_module._Training, "finish", lambda self: None)
    train(tiny(method="finetune"), show="none")
    path = coco_root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["images"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 139]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="data set has changed"):
        train(tiny(method="finetune"), show="none")


def test_another_number_of_processes_is_another_training(tiny, monkeypatch):
    """Where each process takes batch statistics of its own images."""
    monkeypatch.setattr(session_module._Training, "finish", lambda self: None)
    for kind, refused in (("batch", True), ("frozen", False)):
        experiment = tiny(method="finetune", train__batch_norm=kind)
        run = train(experiment, show="none")
        path = run.session_folder(1) / "state.json"
        state = json.loads(path.read_text())
        assert state["made_with"]["processes"] == (1 if refused else None)
        if refused:
            state["made_with"]["processes"] = 2
            path.write_text(json.dumps(state))
            with pytest.raises(RunError, match="begun in 2 processes.*--processes 2"):
                train(experiment, show="none")
        else:
            train(experiment, show="none")


def test_different_settings_are_never_averaged_as_seeds(tiny):
    from krt_core.lab.report import runs_table, summary_table

    variants = [tiny(method="finetune", train__epochs=1, seed=s) for s in (0, 1)]
    variants.append(tiny(method="finetune", train__epochs=1, finetune__head="ica"))
    table = summary_table(runs_table([train(e, show="none") for e in variants]))
    assert dict(zip(table.method, table.runs, strict=True)) == {"finetune": 2, "finetune, finetune.head=ica": 1}


def test_explaining_a_finished_run(tiny, coco_root):
    from krt_core.data import open_dataset

    run = train(tiny(train__epochs=4), show="none")
    dataset = open_dataset(run.experiment.data, "test")
    rows = choose_images(dataset, run.protocol, ["101"])
    assert dataset.ids[rows[0]] == "101"
    with pytest.raises(DataError, match="no image '9999'"):
        choose_images(dataset, run.protocol, ["9999"])
    model = load_model(run, 1)
    images = torch.rand(2, 3, 32, 32)
    seen = look(model, images)
    assert seen.scores.shape == (2, 4) and seen.patches.shape == (2, 2, 4, 4, 4) and len(seen) == 2
    np.testing.assert_allclose(seen.transfer + seen.retention + seen.patches.sum((-1, -2)), 1, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(seen.scores, torch.sigmoid(model(images).logits).numpy(), atol=1e-5)
    found = evidence(seen, 2)
    assert found.maps.shape == (2, 4, 4) and np.abs(found.error).max() < 1e-4  # the maps add up
    # Gradient × value is the slope of the logit when a patch's part is scaled.
    token, parts, step = seen.tokens[:, 1], seen.parts[:, 1], 1e-2
    with torch.no_grad():
        slopes = [(seen.rest(token + step * parts[:, n], 2) - seen.rest(token - step * parts[:, n], 2)) / 2 / step
                  for n in range(16)]  # fmt: skip
    first_order = evidence(seen, 2, steps=0).maps.reshape(2, 16)
    np.testing.assert_allclose(first_order, torch.stack(slopes, 1).numpy(), atol=2e-3)
    np.testing.assert_allclose(evidence(seen.of(np.array([1])), 2).maps, found.maps[1:], atol=1e-5)
    assert grad_cam(model, images, 2).shape == (2, 4, 4) and (grad_cam(model, images, 2) >= 0).all()
    with pytest.raises(RunError, match="not yet learned"):
        evidence(look(load_model(run, 0), images), 2)
    other = train(tiny(method="finetune"), show="none")
    with pytest.raises(RunError, match="linear head"):
        look(load_model(other, 1), images)
    assert grad_cam(load_model(other, 1), images, 0).shape == (2, 4, 4)
    assert [r.experiment.method for r in find_runs("outputs")] == ["krt", "finetune"]
    assert len(find_runs("outputs", method="krt")) == 1


def test_weights_of_a_run_are_refused_as_a_start(tiny):
    run = train(tiny(method="finetune"), show="none")
    with pytest.raises(CheckpointError, match=r"refused.*--allow-leak"):
        train(tiny(model__weights=str(run.folder / "session_01/model.safetensors")), show="none")


def test_tensorboard_is_written_on_request(tiny):
    pytest.importorskip("tensorboard")
    run = train(tiny(method="finetune", train__epochs=1, train__tensorboard=True), show="none")
    assert list((run.folder / "tensorboard").iterdir())


def test_lines_and_bars_tell_the_same_story(tiny, capsys):
    train(tiny(method="finetune", train__epochs=1), show="lines")
    lines = capsys.readouterr().out
    train(tiny(method="finetune", train__epochs=1, seed=1), show="bar")
    both = capsys.readouterr()
    for words in ("session 1 epoch 1", "session 2/2 (cat, dog)", "done: average mAP"):
        assert words in lines and words in both.out + both.err
    assert "step" in both.err and "step" not in lines


def test_the_best_epoch_can_stand_for_the_session(tiny):
    """As some papers report it; the weights that go on are the last epoch's all the same."""
    longer = dict(train__epochs=5, train__evaluate_every=1)
    last, best = train(tiny(**longer), show="none"), train(tiny(**longer, train__report="best"), show="none")
    assert last.experiment.hash() != best.experiment.hash()
    validated = [e.get("mAP_seen", -1) for e in best.epochs if e["session"] == 0]
    for t in range(2):
        epoch = best.session_state(t)["reported_epoch"]
        assert last.session_state(t)["reported_epoch"] == 4
        assert best.curve()[t] >= last.curve()[t]
        if t == 0 and epoch < 4:
            assert best.curve()[0] == pytest.approx(max(validated), abs=1e-3)
        for name, tensor in last.model_state(t).items():
            assert torch.equal(tensor, best.model_state(t)[name])
    with pytest.raises(ConfigError, match="evaluate_every"):
        tiny(train__report="best", train__evaluate_every=0)


@pytest.mark.parametrize(
    "switch",
    [
        {"model__query": "retention"},
        {"krt__target": "estimated"},
        {"krt__rule": "exact"},
        {"krt__per_class": True},
        {"krt__target": "estimated", "krt__rule": "exact", "krt__per_class": True},
        {"replay__labels": "strict", "replay__per_class": 2},
        {"train__batch_norm": "frozen"},
        {"data__validation": 0.3, "data__test": "validation"},
        {"method": "pod"},
        {"method": "pod", "pod__head": "ica"},
    ],
    ids=str,
)
def test_every_switch_trains_and_changes_the_run(tiny, switch):
    run = train(tiny(**switch), show="none")
    assert run.done and run.experiment.hash() != tiny().hash()
    state = run.session_state(1)
    if "krt__per_class" in switch:
        assert len(state["method"]["thresholds"]["1"]["per_class"]) == 2
    if switch.get("krt__target"):
        labels = run.scores(0).labels  # any labels would do for the shape
        assert labels.shape[1] == 4 and state["method"]["thresholds"]["1"]["target"] > 0
    if switch.get("train__batch_norm"):
        first, later = run.model_state(0), run.model_state(1)
        assert all(torch.equal(first[n], later[n]) for n in first if "running_" in n)
        assert any(not torch.equal(first[n], later[n]) for n in first if n.endswith("bn1.weight"))
    if switch.get("method") == "pod":
        assert {"classification", "spatial", "flat"} <= set(run.epochs[-1]) and "spatial" not in run.epochs[0]


def test_weights_of_unknown_origin_are_named_as_such(tiny, tmp_path):
    from krt_core.weights.convert import network_of

    experiment = tiny(method="finetune", train__epochs=1)
    torch.save(network_of(experiment).backbone.body.state_dict(), tmp_path / "found.pth")
    run = train(tiny(method="finetune", train__epochs=1, model__weights=str(tmp_path / "found.pth")), show="none")
    assert "found.pth: what it was trained on is unknown" in (run.folder / "log.txt").read_text()
