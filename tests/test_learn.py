"""Optimisers and schedules: the published ones, and those that can be had instead."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from krt_core.data import open_dataset
from krt_core.data.store import ImageStore
from krt_core.errors import RunError
from krt_core.evaluate import predict
from krt_core.learn import make_optimiser, make_schedule
from krt_core.machine.device import choose_runtime
from krt_core.machine.distributed import World
from krt_core.memory import Ranked, herding
from krt_core.methods.finetune import Finetune
from krt_core.session import train
from krt_core.weights.convert import network_of


def rates(kind: str, steps: int = 10, warmup: float = 0.2, more: int = 0) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-5)
    schedule, out = make_schedule(optimiser, kind, 1.0, steps, warmup), []
    for _ in range(steps + more):
        out.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return out


def test_schedules():
    cosine = [0.5, 1.0] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates("cosine") == pytest.approx(cosine)
    assert rates("constant") == [1.0] * 10
    assert rates("cosine", 4, 1.0) == [0.25, 0.5, 0.75, 1.0]  # nothing left to go down
    assert rates("cosine", 4, 0.01) == pytest.approx([1.0] + [(1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)])
    assert rates("cosine", 5, 0.8, more=1) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.0])
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
    assert all(group["lr"] == 1e-5 and group["fused"] for group in made.param_groups)
    assert made.defaults.get("momentum", 0.9) == 0.9


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
    assert all(math.log2(r).is_integer() for r in body)  # half as fast from layer to layer
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


# ---- numbers that are none ----


def overflowing(monkeypatch, steps, value=math.inf):
    """The loss of these steps, counted over the whole run, is no number."""
    original, done = Finetune.loss, []

    def loss(self, batch):
        result = original(self, batch)
        done.append(len(done))
        if done[-1] in steps:
            result["loss"] = result["loss"] * value
        return result

    monkeypatch.setattr(Finetune, "loss", loss, raising=False)


HALF = dict(method="finetune", train__epochs=2, train__precision="float16", train__evaluate_every=0)


def test_a_step_that_overflows_float16_is_left_out_of_the_mean_and_counted(tiny, monkeypatch):
    overflowing(monkeypatch, {1})
    run = train(tiny(**HALF), show="none", device="cpu")
    first, *others = run.epochs
    assert first["overflowed"] == 1 and math.isfinite(first["loss"]) and first["loss"] > 0
    assert all("overflowed" not in epoch for epoch in others) and run.done
    assert "1 step overflowed float16 and changed nothing" in (run.folder / "log.txt").read_text()


def test_the_mean_is_over_the_steps_that_are_left(tiny, monkeypatch, tmp_path):
    once = dict(HALF, train__epochs=1, train__base_lr=1e-12)  # a loss that hardly depends on the step before
    whole = train(tiny(**once), tmp_path / "whole", show="none", device="cpu", max_steps=1)
    overflowing(monkeypatch, {1})
    run = train(tiny(**once), tmp_path / "run", show="none", device="cpu", max_steps=2)
    assert run.epochs[0]["loss"] == pytest.approx(whole.epochs[0]["loss"], rel=1e-3)


def test_an_epoch_without_a_finite_step_ends_the_run(tiny, monkeypatch):
    overflowing(monkeypatch, range(100))
    with pytest.raises(RunError, match=r"loss became nan in every step .*session 1, epoch 1, .*lower train\.base_lr"):
        train(tiny(**HALF), show="none", device="cpu")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_in_other_precisions_one_such_step_ends_it(tiny, monkeypatch, value):
    """Nothing skips it there: every weight is lost with it."""
    overflowing(monkeypatch, {1}, value)
    with pytest.raises(RunError, match=r"loss became no finite number in session 1, epoch 1, step 2, on the images"):
        train(tiny(**{**HALF, "train__precision": "float32"}), show="none", device="cpu")


def test_scores_that_are_no_numbers_name_an_image(tiny, monkeypatch):
    def scores(self, model, images):
        found = torch.sigmoid(model(images).logits)
        found[3] = math.nan
        return found

    monkeypatch.setattr(Finetune, "scores", scores, raising=False)
    with pytest.raises(RunError, match=r"scores of image 103 are not numbers \(NaN\), as those of 1 of 24"):
        train(tiny(method="finetune", train__epochs=1, train__evaluate_every=0), show="none", device="cpu")


# ---- features for herding ----


def test_features_are_those_of_the_rows_that_are_asked_for(tiny):
    experiment = tiny()
    network, runtime = network_of(experiment), choose_runtime("float32", "cpu")
    network.add_session(2)
    store = ImageStore(open_dataset(experiment.data, "train"), 32)
    rows = np.arange(0, 40, 3)
    every = predict(network, store, rows, runtime, 4, np.ones(len(rows), bool))[1]
    for chosen in (np.arange(len(rows)) % 3 == 1, np.arange(len(rows)) < 5, np.arange(len(rows)) > 99):
        scores, features = predict(network, store, rows, runtime, 4, chosen)
        np.testing.assert_array_equal(features, every[chosen])
        assert scores.shape == (len(rows), 2)
    assert predict(network, store, rows, runtime, 4)[1] is None
    assert World().collect(every) is every


def test_herding_normalises_without_a_copy_of_all():
    import tracemalloc

    rng = np.random.default_rng(0)
    features = rng.random((20000, 64), dtype=np.float32)
    rows = np.arange(0, 20000, 2)
    tracemalloc.start()
    chosen = herding(features, 5, rows=rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * features[rows].nbytes
    np.testing.assert_array_equal(chosen, herding(features[rows], 5))
    assert features.max() <= 1 and features.min() >= 0  # they are left alone


def test_herding_of_a_class_sees_its_own_images_alone(tiny):
    experiment = tiny(replay__per_class=3)
    rng = np.random.default_rng(1)
    features, labels = rng.random((30, 8)).astype(np.float32), np.zeros((30, 2), bool)
    labels[:20, 0], labels[20:, 1] = True, True
    memory = Ranked(experiment.replay)
    memory.update(0, np.arange(100, 130), labels, features, seed=0)
    assert memory.ranked[0] == (100 + herding(features[:20], 3)).tolist()
    assert memory.ranked[1] == (120 + herding(features[20:], 3)).tolist()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.2), (2, 0.5), (5, 0.2), (10, 0.1)])
def test_a_session_of_few_steps_learns_in_them(steps, warmup):
    """The rate of one cycle, also where it rises in one step only, or there is but one."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    schedule, rates = make_schedule(optimiser, "onecycle", 0.1, steps, warmup), []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert max(rates) > 0.05 and min(rates) >= 0 and max(rates) <= 0.1
