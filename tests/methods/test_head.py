"""Methods with a head of their own: trained, resumed, in two processes, on a backbone that stands still."""

import pytest
import torch

from krt_core.errors import ConfigError
from krt_core.evaluate import Tester
from krt_core.launch import launch
from krt_core.runs.progress import Progress
from krt_core.session import train

NAMES = ("kbk", "multilane")
SMALL = {"multilane": {"multilane__selectors": 4, "multilane__adapt": True}, "kbk": {}}


def flat(state, place=""):
    """Name → tensor of a nested state."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= flat(value, f"{place}{key}.")
        elif isinstance(value, torch.Tensor):
            found[f"{place}{key}"] = value
    return found


def same(one, two, tolerance=0.0):
    for t in range(2):
        scores = (torch.from_numpy(run.scores(t).scores) for run in (one, two))
        torch.testing.assert_close(*scores, rtol=tolerance, atol=tolerance)
        a, b = (flat(run.method_state(t)) | run.model_state(t) for run in (one, two))
        assert a.keys() == b.keys() and len(a) > 20
        for name in a:
            torch.testing.assert_close(
                a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def interrupted(experiment, folder, at, monkeypatch):
    """The run, stopped after the epoch ``at`` (session, epoch) and started again."""
    original = Progress.epoch

    def stop(self, record):
        original(self, record)
        if (record["session"], record["epoch"]) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, folder, show="none")
    monkeypatch.setattr(Progress, "epoch", original)
    return train(experiment, folder, show="none")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [(0, 1), (1, 0), (1, 1)])
def test_resumed_it_ends_alike(tiny, tmp_path, monkeypatch, name, at):
    """In a session's middle, and (stopped in its first epoch, of which nothing is kept) at its start."""
    experiment = tiny(method=name, train__epochs=3, replay__per_class=2, **SMALL[name])
    whole = train(experiment, tmp_path / "whole", show="none")
    same(whole, interrupted(experiment, tmp_path / "parts", at, monkeypatch))


@pytest.mark.ddp
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_in_two_processes_as_in_one(tiny, tmp_path, name):
    changes = dict(train__precision="float64", train__batch_norm="frozen", replay__per_class=2, **SMALL[name])
    experiment = tiny(method=name, **changes)
    one = train(experiment, tmp_path / "one", show="none", device="cpu")
    two = launch(experiment, tmp_path / "two", 2, device="cpu")
    same(one, two, 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [
        {"model__freeze": "all", "train__augment": "none", "train__precision": "bfloat16"},
        {"model__freeze": "first", "train__augment": "none", "replay__budget": 6},
        {"train__precision": "bfloat16", "replay__per_class": 1},
    ],
)
def test_on_a_backbone_that_stands_still_or_learns(tiny, tmp_path, name, changes):
    run = train(tiny(method=name, **changes), tmp_path / "run", show="none")
    first, last = run.model_state(0), run.model_state(1)
    learned = any(not torch.equal(first[key], last[key]) for key in first if key.startswith("backbone."))
    assert run.done and learned == (name == "kbk" and "model__freeze" not in changes)
    assert all(e["loss"] > 0 for e in run.epochs)
    state = flat(run.method_state(1)["head"])
    before = flat(run.method_state(0)["head"])
    frozen = [key for key in before if key.startswith(("queries", "rows", "biases", "lanes.0"))]
    assert frozen and all(torch.equal(before[key], state[key]) for key in frozen)
    assert state.keys() > before.keys()


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(tiny, tmp_path, name):
    """On four colours in four corners, where chance is about 50."""
    experiment = tiny(method=name, train__epochs=25, train__augment="none", **SMALL[name])
    run = train(experiment, tmp_path / "run", show="none")
    assert run.epochs[24]["loss"] < 0.75 * run.epochs[0]["loss"]
    assert run.curve()[0] > 90 and run.curve()[1] > 70


@pytest.mark.parametrize("name", NAMES)
def test_the_best_epoch_is_reported_with_the_head_it_had(tiny, tmp_path, monkeypatch, name):
    """Chosen on held-out images: that epoch's head is tested, and training goes on from the last. The backbone stands
    still, so that nothing else differs."""
    better = Tester.better
    monkeypatch.setattr(Tester, "better", lambda self, best, *rest: best or better(self, None, *rest))  # the first
    held = dict(method=name, model__freeze="all", train__augment="none", data__validation=0.3, train__evaluate_every=1)
    best = train(tiny(train__report="best", **held), tmp_path / "best", show="none")
    plain = train(tiny(**held), tmp_path / "plain", show="none")
    assert best.session_state(0)["reported_epoch"] == 0 and best.epochs[1]["loss"] == plain.epochs[1]["loss"]
    mine, theirs = (flat(run.method_state(0)) for run in (best, plain))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert (best.scores(0).scores != plain.scores(0).scores).any()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_of_linear_heads_is_refused(tiny, name):
    for changes, words in (
        ({"train__head_start": "ridge"}, r"head_start=ridge is for"),
        ({"model__expand": 8}, "expand"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(tiny(method=name, **changes), show="none")
