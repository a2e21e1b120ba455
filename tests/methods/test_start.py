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


def test_the_new_classes_start_where_scikit_learn_ends_with_the_penalty_that_leaves_the_least_error():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), (rng.random((30, 3)) < 0.4).astype(float)
    y[:, 1:] = (x[:, :2] + rng.normal(size=(30, 2)) > 0.5).astype(float)
    first, second = nn.Linear(4, 1), nn.Linear(4, 2)
    before = first.weight.clone()
    batch = SimpleNamespace(weight=1, labels=torch.from_numpy(y).float())
    context = SimpleNamespace(
        model=SimpleNamespace(kind="linear", width=4, heads=[first, second]), world=World(), log=lambda text: None,
        session=SimpleNamespace(start=1, stop=3, columns=slice(1, 3)),
        embeddings=lambda: iter([(torch.from_numpy(x), batch)]),
    )  # fmt: skip
    start_from_ridge(context)
    own, unit = y[:, 1:], np.square(x - x.mean(0)).sum(0).mean()

    def error(penalty):
        left_out = np.zeros(2)
        for i in range(30):
            others = np.arange(30) != i
            left_out += (own[i] - Ridge(alpha=penalty * unit).fit(x[others], own[others]).predict(x[i : i + 1])[0]) ** 2
        return (left_out / own.var(axis=0)).sum()

    best = min(PENALTIES, key=error)
    theirs = Ridge(alpha=best * unit).fit(x, own)
    assert torch.equal(first.weight, before)  # old classes go on from where they are
    assert np.allclose(second.weight.detach(), SLOPE * theirs.coef_, atol=1e-5)
    assert np.allclose(second.bias.detach(), SLOPE * (theirs.intercept_ - 0.5), atol=1e-5)


@pytest.mark.parametrize("method", ["joint", "pod", "finetune"])
def test_every_method_with_a_linear_head_may_start_so(tiny, tmp_path, method):
    run = train(tiny(method=method, train__head_start="ridge"), tmp_path / "run", show="none")
    starts = (run.folder / "log.txt").read_text().count("the head starts from ridge regression")
    assert starts == (1 if method == "joint" else len(run.protocol.sessions))


def test_another_head_is_named(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.head_start=ridge is for linear heads"):
        train(tiny(method="krt", train__head_start="ridge"), tmp_path / "run", show="none")
