"""What ridge regression takes hidden labels and images for, restated plainly: every image kept, one fit per class."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Theirs

from krt_core.data import open_dataset
from krt_core.data.images import load_image
from krt_core.data.pipeline import Batch
from krt_core.machine.distributed import World
from krt_core.methods.ridge import SLOPE, Ridge
from krt_core.methods.statistics import Statistics
from krt_core.model.network import build_network
from krt_core.options import RidgeOptions
from krt_core.protocol import Session
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.weights.convert import load_model

D, SIZES, PENALTY = 5, (2, 3, 1), 0.2


def sessions(seed=0):
    """Embeddings (m, D) and labels (m, C seen) of each session: a few old labels are shown, as exemplars show them."""
    rng, stop = np.random.default_rng(seed), 0
    for size in SIZES:
        start, stop = stop, stop + size
        x = rng.normal(size=(25, D)).astype(np.float32)
        y = (rng.random((25, stop)) < 0.4).astype(np.float32)
        y[:, :start][rng.random((25, start)) < 0.8] = -1  # hidden from the session
        y[np.arange(25), rng.integers(start, stop, 25)] = 1  # every image shows a class of its session
        yield x, y, start, stop


def ours(**options):
    """W (D, C) and b (C,) after each session, and the heads' weights (C, D)."""
    method = Ridge(
        RidgeOptions(penalty=PENALTY, **options), SimpleNamespace(train=SimpleNamespace(group=1, batch_size=1))
    )
    heads, found = [], []
    for index, (x, y, start, stop) in enumerate(sessions()):
        heads.append(torch.nn.Linear(D, stop - start).requires_grad_(False))
        y = np.where(y < 0, method.hidden, y)
        batch = Batch(torch.zeros(len(x)), torch.from_numpy(y), np.arange(len(x)))
        context = SimpleNamespace(
            model=SimpleNamespace(width=D, heads=heads), session=Session(index, start, stop), world=World(),
            embeddings=lambda x=x, batch=batch: iter([(torch.from_numpy(x), batch)]), log=lambda text: None,
            protocol=SimpleNamespace(classes=tuple("abcdef")), own=len(x),
        )  # fmt: skip
        method.fit(context)
        found.append([part.numpy() for part in method.statistics.solution(PENALTY)])
    return found, np.concatenate([head.weight.numpy() for head in heads])


def plainly(old, weights="equal"):
    """The same with all images of all sessions at hand; NaN is a label that takes part in nothing."""
    X, Y, omega, found = np.zeros((0, D)), np.zeros((0, 0)), np.zeros(0), []
    for x, y, start, stop in sessions():
        x, y = x.astype(float), y.astype(float)
        hidden = y[:, :start] < 0
        if start:
            W, b = found[-1]
            instead = {
                "zero": np.zeros(hidden.shape), "unknown": np.full(hidden.shape, np.nan),
                "soft": (x @ W + b).clip(0, 1),
                "class_mean": np.tile((omega @ Y) / omega.sum(), (len(x), 1)),
            }[old]  # fmt: skip
            y[:, :start] = np.where(hidden, instead, y[:, :start])
        o = np.ones(len(x))
        if weights == "rare":
            own = y[:, start:]
            rare = 1 / np.sqrt(own.sum(axis=0))
            o = own @ (rare / rare.mean()) / own.sum(axis=1)
        before = np.full((len(Y), stop - start), np.nan if old == "unknown" else 0.0)
        X, Y, omega = np.concatenate([X, x]), np.concatenate([np.hstack([Y, before]), y]), np.concatenate([omega, o])
        W, b = np.zeros((D, stop)), np.zeros(stop)
        for c in range(stop):
            rows = ~np.isnan(Y[:, c])
            centred = X[rows] - np.average(X[rows], axis=0, weights=omega[rows])
            unit = np.diag((centred * omega[rows, None]).T @ centred).mean()
            fit = Theirs(alpha=PENALTY * unit).fit(X[rows], Y[rows, c], sample_weight=omega[rows])
            W[:, c], b[c] = fit.coef_, fit.intercept_
        found.append((W, b))
    return found


@pytest.mark.parametrize("weights", ["equal", "rare"])
@pytest.mark.parametrize("old", ["zero", "soft", "class_mean", "unknown"])
def test_hidden_labels_and_rare_classes_as_they_are_said(old, weights):
    found, heads = ours(old=old, weights=weights)
    for (W, b), (w, c) in zip(found, plainly(old, weights), strict=True):
        assert np.abs(W - w).max() < 1e-8 and np.abs(b - c).max() < 1e-8
    assert np.abs(heads - SLOPE * found[-1][0].T).max() < 1e-5


def test_the_four_differ():
    last = [ours(old=old)[0][-1][0] for old in ("zero", "soft", "class_mean", "unknown")]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(last) for b in last[:i])


def test_the_random_layer_is_one_for_all_sessions(tiny):
    """relu(V · mean over the map) with V ~ N(0, 1/channels), fixed by the seed and the same however often it grows."""
    experiment = tiny(method="ridge", model__expand=256)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(build_network(experiment.model, "linear", 32))
    V = made[0].expansion.weight
    made[1].add_session(2)
    assert torch.equal(V, made[1].expansion.weight) and not V.requires_grad
    assert float(V.std()) == pytest.approx(V.shape[1] ** -0.5, rel=0.05) and abs(float(V.mean())) < 0.01
    maps = torch.rand(3, V.shape[1], 2, 2)
    wanted = (maps.mean(dim=(2, 3)) @ V.T).clamp(min=0)
    assert torch.allclose(made[0].embed(maps), wanted, atol=1e-6) and (wanted == 0).any()


@pytest.mark.parametrize("expand", [0, 24])
def test_a_run_is_one_regression_on_everything_it_was_shown(tiny, tmp_path, expand):
    """From the image files, through the network's own layers and scikit-learn, to the scores in the run folder."""
    run = train(tiny(method="ridge", ridge__penalty=0.05, model__expand=expand), tmp_path / "run", show="none")
    model, protocol = load_model(run, 1), run.protocol

    def embedded(data, rows):
        pixels = np.stack([load_image(data.path(row), 32) for row in rows])
        with torch.no_grad():
            pooled = model.backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).mean(dim=(2, 3))
            return (torch.relu(pooled @ model.expansion.weight.T) if expand else pooled).double().numpy()

    train_set, test_set = (open_dataset(run.experiment.data, split) for split in ("train", "test"))
    labels, X, Y = protocol.reorder(train_set.labels), [], []
    for session in protocol.sessions:  # an image is shown in each session that has a label of it
        rows = np.flatnonzero(labels[:, session.columns].any(axis=1))
        shown = np.zeros((len(rows), 4))
        shown[:, session.columns] = labels[rows][:, session.columns]
        X.append(embedded(train_set, rows))
        Y.append(shown)
    X, Y = np.concatenate(X), np.concatenate(Y)
    unit = np.diag((X - X.mean(0)).T @ (X - X.mean(0))).mean()
    fit = Theirs(alpha=0.05 * unit).fit(X, Y)
    scores = run.scores(1)
    rows = [list(test_set.ids).index(image) for image in scores.ids]
    wanted = 1 / (1 + np.exp(-SLOPE * (fit.predict(embedded(test_set, rows)) - 0.5)))
    assert np.abs(scores.scores - wanted).max() < 1e-3
    sums = Statistics.from_state(Run(run.folder).method_state(1)["sums"])
    assert float(sums.groups[0].n) == len(X) and sums.Q.shape == (X.shape[1], 4)
