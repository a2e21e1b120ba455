"""Which images choose the epoch that a session reports, and which ones its numbers are of."""

import json
import shutil

import numpy as np
import pytest

from krt_core import evaluate
from krt_core import session as session_module
from krt_core.data import open_dataset
from krt_core.errors import RunError
from krt_core.lab.analysis.pseudo_labels import pseudo_labels
from krt_core.lab.figures.training import training_progress
from krt_core.lab.report import runs_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.session import train

QUICK = dict(method="finetune", train__epochs=4, train__evaluate_every=1)


@pytest.fixture
def looks(monkeypatch):
    """Notes which images every pass of scoring is over."""
    seen, plain = [], evaluate.predict

    def noted(model, store, rows, *args, **kwargs):
        seen.append(set(store.dataset.ids[rows]))
        return plain(model, store, rows, *args, **kwargs)

    monkeypatch.setattr(evaluate, "predict", noted)
    return seen


def test_the_best_epoch_is_chosen_on_validation_images_and_tested_once(tiny, looks, tmp_path):
    best = tiny(**QUICK, data__validation=0.3, train__report="best")
    held = set(open_dataset(best.data, "validation").ids)
    run = train(best, tmp_path / "best", show="none")
    # Ids of this data set are not unique over both halves: the pool of 24 test images is told by its size.
    test = [ids for ids in looks if not ids <= held]
    assert len(test) == 2 and len(test[0]) == 24
    for t in range(2):
        curve = {e["epoch"]: e["mAP_seen"] for e in run.epochs if e["session"] == t}
        assert len(curve) == 4 and all(e["mAP_of"] == "validation" for e in run.epochs)
        state = run.session_state(t)
        assert curve[state["reported_epoch"]] == max(curve.values()) and state["epoch_chosen_on"] == "validation"
        assert len(run.scores(t).ids) == 24
    # The reported scores are those of a training that ended with the chosen epoch's weights; the weights go on.
    last = train(tiny(**QUICK, data__validation=0.3), tmp_path / "last", show="none")
    for t in range(2):
        assert all((last.model_state(t)[name] == tensor).all() for name, tensor in run.model_state(t).items())
        same = run.session_state(t)["reported_epoch"] == 3
        assert np.array_equal(run.scores(t).scores, last.scores(t).scores) == same
    table = runs_table([run])
    assert table["epoch_chosen_on"].tolist() == ["validation"] and "on validation images" in html_report([run])
    assert "validation images" in training_progress([run]).axes[1].get_title()
    assert "mAP seen" in (log := (run.folder / "log.txt").read_text()) and "(validation images)" in log


def test_interrupted_it_reports_the_same_epoch(tiny, tmp_path, monkeypatch):
    best = tiny(**QUICK, data__validation=0.3, train__report="best")
    whole = train(best, tmp_path / "whole", show="none")
    monkeypatch.setattr(session_module, "RESUME_EVERY", 0.0)
    plain, count = session_module.Learner.epoch, [0]

    def broken(self, *args):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(session_module.Learner, "epoch", broken)
    with pytest.raises(KeyboardInterrupt):
        train(best, tmp_path / "cut", show="none")
    again = train(best, tmp_path / "cut", show="none")
    for t in range(2):
        assert again.session_state(t)["reported_epoch"] == whole.session_state(t)["reported_epoch"]
        np.testing.assert_array_equal(again.scores(t).scores, whole.scores(t).scores)


def test_chosen_on_the_test_images_is_said_everywhere(tiny, tmp_path):
    run = train(tiny(**QUICK, train__report="best"), tmp_path / "run", show="none")
    assert "epochs are chosen on the test images" in (run.folder / "log.txt").read_text()
    closed = train(tiny(method="ridge", train__report="best", train__evaluate_every=1), tmp_path / "ridge", show="none")
    assert "epochs are chosen" not in (closed.folder / "log.txt").read_text()  # there are none
    assert {e["mAP_of"] for e in run.epochs if "mAP_of" in e} == {"test"}
    assert run.session_state(1)["epoch_chosen_on"] == "test" and runs_table([run])["epoch_chosen_on"][0] == "test"
    assert ">epoch chosen on test</span>" in html_report([run]) and "(epoch chosen on test)" in latex_report([run])
    plain = train(tiny(**QUICK), tmp_path / "plain", show="none")
    assert "chosen on" not in html_report([plain]) and "epoch_chosen_on" not in plain.session_state(0)


@pytest.mark.parametrize("changes", [QUICK, dict(method="ridge", ridge__penalty=0.1), dict(method="joint")], ids=str)
def test_tested_on_validation_nothing_of_the_test_half_is_opened(tiny, coco_root, changes):
    for path in (coco_root / "val2014", coco_root / "annotations" / "instances_val2014.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    experiment = tiny(data__validation=0.3, data__test="validation", **changes)
    run = train(experiment, show="none")
    held = open_dataset(experiment.data, "test")
    assert run.done and set(run.scores(1).ids) == set(held.ids)
    np.testing.assert_array_equal(run.scores(1).labels, run.protocol.reorder(held.labels))
    states = [run.session_state(t) for t in range(2)]
    assert states[0]["train_images"] < 40 - len(held.ids) + 1 and states[0]["test_images"] == len(held.ids)
    learned = open_dataset(experiment.data, "train").labels
    expected = learned.any(axis=1) if changes.get("method") == "joint" else learned[:, :2].any(axis=1)
    assert states[0]["train_images"] == expected.sum()


def test_a_method_in_closed_form_is_validated_too(tiny):
    run = train(tiny(method="ridge", data__validation=0.3, train__evaluate_every=1), show="none")
    assert [e["mAP_of"] for e in run.epochs] == ["validation", "validation"] and len(run.scores(0).ids) == 24


def test_other_images_held_out_are_another_run(tiny, tmp_path):
    experiment = tiny(method="finetune", train__epochs=1, data__validation=0.3)
    run = train(experiment, tmp_path / "run", show="none", max_steps=1)
    assert len(run.session_state(0)["made_with"]["held_out"]) == 16
    for path in (*run.folder.glob("session_*/state.json"), run.folder / "environment.json"):
        content = json.dumps(json.loads(path.read_text())).replace(
            run.session_state(1)["made_with"]["held_out"], "0" * 16
        )
        path.write_text(content)
    shutil.rmtree(run.session_folder(1))
    with pytest.raises(RunError, match="other images held out for validation"):
        train(experiment, tmp_path / "run", show="none", max_steps=1)


@pytest.mark.parametrize("views", [0, 2])
def test_features_are_kept_once_for_both_sides(tiny, tmp_path, views):
    """A held-out image is a row of the same file of features, and what is learned from images alone is the same."""
    still = dict(model__freeze="all", data__validation=0.3, train__augment="light" if views else "none", **QUICK)
    kept = train(tiny(**still, data__views=views), tmp_path / "kept", show="none")
    files = [path.name for path in (tmp_path / "data" / "cache").glob("features-*.npy")]
    assert len(files) == 2 + views and sum("-test-" in name for name in files) == 1
    if not views:
        plain = train(tiny(**still, data__features=False), tmp_path / "plain", show="none")
        for a, b in zip(kept.epochs, plain.epochs, strict=True):
            assert a["mAP_seen"] == pytest.approx(b["mAP_seen"], abs=0.5)


def test_pseudo_labels_of_a_run_with_validation_are_read(tiny):
    experiment = tiny(data__validation=0.3, replay__per_class=2)
    run = train(experiment, show="none")
    found = pseudo_labels(run, 1, open_dataset(experiment.data, "train"))
    assert len(found.ids) == len(run.ahead(0).ids) and found.own < len(found.ids)  # exemplars among them
