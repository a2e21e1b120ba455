"""Optimisers and schedules: the published ones, and those that can be had instead."""

import math

import pytest
import torch
from torch import nn

from krt_core.learn import make_optimiser, make_schedule
from krt_core.session import train
from krt_core.weights.convert import network_of


def rates(kind: str, steps: int = 10, warmup: float = 0.2) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-5)
    schedule, out = make_schedule(optimiser, kind, 1.0, steps, warmup), []
    for _ in range(steps):
        out.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return out


def test_schedules():
    cosine = [0.5, 1.0] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates("cosine") == pytest.approx(cosine)
    assert rates("constant") == [1.0] * 10
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-5)
    published = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, steps_per_epoch=5, epochs=2, pct_start=0.2)
    expected = []
    for _ in range(10):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        published.step()
    assert rates("onecycle") == expected


@pytest.mark.parametrize(("kind", "of"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimisers(kind, of):
    own = nn.Parameter(torch.zeros(3, 2))
    made = make_optimiser(nn.Linear(2, 2), 0.1, kind, own=[own])
    assert type(made).__name__ == of and made.param_groups[1]["params"][-1] is own
    assert [group["weight_decay"] for group in made.param_groups] == [0.0, 0.1]


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_layers_below_learn_more_slowly(tiny, backbone):
    network = network_of(tiny(model__backbone=backbone, model__stride=0, data__image_size=64))
    network.add_session(2)
    optimiser = make_optimiser(network, 0.1, "adamw", layer_decay=0.5)
    make_schedule(optimiser, "constant", 1.0, 10, 0.2)
    rate = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert set(rate) == {p for p in named.values() if p.requires_grad}
    body = [rate[p] for name, p in named.items() if name.startswith("backbone.body.")]
    heads = {rate[p] for name, p in named.items() if not name.startswith("backbone.body.")}
    assert heads == {1.0} and body[0] == min(body) < max(body) <= 1.0
    decays = {p: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert all(
        decays[p] == (0.1 if p.dim() > 1 and not n.endswith("bias") else 0) for n, p in named.items() if p in decays
    )


@pytest.mark.parametrize(
    "changes",
    [{"train__optimiser": "adamw"}, {"train__optimiser": "sgd", "train__schedule": "cosine"},
     {"train__schedule": "constant"}, {"train__clip_norm": 0.1}, {"train__layer_decay": 0.7, "model__stride": 0},
     {"protocol__images": "disjoint"}, {"protocol__sizes": [1, 2, 1]},
     {"protocol__order": ["dog", "ant", "cat", "bee"]}],
    ids=str,
)  # fmt: skip
def test_each_trains_and_is_another_experiment(tiny, changes):
    run = train(tiny(train__epochs=1, **changes), show="none")
    assert run.done and run.experiment.hash() != tiny(train__epochs=1).hash()
    assert run.experiment.changes().keys() >= {key.replace("__", ".") for key in changes if key != "model__stride"}


def test_a_clipped_gradient_is_as_long_as_said(tiny, monkeypatch):
    lengths = []
    step = torch.optim.Adam.step

    def record(self, *arguments, **keywords):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    train(tiny(train__epochs=1, train__clip_norm=0.5), show="none")
    assert lengths and max(lengths) == pytest.approx(0.5, rel=1e-4)
