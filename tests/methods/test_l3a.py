"""L3A against its recursive least squares, written out plainly: R and W updated session by session, nothing kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from krt_core.config import load_experiment
from krt_core.data.pipeline import Batch
from krt_core.errors import ConfigError
from krt_core.launch import launch
from krt_core.machine.distributed import World
from krt_core.methods.l3a import L3A
from krt_core.methods.ridge import SLOPE
from krt_core.options import L3AOptions
from krt_core.protocol import Session
from krt_core.session import train
from krt_core.weights.convert import load_model, network_of

D, SIZES, PENALTY = 7, (2, 3, 2), 3.0


def sessions():
    """Embeddings (m, D) ≥ 0 and labels (m, C seen) of each session, -1 where hidden; exemplars show a few old ones."""
    rng, stop, directions = np.random.default_rng(0), 0, np.random.default_rng(1).random((sum(SIZES), D))
    for size in SIZES:
        start, stop = stop, stop + size
        y = (rng.random((40, stop)) < 0.35).astype(np.float32)
        y[np.arange(40), rng.integers(start, stop, 40)] = 1
        x = (y @ directions[:stop] + 0.1 * rng.normal(size=(40, D))).clip(0).astype(np.float32)
        y[:, :start][rng.random((40, start)) < 0.9] = -1
        yield x, y, start, stop


def ours(**options):
    """W (D, C) after each session, and the heads' weights (C, D) and biases."""
    experiment = SimpleNamespace(train=SimpleNamespace(group=1, batch_size=1))
    method = L3A(L3AOptions(**{"penalty": PENALTY, **options}), experiment)
    heads, found = [], []
    for index, (x, y, start, stop) in enumerate(sessions()):
        heads.append(torch.nn.Linear(D, stop - start).requires_grad_(False))
        batch = Batch(torch.zeros(len(x)), torch.from_numpy(np.where(y < 0, method.hidden, y)), np.arange(len(x)))
        context = SimpleNamespace(
            model=SimpleNamespace(width=D, heads=heads), session=Session(index, start, stop), world=World(),
            embeddings=lambda x=x, batch=batch: iter([(torch.from_numpy(x), batch)]), log=lambda text: None,
            protocol=SimpleNamespace(classes=tuple("abcdefg")), own=40,
        )  # fmt: skip
        method.fit(context)
        again = L3A(method.options, experiment)  # as from a file
        again.load_state(method.state())
        method = again
        found.append(method.solution(method.statistics)[0].numpy())
    return found, torch.cat([head.weight for head in heads]).numpy(), torch.cat([head.bias for head in heads]).numpy()


def recursively(old="pseudo", weights="rare", threshold=0.7):
    """The paper's update, with Woodbury's identity: R ← R − RΦᵀ(Ω⁻¹ + ΦRΦᵀ)⁻¹ΦR, W ← [W 0] + RΦᵀΩ(Y − Φ[W 0]). Also how
    many pseudo labels there were."""
    R, W, found, restored = np.eye(D) / PENALTY, np.zeros((D, 0)), [], 0
    for x, y, start, stop in sessions():
        phi, y = x.astype(float), y.astype(float)
        said = (1 / (1 + np.exp(-phi @ W)) > threshold) * (old == "pseudo") * 1.0
        hidden = y[:, :start] < 0
        y[:, :start] = np.where(hidden, said, y[:, :start])
        restored += int(said[hidden].sum())
        omega = np.ones(len(x))
        if weights == "rare":
            n = y.sum(axis=0)
            v = np.array([1 / np.sqrt(count) if count else np.nan for count in n])
            v /= np.nanmean(v)
            omega = np.array([np.mean(v[row > 0]) for row in y])
        R = R - R @ phi.T @ np.linalg.inv(np.diag(1 / omega) + phi @ R @ phi.T) @ phi @ R
        W = np.hstack([W, np.zeros((D, stop - start))])
        W = W + R @ phi.T @ np.diag(omega) @ (y - phi @ W)
        found.append(W)
    return found, restored


@pytest.mark.parametrize("weights", ["rare", "equal"])
@pytest.mark.parametrize("old", ["pseudo", "zero"])
def test_sums_give_what_recursive_least_squares_gives(old, weights):
    found, heads, biases = ours(old=old, weights=weights)
    wanted, restored = recursively(old, weights)
    for one, two in zip(found, wanted, strict=True):
        assert np.abs(one - two).max() < 1e-8
    assert (restored > 10) == (old == "pseudo")
    assert np.abs(heads - SLOPE * found[-1].T).max() < 1e-5 and np.allclose(biases, -SLOPE / 2)


def test_the_four_differ_and_so_do_thresholds():
    found = [recursively(old, weights)[0][-1] for old in ("pseudo", "zero") for weights in ("rare", "equal")]
    found.append(recursively(threshold=0.6)[0][-1])
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(found) for b in found[:i])
    assert np.abs(ours(threshold=0.6)[0][-1] - found[-1]).max() < 1e-8


SMALL = {"method": "l3a", "l3a.expand": 48, "l3a.penalty": 0.1}


@pytest.mark.parametrize("changes", [{}, {"model.freeze": "first"}, {"replay.per_class": 2}])
def test_a_run_learns_and_goes_on_where_it_was(tiny, tmp_path, changes):
    experiment = tiny(**SMALL, **changes)
    whole, part = (train(experiment, tmp_path / name, show="none") for name in ("whole", "part"))
    (part.folder / "DONE").unlink()
    (part.folder / "session_01" / "state.json").unlink()
    again = train(experiment, tmp_path / "part", show="none")
    assert np.array_equal(whole.scores(1).scores, again.scores(1).scores)
    first, second = whole.model_state(1), again.model_state(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.summary["last_mAP"] > 60 and whole.session_state(1)["method_bytes"] > 8 * 48**2
    assert [line["epoch"] for line in whole.epochs if "loss" in line] == ([0, 1] if "model.freeze" in changes else [])


@pytest.mark.slow
def test_a_run_in_two_processes_is_that_in_one(tiny, tmp_path):
    experiment = tiny(**SMALL, **{"train.precision": "float64"})
    one = train(experiment, tmp_path / "one", show="none", device="cpu")
    two = launch(experiment, tmp_path / "two", 2, device="cpu")
    for t in (0, 1):
        np.testing.assert_allclose(one.scores(t).scores, two.scores(t).scores, rtol=1e-6, atol=1e-6)
        for name, tensor in one.model_state(t).items():
            torch.testing.assert_close(tensor, two.model_state(t)[name], rtol=1e-6, atol=1e-7)


def test_the_random_layer_is_as_wide_as_asked_for(tiny, tmp_path):
    plain = network_of(tiny(**{**SMALL, "l3a.expand": 0}))
    assert network_of(tiny(**SMALL)).width == 48 and plain.width == plain.backbone.channels
    assert network_of(tiny(**SMALL, **{"model.expand": 20})).width == 20
    assert network_of(load_experiment("digits_demo", ["method=l3a"])).width == 4096
    run = train(tiny(**SMALL), tmp_path / "run", show="none")
    assert load_model(run, 1).width == 48
    assert network_of(tiny()).kind == "ica" and network_of(tiny(method="ridge")).width == plain.width


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("l3a.penalty", 0, "more than 0"), ("l3a.threshold", 1.2, "at most 1"), ("l3a.expand", -1, "at least 0"),
     ("l3a.head", "ica", "must be one of linear"), ("l3a.old", "soft", "must be one of pseudo, zero")],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(tiny, key, value, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**{"method": "l3a", key: value})
