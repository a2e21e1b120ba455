"""Cumulative training: each session anew from the first weights on everything shown so far."""

import numpy as np
import pytest
import torch
from interrupted import begun
from test_rehearsal import same

import krt_core.session as loop
from krt_core.lab.report.paper_table import _line
from krt_core.learn import set_seed
from krt_core.methods import METHODS
from krt_core.protocol import Session
from krt_core.session import train

QUICK = dict(method="cumulative", train__epochs=2, train__evaluate_every=0)


@pytest.fixture
def begins(monkeypatch):
    """What each session begins with."""
    found, kind = [], METHODS["cumulative"]

    def start_session(self, context):
        backbone = {name: tensor.clone() for name, tensor in context.model.backbone.state_dict().items()}
        shown = [(batch.rows, batch.labels) for batch in context.batches()]
        found.append((context, backbone, context.model.session_sizes, *map(np.concatenate, zip(*shown, strict=True))))
        super(kind, self).start_session(context)

    monkeypatch.setattr(kind, "start_session", start_session)
    return found


@pytest.mark.parametrize("images", ["shared", "disjoint"])
def test_every_session_begins_anew_with_all_that_was_shown(tiny, tmp_path, begins, images):
    changes = dict(train__base_lr=0.002, train__lr=0.5, train__schedule="constant", protocol__images=images)
    run = train(tiny(**QUICK, **changes), tmp_path / "run", show="none")
    (first, weights, *_), (second, again, *_) = begins
    assert (first.session, second.session) == (Session(0, 0, 2), Session(1, 0, 4))
    assert first.old_model is second.old_model is None and first.model is not second.model
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["body.conv1.0.weight"], run.model_state(0)["backbone.body.conv1.0.weight"])
    assert {line["lr"] for line in run.epochs} == {0.002}  # of a first session
    truth = open_labels(run)
    for (*_, sizes, rows, labels), stop in zip(begins, (2, 4), strict=True):
        shows = truth[:, :stop].any(axis=1) & ~(truth[:, stop:].any(axis=1) & (images == "disjoint"))
        assert sizes == [stop] and rows.tolist() == np.flatnonzero(shows).tolist()
        assert np.array_equal(labels, truth[rows, :stop])
    states = [run.session_state(t) for t in (0, 1)]
    assert [state["train_images"] for state in states] == [len(rows) for *_, rows, _ in begins]
    planned = [line["images"] for line in run.epochs]
    assert planned[::2] == [state["train_images"] for state in states]
    assert run.model_state(1)["heads.0.weight"].shape[0] == 4 and "heads.1.weight" not in run.model_state(1)


def open_labels(run):
    from krt_core.data import open_dataset

    return run.protocol.reorder(open_dataset(run.experiment.data, "train").labels)


def test_a_session_is_joint_training_on_the_classes_so_far(tiny, tmp_path, monkeypatch):
    """Where order and chance say nothing: all images in one batch, without augmentation, heads from one seed."""
    monkeypatch.setattr(loop, "set_seed", lambda seed, *rest: set_seed(seed))
    changes = dict(
        train__precision="float64", train__batch_size=64, train__augment="none", train__batch_norm="frozen",
        train__epochs=3, train__evaluate_every=0,
    )  # fmt: skip
    one = train(tiny(method="cumulative", **changes), tmp_path / "cumulative", show="none")
    joint = train(tiny(method="joint", **changes), tmp_path / "joint", show="none")
    torch.testing.assert_close(one.model_state(1), joint.model_state(1), rtol=1e-6, atol=1e-8)
    assert np.allclose(one.scores(1).scores, joint.scores(1).scores, atol=1e-6)
    assert not np.allclose(one.scores(0).scores, joint.scores(0).scores[:, :2], atol=1e-3)


@pytest.mark.parametrize("freeze", ["none", "first", "all"])
def test_an_interrupted_run_is_the_same_run(tiny, tmp_path, begins, freeze):
    changes = dict(model__freeze=freeze, train__augment="none", protocol__increment=1, protocol__base=2, **QUICK)
    whole = train(tiny(**changes), tmp_path / "whole", show="none", device="cpu")
    for place in ((1, 0), (2, 0)):
        folder = begun(tiny(**changes), tmp_path / f"parts{place[0]}", at=place)
        same(whole, train(tiny(**changes), folder, show="none", device="cpu"))
    last, first = whole.model_state(2), whole.model_state(0)
    still = [torch.equal(first[name], last[name]) for name in first if name.startswith("backbone.body.conv1")]
    assert all(still) == (freeze != "none")
    assert [len(whole.model_state(t)["heads.0.bias"]) for t in range(3)] == [2, 3, 4]


def test_it_replays_nothing_and_stands_as_a_bound(tiny, tmp_path):
    run = train(tiny(replay__per_class=2, **QUICK), tmp_path / "run", show="none")
    assert run.session_state(1)["exemplar_ids"] == [] and run.session_state(1)["replayed_images"] == 0
    assert run.session_state(1)["method_bytes"] == 0
    assert _line("cumulative", "cumulative", [run]).buffer == "all data"
