"""One pass over the images, on a method whose loss is so simple that every number can be worked out by hand."""

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import krt_core.learn as learn_module
from krt_core.data import open_dataset
from krt_core.data.store import ImageStore
from krt_core.errors import ConfigError
from krt_core.learn import Learner, fit, planned_steps, set_seed
from krt_core.machine.device import choose_runtime
from krt_core.machine.distributed import World
from krt_core.protocol import View
from krt_core.session import train

START = 3.0  # the one weight before the first step


class Line:
    """The loss of a step is slope · weight, with the slopes of ``slopes`` in turn; ``own`` is a weight of the method's
    own, with the slope 1."""

    def __init__(self, *slopes, own=()):
        self.slopes, self.own, self.seen, self.drawn = itertools.cycle(slopes), list(own), [], []
        self.whole_batch, self.context = False, SimpleNamespace(forward=None)

    def parameters(self):
        return self.own

    def loss(self, batch):
        self.seen.append((self.model.training, batch.rows.tolist()))
        self.drawn.append(float(torch.rand(())))
        plain = self.model.weight.sum() * next(self.slopes)
        extra = sum((p.sum() for p in self.own), torch.zeros(()))
        return {"loss": plain + extra, "parts": {"plain": plain}, "logits": None}


def learner(tiny, method, images=40, first=True, world=None, precision="float32", **train):
    """A learner of one weight by plain gradient descent at a constant rate, and the images it passes over."""
    changes = {"optimiser": "sgd", "schedule": "constant", "lr": 0.5, "base_lr": 0.25, "weight_decay": 0.0, **train}
    experiment = tiny(**{f"train__{key}": value for key, value in changes.items()})
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, START)
    method.model = model
    runtime = choose_runtime(precision, "cpu")
    if world:
        runtime = dataclasses.replace(runtime, world=world)
    view = View(np.arange(images), np.zeros((images, 2), bool), images)
    made = Learner(model, method, experiment.train, first, view, runtime)
    return made, ImageStore(open_dataset(experiment.data, "train"), 32)


def test_the_mean_of_the_steps_and_what_each_moves(tiny):
    """40 images are 3 steps of 16, 16 and 8; momentum 0.9 of the steps before goes on."""
    method, told = Line(1.0, 2.0, 4.0), []
    made, store = learner(tiny, method)
    record = made.epoch(store, (0, 0, 0), lambda: told.append(1))
    weights = [START, START - 0.25 * 1, START - 0.25 * 1 - 0.25 * (2 + 0.9 * 1)]
    mean = (weights[0] + 2 * weights[1] + 4 * weights[2]) / 3
    assert (record["loss"], record["plain"]) == pytest.approx((mean, mean))
    moved = 0.25 * (1 + (2 + 0.9) + (4 + 0.9 * 2.9))
    assert made.model.weight.item() == pytest.approx(START - moved)
    assert record["lr"] == 0.25 and record["images"] == 40 and len(told) == 3 and "overflowed" not in record
    assert [training for training, _ in method.seen] == [True] * 3
    assert sorted(itertools.chain(*(rows for _, rows in method.seen))) == list(range(40))
    assert method.seen[0][1] != list(range(16))  # in another order
    made.model.eval()
    assert made.epoch(store, (0, 0, 1), lambda: None, max_steps=2)["images"] == 32 and made.model.training


def test_the_first_session_has_a_rate_of_its_own_and_the_schedule_knows_all_steps(tiny):
    made, store = learner(tiny, Line(1.0), first=False, schedule="cosine", warmup=0.01, epochs=2)
    assert made.schedule.get_last_lr() == [0.5, 0.5]
    rates = [made.epoch(store, (0, 1, epoch), lambda: None)["lr"] for epoch in range(2)]
    assert rates == pytest.approx([0.5 * (1 + np.cos(np.pi * 2 / 5)) / 2, 0])  # down to 0 after two times three steps


def test_the_rate_that_is_told_is_the_one_that_was_set_whatever_layers_below_have(tiny, tmp_path):
    slower = dict(train__layer_decay=0.5, train__schedule="constant", train__base_lr=0.01, model__stride=0)
    experiment = tiny(method="finetune", train__epochs=1, **slower)
    assert train(experiment, tmp_path / "run", show="none", max_steps=1).epochs[0]["lr"] == 0.01


def test_an_epoch_is_the_same_again_by_its_seed(tiny):
    method = Line(0.0)
    made, store = learner(tiny, method)
    for seed in ((0, 0, 1), (0, 0, 1), (0, 0, 2)):
        made.epoch(store, seed, lambda: None)
    one, again, other = (list(zip(method.seen, method.drawn, strict=True))[i : i + 3] for i in (0, 3, 6))
    assert one == again and all(a[0] != b[0] and a[1] != b[1] for a, b in zip(one, other, strict=True))


def test_the_clock(tiny, monkeypatch):
    made, store = learner(tiny, Line(1.0))
    ticks = iter([10.0, 12.34567, 20.0, 24.00044])
    monkeypatch.setattr(learn_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    record = made.epoch(store, (0, 0, 0), lambda: None)
    assert (record["seconds"], record["images_per_second"]) == (2.346, 17.1)  # 40 / 2.34567 = 17.05
    method = SimpleNamespace(fit=lambda context: None)
    assert fit(made.model, method, None, 97, (0,)) == {"images": 97, "seconds": 4.0, "images_per_second": 24.2}


def test_of_several_processes_each_has_its_part(tiny):
    """Four of them hold the same three images, too few to share: each counts them for a quarter, the wrapper averages
    the gradients of the four, and they move as one process would."""

    class Four(World):
        def sum(self, values):
            return {key: 4 * value for key, value in values.items()}

        def average_gradients(self, parameters):
            averaged.append([p.grad.item() for p in parameters])

    averaged, own = [], nn.Parameter(torch.ones(1))
    made, store = learner(tiny, Line(2.0, own=[own]), images=3, world=Four(size=4))
    record = made.epoch(store, (0, 0, 0), lambda: None)
    assert record["images"] == 3 and (record["loss"], record["plain"]) == pytest.approx((2 * START + 1, 2 * START))
    assert made.model.weight.item() == pytest.approx(START - 0.25 * 2) and averaged == [[1.0]]
    assert own.item() == pytest.approx(1 - 0.25)  # the method's own learn too


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gradient_is_clipped_as_it_is_not_as_it_was_scaled(tiny, precision):
    own = nn.Parameter(torch.ones(1))  # counts for the length: (3, 1) is made half as long as sqrt(10)
    made, store = learner(tiny, Line(3.0, own=[own]), images=16, clip_norm=10**0.5 / 2, precision=precision)
    made.epoch(store, (0, 0, 0), lambda: None)
    assert made.model.weight.item() == pytest.approx(START - 0.25 * 1.5, rel=1e-4)
    assert own.item() == pytest.approx(1 - 0.25 * 0.5, rel=1e-4)
    loose, store = learner(tiny, Line(3.0), images=16, clip_norm=100.0, precision=precision)
    loose.epoch(store, (0, 0, 0), lambda: None)
    assert loose.model.weight.item() == pytest.approx(START - 0.25 * 3)


def test_a_step_that_overflows_moves_nothing_and_makes_the_scale_smaller(tiny):
    made, store = learner(tiny, Line(1.0, np.inf, 4.0), precision="float16")
    scale = made.scaler.get_scale()
    record = made.epoch(store, (0, 0, 0), lambda: None)
    later = START - 0.25 * 1
    assert record["overflowed"] == 1 and record["images"] == 40
    assert (record["loss"], record["plain"]) == pytest.approx(((START + 4 * later) / 2,) * 2)
    assert made.model.weight.item() == pytest.approx(later - 0.25 * (4 + 0.9 * 1))
    assert made.scaler.get_scale() == scale / 2 and not learner(tiny, Line(1.0))[0].scaler.is_enabled()


def test_what_is_kept_of_a_learner_goes_on_as_it_would_have(tiny):
    half = dict(schedule="cosine", epochs=2, precision="float16")
    one, store = learner(tiny, Line(1.0, np.inf, 4.0), **half)
    one.epoch(store, (0, 0, 0), lambda: None)
    two, _ = learner(tiny, Line(1.0, np.inf, 4.0), **half)
    two.model.load_state_dict(one.model.state_dict())
    two.load_state(copy.deepcopy(one.state()))
    assert two.scaler.get_scale() == one.scaler.get_scale()
    records = [made.epoch(store, (0, 0, 1), lambda: None) for made in (one, two)]
    assert torch.equal(one.model.weight, two.model.weight)
    assert all(records[0][key] == records[1][key] for key in ("loss", "lr"))


def test_batch_norm_of_one_image_is_put_into_words_and_other_errors_are_passed_on(tiny):
    made, store = learner(tiny, Line(1.0), images=1)
    said = "Expected more than 1 value per channel when training, got input size torch.Size([1, 8, 1, 1])"
    for words, error, match in (
        (said, ConfigError, r"train\.batch_size: a step of 1 image"),
        ("other", ValueError, "^other$"),
    ):

        def loss(batch, words=words):
            raise ValueError(words)

        made.method.loss = loss
        with pytest.raises(error, match=match):
            made.epoch(store, (0, 0, 0), lambda: None)


def test_fitting_is_without_gradients_in_eval_mode_and_by_its_seed():
    model, seen = nn.Linear(1, 1), []

    def look(context):
        seen.append((context, torch.is_grad_enabled(), model.training, float(torch.rand(()))))

    for seed in ((0, 1), (0, 1), (0, 2)):
        fit(model, SimpleNamespace(fit=look), "context", 5, seed)
    assert [s[:3] for s in seen] == [("context", False, False)] * 3
    assert seen[0] == seen[1] != seen[2]


def test_steps_are_planned_as_they_are_made(tiny):
    train = tiny(train__epochs=3, train__batch_size=16).train
    plan = {(images, most): planned_steps(images, train, most) for images in (40, 33) for most in (None, 1, 9)}
    assert plan == {(40, None): 9, (40, 1): 3, (40, 9): 9, (33, None): 6, (33, 1): 3, (33, 9): 6}


def test_a_seed_of_several_numbers_stays_what_it_is():
    """Or a run that goes on with a newer version would go on with other numbers."""
    found = []
    for numbers in ((0,), (1, 0, 2), (2, 0, 1)):
        set_seed(*numbers)
        found.append(torch.initial_seed())
    assert found == [7896617691693857887, 3879615588002201163, 7006255215521402662]
