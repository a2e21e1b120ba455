"""AGCN and CSC against their equations, written out class by class; trained, resumed, in two processes."""

import math

import numpy as np
import pytest
import torch
from test_equations import SHARE, asymmetric, learning
from test_head import flat, interrupted, same

from krt_core.data.pipeline import Batch
from krt_core.errors import ConfigError
from krt_core.launch import launch
from krt_core.session import train

NAMES = ("agcn", "csc")


def shaken(method):
    torch.manual_seed(1)
    for head in (method.head, method.old_head):
        for parameter in head.parameters() if head is not None else ():
            parameter.data += 0.2 * torch.randn_like(parameter)


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def rows_of_agcn(head):
    """H (C, channels), each class by its neighbours."""
    a, words = head.correlation, torch.cat(list(head.words))
    near = [[a[c, d] / (a[c].sum() * a[d].sum()).sqrt() for d in range(len(a))] for c in range(len(a))]

    def spread(rows):
        return torch.stack([sum(n * row for n, row in zip(line, rows, strict=True)) for line in near])

    return spread(leaky(spread(words @ head.first.weight.T)) @ head.second.weight.T)


def logits_of_csc(head, features, graph=True):
    every = []
    for image in features:
        x = image.flatten(1).T @ head.projection.weight.T + head.projection.bias
        r, b = torch.cat(list(head.maps)), torch.cat(list(head.map_biases))
        maps = [x @ r[c] + b[c] for c in range(len(r))]
        highest = torch.stack([m.max() for m in maps])
        if not graph:
            every.append(highest)
            continue
        v = torch.stack([(torch.sigmoid(m)[:, None] * x).mean(dim=0) for m in maps])
        v = v + leaky(head.adjacency @ v @ head.static.weight.T)
        f, g, c = torch.cat(list(head.relations)), v.mean(dim=0), len(v)
        q = torch.stack(
            [torch.stack([torch.sigmoid(torch.cat([v[i], g]) @ f[j]) / c for j in range(c)]) for i in range(c)]
        )
        v = v + leaky(q @ v @ head.dynamic.weight.T)
        k, bias = torch.cat(list(head.rows)), torch.cat(list(head.biases))
        every.append(torch.stack([(v[i] @ k[i] + bias[i] + highest[i]) / 2 for i in range(c)]))
    return torch.stack(every)


def distilled(logits, old, labels):
    total = 0.0
    for i, row in enumerate(old):
        for c, z in enumerate(row):
            y, p = (1.0 if labels[i, c] > 0 else torch.sigmoid(z)), torch.sigmoid(logits[i, c])
            total = total - y * p.log() - (1 - y) * (1 - p).log()
    return total


def test_agcn_s_loss_written_out(tiny):
    method, context, batch = learning(tiny, "agcn", index=1, graph_weight=2.0)
    shaken(method)
    method.head.correlation.copy_(torch.rand(4, 4) + torch.eye(4))
    h, h_old = rows_of_agcn(method.head), rows_of_agcn(method.old_head)
    logits = context.model(batch.images).features.mean(dim=(2, 3)) @ h.T
    old = (context.old_model(batch.images).features.mean(dim=(2, 3)) @ h_old.T).detach()
    result = method.loss(batch)
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result["logits"], logits, **close)
    wanted = {
        "classification": 0.07 * 3 * asymmetric(logits[:, 2:], batch.labels[:, 2:]),
        "distillation": 0.93 * 3 * distilled(logits, old, batch.labels),
        "graph": 2 * SHARE * (h[:2] - h_old).square().sum(),
    }
    assert result["parts"].keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(result["parts"][name], value, **close)
    torch.testing.assert_close(result["loss"], sum(wanted.values()), **close)


def test_agcn_s_matrix_is_of_conditional_probabilities(tiny):
    method, context, batch = learning(tiny, "agcn", index=1)
    shaken(method)
    method.head.correlation[:2, :2] = inherited = torch.tensor([[1, 0.3], [0.6, 1]])
    labels = torch.tensor([[0.0, 0, 1, -1], [1, 0, 1, 1], [0, 0, 0, 1]])
    context.batches = lambda: [Batch(batch.images[i], labels[i], np.arange(3)[i]) for i in (slice(0, 2), slice(2, 3))]
    method.correlate(context)
    soft = torch.sigmoid(method.ask_old_head(batch.images))
    a = method.head.correlation
    assert torch.equal(a[:2, :2], inherited) and a.diagonal().tolist() == [1] * 4
    assert a[2, 3] == 1 and a[3, 2] == 0.5  # of those with both known
    for c in range(2):
        torch.testing.assert_close(a[2, c], (soft[0, c] + soft[1, c]) / 2)
        torch.testing.assert_close(a[3, c], (soft[1, c] + soft[2, c]) / 2)
        torch.testing.assert_close(a[c, 2], (soft[0, c] + soft[1, c]) / soft[:, c].sum())
        torch.testing.assert_close(a[c, 3], (soft[1, c] + soft[2, c]) / (soft[1, c] + soft[2, c]))


def test_agcn_s_words_are_of_the_class_whatever_the_session(tiny):
    two, *_ = learning(tiny, "agcn", index=1)
    other = two.make_head(8, 4)
    other.grow(4)
    assert torch.equal(torch.cat(list(two.head.words)), torch.cat(list(other.words)))
    assert not two.head.words[0].requires_grad
    assert learning(tiny, "agcn", index=1, embeddings="learned")[0].head.words[0].requires_grad


@pytest.mark.parametrize("graph", [True, False])
def test_csc_s_loss_written_out(tiny, graph):
    method, context, batch = learning(tiny, "csc", index=1, graph=graph, entropy_weight=0.4, distillation_weight=0.6)
    shaken(method)
    logits = logits_of_csc(method.head, context.model(batch.images).features, graph)
    old = logits_of_csc(method.old_head, context.old_model(batch.images).features, graph).detach()
    p = torch.sigmoid(logits[:, :2])
    wanted = {
        "classification": 3 * asymmetric(logits[:, 2:], batch.labels[:, 2:]),
        "distillation": 0.6 * 3 * distilled(logits, old, batch.labels),
        "entropy": 0.4 * 3 * (p * p.log() + (1 - p) * (1 - p).log()).sum(),
    }
    result = method.loss(batch)
    torch.testing.assert_close(result["logits"], logits, rtol=1e-5, atol=1e-5)
    assert result["parts"].keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(result["parts"][name], value, rtol=1e-5, atol=1e-5)
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_csc_s_matrix_inherits_its_old_block(tiny):
    head = learning(tiny, "csc", index=0)[0].head
    head.adjacency.data += torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    before = head.adjacency.data.clone()
    head.grow(3)
    assert torch.equal(head.adjacency[:2, :2], before) and torch.equal(head.adjacency[2:, 2:], torch.eye(3))
    assert not head.adjacency[:2, 2:].any() and not head.adjacency[2:, :2].any()


@pytest.mark.parametrize(
    ("name", "changes", "missing"),
    [("agcn", {"graph_weight": 0.0}, "graph"), ("csc", {"entropy_weight": 0.0}, "entropy")],
)
def test_each_part_is_an_option_and_new_in_the_second_session(tiny, name, changes, missing):
    assert missing not in (method := learning(tiny, name, **changes))[0].loss(method[2])["parts"]
    method, _, batch = learning(tiny, name, index=0)
    assert method.loss(batch)["parts"].keys() == {"classification"}
    if name == "agcn":
        off, context, batch = learning(tiny, name, correlation=False)
        assert torch.equal(off.head.correlation, torch.eye(4))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unknown_counts_nowhere(tiny, name):
    method, _, batch = learning(tiny, name)
    batch.labels[0, 2] = batch.labels[1, 0] = -1
    result = method.loss(batch)
    result["logits"].retain_grad()
    result["parts"]["classification"].backward()
    assert result["logits"].grad[0, 2] == 0 and torch.isfinite(result["loss"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [(1, 0), (1, 1)])
def test_resumed_it_ends_alike(tiny, tmp_path, monkeypatch, name, at):
    experiment = tiny(method=name, train__epochs=3, replay__per_class=2)
    whole = train(experiment, tmp_path / "whole", show="none")
    resumed = interrupted(experiment, tmp_path / "parts", at, monkeypatch)
    for t in range(2):
        assert (whole.scores(t).scores == resumed.scores(t).scores).all()
        one, two = (flat(run.method_state(t)) for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.ddp
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_in_two_processes_as_in_one(tiny, tmp_path, name):
    experiment = tiny(method=name, train__precision="float64", train__batch_norm="frozen", replay__per_class=2)
    same(
        train(experiment, tmp_path / "one", show="none", device="cpu"),
        launch(experiment, tmp_path / "two", 2, device="cpu"),
        1e-6,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [
        {"model__freeze": "all", "train__augment": "none", "train__precision": "bfloat16"},
        {"model__freeze": "first", "train__augment": "none", "replay__budget": 6},
        {"train__precision": "bfloat16"},
    ],
)
def test_it_trains_on_any_backbone(tiny, tmp_path, name, changes):
    run = train(tiny(method=name, **changes), tmp_path / "run", show="none")
    assert run.done and all(math.isfinite(e["loss"]) for e in run.epochs)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(tiny, tmp_path, name):
    run = train(tiny(method=name, train__epochs=25, train__augment="none"), tmp_path / "run", show="none")
    assert run.epochs[24]["loss"] < 0.75 * run.epochs[0]["loss"]
    assert run.curve()[0] > 85


@pytest.mark.parametrize("name", NAMES)
def test_bounds_are_refused(tiny, name):
    with pytest.raises(ConfigError, match=rf"{name}\.distillation_weight must be at least 0"):
        tiny(method=name, **{f"{name}__distillation_weight": -1.0})
    with pytest.raises(ConfigError, match="head_start=ridge is for"):
        train(tiny(method=name, train__head_start="ridge"), show="none")
