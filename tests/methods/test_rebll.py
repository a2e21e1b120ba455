"""RebLL against its equations written out once more, and as a run."""

import math

import numpy as np
import pytest
import torch
from test_equations import SHARE, learning

from krt_core.data.pipeline import Batch
from krt_core.errors import ConfigError
from krt_core.launch import launch
from krt_core.runs.progress import Progress
from krt_core.session import train


def plainly(logits, old, labels, positive, negative, decay, gamma, relabel):
    """Classification and distillation, pair by pair of image and class."""
    classification = distillation = 0.0
    for z, q, y in zip(logits.tolist(), torch.sigmoid(old).tolist(), labels.tolist(), strict=True):
        for c, (logit, label) in enumerate(zip(z, y, strict=True)):
            p = 1 / (1 + math.exp(-logit))
            if c < len(q):
                part = positive * q[c] * math.log(p) + negative * (1 - q[c]) * math.log(1 - p)
                distillation -= math.exp(-decay * abs(2 * q[c] - 1)) * part
                label = 1 if label < 0 and q[c] > relabel else label
            if label == 1:
                classification -= math.log(p)
            elif label == 0:
                m = max(p - 0.05, 0)
                classification -= m**gamma * math.log(1 - m)
    return classification, distillation


def test_its_two_losses_are_as_they_are_said(tiny):
    """Of labels that are hidden, shown (by an exemplar) and restored."""
    options = {"positive": 0.5, "negative": 3.0, "decay": 1.5, "gamma_neg": 1.0, "weight": 0.7}
    q = torch.sigmoid(learning(tiny, "rebll", index=2)[1].old_model(learning(tiny, "rebll", index=2)[2].images).logits)
    between = float(q.detach().sort(descending=True).values.flatten()[5:7].mean())
    method, context, batch = learning(tiny, "rebll", index=2, relabel=between, **options)
    assert method.hidden == -1
    labels = batch.labels.clone()
    labels[:, :4] = -1
    labels[0, 0], labels[2, 3] = 1, 0  # an exemplar's
    labels[1, 5] = -1  # a new class that nobody knows, or that is hidden from an exemplar: never restored
    result = method.loss(Batch(batch.images, labels, batch.rows, batch.share))
    new, old = context.model(batch.images).logits.detach(), context.old_model(batch.images).logits.detach()
    classification, distillation = plainly(
        new, old, labels, options["positive"], options["negative"], options["decay"], 1.0, between
    )
    assert SHARE != 1  # sums: a process's share of the batch plays no part
    torch.testing.assert_close(result["parts"]["classification"].item(), 3 * classification, rtol=1e-5, atol=0)
    torch.testing.assert_close(result["parts"]["distillation"].item(), 3 * 0.7 * distillation, rtol=1e-5, atol=0)
    torch.testing.assert_close(result["loss"], sum(result["parts"].values()))
    assert torch.equal(result["logits"].detach(), new)
    assert 0 < int(((old.sigmoid() > between) & (labels[:, :4] < 0)).sum()) < 10


def test_what_it_restores_and_what_it_leaves_unknown(tiny):
    method, *_ = learning(tiny, "rebll", relabel=0.7)
    labels = torch.tensor([[-1.0, -1, -1, 1], [0, -1, 1, -1], [1, 0, 0, 0]])
    old = torch.tensor([[0.9, 0.2], [0.9, 0.7], [0.2, 0.9]])
    assert method.relabel(labels, old).tolist() == [[1, -1, -1, 1], [0, -1, 1, -1], [1, 0, 0, 0]]
    assert labels[0, 0] == -1  # the batch is left alone
    never, *_ = learning(tiny, "rebll", relabel=1.0)
    assert torch.equal(never.relabel(labels, old), labels)


def test_the_gradient_pulls_towards_the_old_model_and_harder_on_what_is_absent(tiny):
    method, *_ = learning(tiny, "rebll", positive=1.0, negative=2.0, decay=0.0)
    at = torch.tensor([[0.0, 0.0, 5.0]], requires_grad=True)
    method.distil(at, torch.tensor([[0.9, 0.1]])).backward()
    present, absent, new = at.grad[0].tolist()
    assert present < 0 < absent and new == 0 and absent > -present
    same = torch.logit(torch.tensor([[0.3, 0.8]])).requires_grad_()
    even, *_ = learning(tiny, "rebll", positive=1.0, negative=1.0)
    even.distil(same, torch.tensor([[0.3, 0.8]])).backward()
    assert same.grad.abs().max() < 1e-6  # nothing to learn where both agree


def test_no_gradient_of_what_is_unknown_and_a_plain_first_session(tiny):
    method, context, batch = learning(tiny, "rebll", relabel=1.0, weight=0.0)
    labels = batch.labels.clone()
    labels[0, 0] = labels[1, 2] = labels[2, 3] = -1
    result = method.loss(Batch(batch.images, labels, batch.rows, batch.share))
    result["logits"].retain_grad()
    result["loss"].backward()
    assert (result["logits"].grad[labels < 0] == 0).all() and (result["logits"].grad != 0).any()
    assert learning(tiny, "rebll", index=0)[0].loss(batch_of(tiny))["parts"].keys() == {"classification"}


def batch_of(tiny):
    return learning(tiny, "rebll", index=0)[2]


@pytest.mark.parametrize(
    "changes",
    [{}, {"replay.per_class": 2, "replay.labels": "strict"}, {"rebll.head": "ica", "model.freeze": "first"},
     {"model.freeze": "all", "train.augment": "none", "replay.budget": 6}],
)  # fmt: skip
def test_a_run_that_is_interrupted_is_that_which_is_not(tiny, tmp_path, monkeypatch, changes):
    experiment = tiny(method="rebll", **changes)
    whole = train(experiment, tmp_path / "whole", show="none")
    assert "distillation" in whole.epochs[-1] and "distillation" not in whole.epochs[0]
    assert whole.session_state(1)["method_bytes"] == 0
    original = Progress.epoch

    def stop(self, record):
        original(self, record)
        if (record["session"], record["epoch"]) == (1, 0):
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "parts", show="none")
    monkeypatch.setattr(Progress, "epoch", original)
    again = train(experiment, tmp_path / "parts", show="none")
    first, second = whole.model_state(1), again.model_state(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert np.array_equal(whole.scores(1).scores, again.scores(1).scores)


@pytest.mark.parametrize("seed", [1, 2])
def test_an_even_distillation_holds_the_old_answers(tiny, tmp_path, seed):
    """With w₋ = w₊ and nothing discounted it is least where the old model's answers stay as they were."""
    even = {"rebll.weight": 10, "rebll.negative": 1, "rebll.decay": 0, "rebll.relabel": 1}
    moved = {}
    for name, changes in (("rebll", even), ("finetune", {})):
        changes = {"train.epochs": 8, "train.augment": "none", "train.lr": 0.003, "seed": seed, **changes}
        run = train(tiny(method=name, **changes), tmp_path / name, show="none")
        before, after = (run.scores(t).scores[:, :2] for t in range(2))
        moved[name] = np.abs(after - before).mean()
    assert moved["rebll"] < 0.7 * moved["finetune"]  # 0.2 and 0.3 of it


@pytest.mark.slow
def test_a_run_in_two_processes_is_that_in_one(tiny, tmp_path):
    changes = {"train.precision": "float64", "train.batch_norm": "frozen", "replay.per_class": 2}
    experiment = tiny(method="rebll", rebll__relabel=0.5, **changes)
    one = train(experiment, tmp_path / "one", show="none", device="cpu")
    two = launch(experiment, tmp_path / "two", 2, device="cpu")
    for t in (0, 1):
        np.testing.assert_allclose(one.scores(t).scores, two.scores(t).scores, rtol=1e-6, atol=1e-6)
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert all(a[key] == pytest.approx(b[key], rel=1e-6) for key in a.keys() & {"loss", "distillation"})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("negative", -1, "at least 0"), ("relabel", 2, "at most 1"), ("relabell", 0.5, "Did you mean 'relabel'")],
)
def test_what_it_cannot_do_is_refused(tiny, key, value, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**{"method": "rebll", f"rebll.{key}": value})
