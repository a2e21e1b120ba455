"""CENSUS against ridge regression on all images so far with all labels that were shown of them, each image once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from krt_core.data import open_dataset
from krt_core.data.images import load_image
from krt_core.data.pipeline import Batch
from krt_core.machine.distributed import World
from krt_core.methods.census import Census, name_hash
from krt_core.options import CensusOptions
from krt_core.protocol import Session
from krt_core.session import train
from krt_core.weights.convert import load_model

D, SIZES, PENALTY, N = 6, (2, 3, 2), 0.2, 90


def world(unknown=0.0):
    """Embeddings (N, D) and labels (N, C) of everything, -1 where unknown."""
    rng = np.random.default_rng(0)
    y = (rng.random((N, sum(SIZES))) < 0.3).astype(float)
    y[rng.random(y.shape) < unknown] = -1
    return (np.abs(y) @ rng.normal(size=(sum(SIZES), D)) + rng.normal(size=(N, D))).astype(np.float32), y


def sessions(y):
    """Rows, labels as shown (old classes 0) and the session, of every session; images come in each that they show."""
    stop = 0
    for index, size in enumerate(SIZES):
        start, stop = stop, stop + size
        rows = np.flatnonzero((y[:, start:stop] > 0).any(1))
        yield rows, np.hstack([np.zeros((len(rows), start)), y[rows, start:stop]]), Session(index, start, stop)


def ours(x, y, **options):
    """W (D, C) and b (C,) after each session; the method is stored and read again between them."""
    experiment = SimpleNamespace(train=SimpleNamespace(group=1, batch_size=1))
    method, heads, found = Census(CensusOptions(penalty=PENALTY, **options), experiment), [], []
    for rows, shown, session in sessions(y):
        heads.append(torch.nn.Linear(D, session.stop - session.start).requires_grad_(False))
        batches = [
            (
                torch.from_numpy(x[part]),
                Batch(torch.zeros(len(part)), torch.from_numpy(shown[np.isin(rows, part)]), part),
            )
            for part in np.array_split(rows, 2)
        ]
        context = SimpleNamespace(
            model=SimpleNamespace(width=D, heads=heads), session=session, world=World(), log=lambda text: None,
            embeddings=lambda batches=batches: iter(batches), ids=[f"photo {i}" for i in range(N)],
            protocol=SimpleNamespace(classes=tuple("abcdefg")), own=N,
        )  # fmt: skip
        method.fit(context)
        again = Census(method.options, experiment)
        again.load_state(method.state())
        method = again
        found.append([tensor.numpy() for tensor in method.solution(method.statistics)])
    return found, method


def union(x, y, columns, stop):
    """scikit-learn's coefficients of ``columns`` on all images that a session up to class ``stop`` has, each once. An
    image counts for a class unless it was in the class's session with an unknown label."""
    came = np.zeros(len(x), bool)
    hidden = np.zeros((len(x), stop), bool)
    for rows, shown, session in sessions(y):
        if session.stop <= stop:
            came[rows] = True
            hidden[rows, session.start : session.stop] = shown[:, session.start :] < 0
    found = []
    for c in columns:
        use = came & ~hidden[:, c]
        centred = x[use].astype(float) - x[use].astype(float).mean(0)
        alpha = PENALTY * (centred**2).sum(0).mean()
        one = Ridge(alpha=alpha).fit(x[use].astype(float), (y[use, c] > 0).astype(float))
        found.append((one.coef_, one.intercept_))
    return np.stack([w for w, _ in found], 1), np.array([b for _, b in found])


@pytest.mark.parametrize("unknown", [0.0, 0.15])
def test_each_session_ends_at_one_regression_on_every_image_with_every_label_shown(unknown):
    x, y = world(unknown)
    found, method = ours(x, y)
    came = set()
    for (W, b), (rows, _, session) in zip(found, sessions(y), strict=True):
        came |= set(rows.tolist())
        wanted, intercept = union(x, y, range(session.stop), session.stop)
        assert np.abs(W - wanted).max() < 1e-8 and np.abs(b - intercept).max() < 1e-8
    assert method.statistics.groups[0].n == len(came) < sum(len(rows) for rows, *_ in sessions(y))
    assert sorted(name_hash(f"photo {row}") for row in came) == method.counted.tolist()


def test_counted_in_each_session_it_is_cumulative_ridge_regression():
    x, y = world()
    (*_, (W, b)), method = ours(x, y, once=False)
    every = np.concatenate([x[rows] for rows, *_ in sessions(y)]).astype(float)
    labels = np.concatenate([np.pad(shown, ((0, 0), (0, 7 - shown.shape[1]))) for _, shown, _ in sessions(y)])
    centred = every - every.mean(0)
    theirs = Ridge(alpha=PENALTY * (centred**2).sum(0).mean()).fit(every, labels)
    assert np.abs(W - theirs.coef_.T).max() < 1e-8 and np.abs(b - theirs.intercept_).max() < 1e-8
    assert len(method.counted) == 0


FROZEN = {"model__freeze": "all", "train__augment": "none"}


@pytest.mark.parametrize("features", [True, False])
def test_an_image_is_worth_its_whole_and_its_best_part(tiny, home, features):
    experiment = tiny(method="census", census__parts=0.5, census__cells=2, data__features=features, **FROZEN)
    run = train(experiment, home / "run", show="none")
    model = load_model(run, 1)
    test = open_dataset(experiment.data, "test")
    pixels = np.stack([load_image(test.path(row), 32) for row in range(len(test))])
    with torch.inference_mode():
        maps = model.features(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        W = torch.cat([head.weight for head in model.heads])
        b = torch.cat([head.bias for head in model.heads])
        whole = maps.mean((2, 3)) @ W.T + b
        cells = torch.stack([F.adaptive_avg_pool2d(maps, 2)[:, :, i, j] @ W.T + b for i in (0, 1) for j in (0, 1)])
        wanted = torch.sigmoid((whole + 0.5 * cells.amax(0)) / 1.5).numpy()
    assert np.abs(run.scores(1).scores - wanted).max() < 1e-5


def test_what_stays_of_the_images_is_the_hashes_of_their_names(tiny, home):
    run = train(tiny(method="census", **FROZEN), home / "run", show="none")
    data = open_dataset(run.experiment.data, "train")
    labels = run.protocol.reorder(data.truth)
    for session in range(2):
        names = data.ids[run.protocol.shown_images(labels, session)]
        assert run.method_state(session)["counted"].tolist() == sorted(map(name_hash, names.tolist()))
    assert len(run.protocol.shown_images(labels, 0)) < len(data)


def test_without_parts_means_are_all_that_is_kept(tiny, home):
    run = train(tiny(method="census", census__parts=0, **FROZEN), home / "run", show="none")
    assert "features: means of" in (run.folder / "log.txt").read_text(encoding="utf-8")
