"""A linear head that starts from the ridge regression of its session."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from krt_core.errors import ConfigError
from krt_core.machine.distributed import World
from krt_core.methods.ridge import PENALTIES, SLOPE
from krt_core.methods.start import start_from_ridge
from krt_core.session import train


def session_of(x, y, start):
    """A context with a head for each of the sessions before and from column ``start`` on."""
    first, second = nn.Linear(4, start), nn.Linear(4, y.shape[1] - start)
    batch = SimpleNamespace(weight=1, labels=torch.from_numpy(y).float(), rows=np.arange(len(y)))
    return SimpleNamespace(
        model=SimpleNamespace(kind="linear", width=4, heads=[first, second]), world=World(), log=lambda text: None,
        session=SimpleNamespace(start=start, stop=y.shape[1], columns=slice(start, y.shape[1])),
        protocol=SimpleNamespace(classes=tuple(f"class {c}" for c in range(y.shape[1]))),
        embeddings=lambda: iter([(torch.from_numpy(x), batch)]),
    )  # fmt: skip


def best_of(x, y, known):
    """Of each class scikit-learn's regression on the images that are known, with the penalty that leaves the least
    error, each image left out in turn."""

    def fitted(penalty, c, rows):
        unit = np.square(x[known[:, c]] - x[known[:, c]].mean(0)).sum(0).mean()
        return Ridge(alpha=penalty * unit).fit(x[rows], y[rows, c])

    def error(penalty):
        total = 0.0
        for c in range(y.shape[1]):
            rows = np.flatnonzero(known[:, c])
            left = [(y[i, c] - fitted(penalty, c, rows[rows != i]).predict(x[i : i + 1])[0]) ** 2 for i in rows]
            total += sum(left) / y[rows, c].var()
        return total

    best = min(PENALTIES, key=error)
    return [fitted(best, c, known[:, c]) for c in range(y.shape[1])]


@pytest.mark.parametrize("unknown", [False, True])
def test_the_new_classes_start_where_scikit_learn_ends_with_the_penalty_that_leaves_the_least_error(unknown):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 4)), (rng.random((30, 3)) < 0.4).astype(float)
    y[:, 1:] = (x[:, :2] + rng.normal(size=(30, 2)) > 0.5).astype(float)
    known = (rng.random((30, 3)) < 0.7) | (not unknown)
    context = session_of(x, np.where(known, y, -1), 1)
    first, second = context.model.heads
    before = first.weight.clone()
    start_from_ridge(context)
    theirs = best_of(x, y[:, 1:], known[:, 1:])
    assert torch.equal(first.weight, before)  # old classes go on from where they are
    assert np.allclose(second.weight.detach(), [SLOPE * fit.coef_ for fit in theirs], atol=1e-5)
    assert np.allclose(second.bias.detach(), [SLOPE * (fit.intercept_ - 0.5) for fit in theirs], atol=1e-5)


def test_a_class_with_one_image_has_no_say_in_the_penalty():
    """The other class starts where it starts without it."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(30, 4)), np.zeros((30, 3))
        y[:, 1], y[seed, 2] = x[:, 0] + rng.normal(size=30) > 0.5, 1
        both, alone = session_of(x, y, 1), session_of(x, y[:, :2], 1)
        start_from_ridge(both)
        start_from_ridge(alone)
        assert torch.allclose(both.model.heads[1].weight[:1], alone.model.heads[1].weight, atol=1e-6), seed


@pytest.mark.parametrize("method", ["joint", "pod", "finetune"])
def test_every_method_with_a_linear_head_may_start_so(tiny, tmp_path, method):
    run = train(tiny(method=method, train__head_start="ridge"), tmp_path / "run", show="none")
    starts = (run.folder / "log.txt").read_text().count("the head starts from ridge regression")
    assert starts == (1 if method == "joint" else len(run.protocol.sessions))


def test_another_head_is_named(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.head_start=ridge is for linear heads"):
        train(tiny(method="krt", train__head_start="ridge"), tmp_path / "run", show="none")
