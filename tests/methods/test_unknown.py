"""Unknown labels: what nobody knows decides nothing; and masked fine-tuning, to which hidden labels are unknown."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from test_equations import asymmetric, learning

from krt_core.config import Replay
from krt_core.data import open_both
from krt_core.data.pipeline import Batch
from krt_core.dpl import ThresholdRecord
from krt_core.errors import ConfigError
from krt_core.machine.distributed import World
from krt_core.memory import Ranked
from krt_core.methods import METHODS, statistics
from krt_core.options import options_of
from krt_core.protocol import make_protocol, session_view
from krt_core.runs.folder import Run
from krt_core.session import train

LAB = """
import dataclasses
import numpy as np
from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.losses import asymmetric_loss
from krt_core.methods import METHODS, Method

WAY = "true"

def read(root, split):
    whole = open_dataset(Data(dataset="coco", root=str(root)), split)
    unknown = np.random.default_rng(len(whole)).random(whole.labels.shape) < 0.3
    numbers = whole.labels.astype(float)
    if WAY == "minus":
        return dataclasses.replace(whole, labels=np.where(unknown, -1, numbers).astype(np.int64))
    if WAY == "nan":
        return dataclasses.replace(whole, labels=np.where(unknown, np.nan, numbers))
    if WAY == "absent":
        return dataclasses.replace(whole, labels=whole.labels & ~unknown)
    labels = whole.labels ^ unknown if WAY == "flipped" else whole.labels
    return dataclasses.replace(whole, labels=labels, unknown=unknown)

class Plain(Method):
    def loss(self, batch):
        own = self.context.session.columns
        logits = self.context.forward(batch.images).logits
        loss = self.scale * asymmetric_loss(logits[:, own], batch.labels[:, own])
        return {"loss": loss, "parts": {"classification": loss}, "logits": logits}

class Changed(METHODS["krt"]):
    pass

class Careful(METHODS["finetune"]):
    knows_unknown = True
"""


@pytest.fixture
def lab(home, monkeypatch):
    (home / "halflab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "halflab", raising=False)
    options_of.cache_clear()
    import halflab

    yield halflab
    options_of.cache_clear()


@pytest.fixture
def half(tiny, lab):
    """Experiments on the tiny set of which 30 % of the labels are unknown, said in one of four ways."""

    def make(way, **changes):
        lab.WAY = way
        return tiny(data__dataset="halflab:read", **changes)

    return make


def same(one: Run, two: Run) -> bool:
    """Weights, scores, thresholds, exemplars and numbers, to the last bit."""
    for t in range(2):
        first, second = one.model_state(t), two.model_state(t)
        if any(not torch.equal(first[name], second[name]) for name in first):
            return False
        a, b = one.session_state(t), two.session_state(t)
        scores = np.array_equal(one.scores(t).scores, two.scores(t).scores)
        if not scores or any(a[key] != b[key] for key in ("metrics", "memory", "method")):
            return False
    return one.forgetting() == two.forgetting() and one.data["inputs"] == two.data["inputs"]


REPLAY = {"replay__per_class": 2}
RUNS = [
    ("krt", REPLAY), ("krt", {"krt__target": "estimated", "krt__per_class": True}), ("pod", {}), ("finetune", {}),
    ("finetune", REPLAY), ("masked", REPLAY), ("joint", {}), ("ridge", {}), ("ridge", {"ridge__old": "soft", **REPLAY}),
    ("joint_ridge", {}), ("krt", {"data__validation": 0.3, "train__report": "best", "train__evaluate_every": 1}),
    ("finetune", {"train__head_start": "ridge"}), ("lwf", REPLAY), ("ewc", {}), ("er", REPLAY), ("icarl", REPLAY),
    ("derpp", REPLAY), ("cumulative", {}),
    ("rebll", {"rebll__relabel": 0.5, **REPLAY}),
    ("l3a", {"l3a__expand": 24, "l3a__penalty": 0.1}),
    ("kbk", REPLAY), ("multilane", REPLAY), ("agcn", REPLAY), ("csc", REPLAY), ("census", {}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "changes"), RUNS)
def test_the_value_under_an_unknown_label_decides_nothing(half, tmp_path, method, changes):
    made = {
        way: train(half(way, method=method, train__epochs=1, **changes), tmp_path / way, show="none")
        for way in ("true", "flipped", "minus", "absent")
    }
    assert same(made["true"], made["flipped"]) and same(made["true"], made["minus"])
    assert not same(made["true"], made["absent"])  # unknown is not absent
    labels = made["true"].scores(1).labels
    assert labels.dtype == np.int8 and {*labels.flat} == {-1, 0, 1}
    assert (labels > 0).any(axis=1).all()  # only images that show something are tested on
    assert made["absent"].scores(1).labels.dtype == bool
    said = (made["minus"].folder / "log.txt").read_text()
    assert "of 160 labels are unknown: they count in no loss and no metric" in said


def test_nan_is_unknown_too(half):
    train_set, test_set = open_both(half("nan").data)
    for way in ("true", "minus"):
        theirs, others = open_both(half(way).data)
        assert theirs.digest() == train_set.digest() and others.digest() == test_set.digest()
    assert (train_set.truth < 0).any() and open_both(half("absent").data)[0].digest() != train_set.digest()


def test_a_method_that_does_not_say_that_it_can_is_refused(half):
    for name in ("halflab:Plain", "halflab:Changed"):  # what KRT knows says nothing of a class that changes it
        with pytest.raises(ConfigError, match=rf"method {name}: \d+ training labels of .* Set knows_unknown = True"):
            train(half("true", method=name), show="none")
    assert train(half("absent", method="halflab:Plain", train__epochs=1), show="none").done
    assert train(half("true", method="halflab:Careful", train__epochs=1), show="none").done
    assert all(vars(kind)["knows_unknown"] for kind in METHODS.values())


@pytest.mark.parametrize("name", ["krt", "pod", "finetune", "masked", "joint"])
def test_the_loss_is_of_what_is_known(tiny, name):
    """No term, and no gradient, of an unknown pair of image and class."""
    method, context, batch = learning(tiny, name, **({"pseudo_labels": False} if name == "krt" else {}))
    labels = batch.labels.clone()
    labels[0, 0] = labels[1, 2] = labels[2, 3] = -1
    result = method.loss(Batch(batch.images, labels, batch.rows, batch.share))
    result["logits"].retain_grad()
    result["parts"]["classification"].backward()
    logits, known = result["logits"].detach(), labels >= 0
    torch.testing.assert_close(
        result["parts"]["classification"].detach(), 3 * asymmetric(logits[known], batch.labels[known])
    )
    assert (result["logits"].grad[~known] == 0).all() and (result["logits"].grad != 0).any()


def test_krt_restores_what_is_unknown_or_leaves_it_so(tiny):
    method, *_ = learning(tiny, "krt")
    method.records[1] = ThresholdRecord(0.7, 0.0, 0.0, 0, True)
    labels = torch.tensor([[-1.0, -1, -1, 1], [0, 0, 1, -1], [1, 1, 0, 0]])
    old = torch.logit(torch.tensor([[0.9, 0.2], [0.9, 0.2], [0.2, 0.2]]))
    assert method.restore(labels, old).tolist() == [[1, -1, -1, 1], [1, 0, 1, -1], [1, 1, 0, 0]]


# ---- masked fine-tuning ----


def test_masked_is_the_loss_on_what_is_shown(tiny):
    """Own classes of the session's images, and what an exemplar shows."""
    for name, options in (("masked", {}), ("finetune", {"old": "unknown"})):
        method, context, batch = learning(tiny, name, **options)
        assert method.hidden == -1
        truth = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]], bool)
        memory = Ranked(Replay(per_class=1), ranked=[[3], [2]], sessions=[0, 0])
        view = session_view(make_protocol(tuple("abcd"), 0, 2), truth, 1, memory, "session", method.hidden)
        assert view.rows.tolist() == [0, 1, 2, 3, 2] and view.labels.dtype == np.int8
        assert view.labels[:3, :2].tolist() == [[-1, -1]] * 3 and (view.labels[3:] == truth[[3, 2]]).all()
        images = torch.rand(5, 3, 32, 32)
        result = method.loss(Batch(images, torch.from_numpy(view.labels).float(), view.rows))
        logits, shown = context.model(images).logits, torch.from_numpy(truth[view.rows]).float()
        own = asymmetric(logits[:3, 2:], shown[:3, 2:]) + asymmetric(logits[3:], shown[3:])
        torch.testing.assert_close(result["loss"], 3 * own)
    assert learning(tiny, "finetune")[0].hidden == 0


def test_masked_training_is_that_of_a_loss_on_the_own_columns(tiny, tmp_path, lab):
    runs = [
        train(tiny(method=name, train__precision="float64", **changes), tmp_path / str(i), show="none")
        for i, (name, changes) in enumerate(
            [("masked", {}), ("finetune", {"finetune__old": "unknown"}), ("halflab:Plain", {}), ("finetune", {})]
        )
    ]
    scores = [run.scores(1).scores for run in runs]
    assert np.array_equal(scores[0], scores[1]) and np.allclose(scores[0], scores[2], atol=1e-9)
    assert np.abs(scores[0] - scores[3])[:, :2].max() > 0.01
    assert runs[0].folder.name != runs[1].folder.name and tiny(method="finetune", finetune__old="zero").hash() == (
        tiny(method="finetune").hash()
    )


# ---- ridge regression ----


@pytest.mark.parametrize("old", ["zero", "unknown", "class_mean"])
@pytest.mark.parametrize("replay", [0, 2])
def test_ridge_is_a_regression_for_each_class_on_what_is_known_of_it(tiny, old, replay):
    rng = np.random.default_rng(3)
    truth = (rng.random((60, 6)) < 0.4).astype(np.int8)
    truth[rng.random((60, 6)) < 0.2] = -1
    x, protocol = rng.normal(size=(60, 5)), make_protocol(tuple("abcdef"), 0, 2)
    memory = Ranked(Replay(per_class=replay, selection="random"))
    experiment = tiny(method="ridge", ridge__old=old, ridge__penalty=0.3)
    method = METHODS["ridge"](experiment.options, experiment)
    heads, seen, wanted = [], [], []
    for session in protocol.sessions:
        heads.append(torch.nn.Linear(5, 2).double())
        view = session_view(protocol, truth, session.index, memory if session.index else None, "session", method.hidden)
        batch = Batch(torch.zeros(0), torch.from_numpy(view.labels).float(), view.rows)
        context = SimpleNamespace(
            own=0,
            protocol=protocol, session=session, world=World(), log=lambda text: None,
            model=SimpleNamespace(width=5, heads=heads), embeddings=lambda b=batch: [(torch.from_numpy(x[b.rows]), b)],
        )  # fmt: skip
        targets = view.labels.astype(float)
        if old == "class_mean" and session.index:
            shares = [np.nanmean(np.concatenate([y[:, c] for y in wanted])) for c in range(session.start)]
            hidden = np.where(targets[:, : session.start] < 0, shares, targets[:, : session.start])
            targets[:, : session.start] = hidden
        targets[targets < 0] = np.nan
        with torch.no_grad():
            method.fit(context)
        before = np.nan if old == "unknown" else 0.0
        wanted = [np.hstack([y, np.full((len(y), 2), before)]) for y in wanted] + [targets]
        seen.append(x[view.rows])
        memory.update(session.index, view.rows[: view.own], truth[view.rows[: view.own]][:, session.columns], None, 0)
    every, targets = np.concatenate(seen), np.concatenate(wanted)
    W, b = method.statistics.solution(0.3)
    assert np.isnan(targets).any()
    for column in range(6):
        rows = ~np.isnan(targets[:, column])
        centred = every[rows] - every[rows].mean(axis=0)
        theirs = Ridge(alpha=0.3 * (centred**2).sum(axis=0).mean()).fit(every[rows], targets[rows, column])
        assert np.allclose(W[:, column], theirs.coef_, atol=1e-9) and np.isclose(float(b[column]), theirs.intercept_)


def test_sums_that_do_not_fit_are_named_before_they_are_made(tiny, monkeypatch):
    monkeypatch.setattr(statistics.psutil, "virtual_memory", lambda: SimpleNamespace(available=2e9))
    sums = statistics.Statistics(1000)
    sums.widen(300, shares=True)
    known = torch.from_numpy(np.random.default_rng(0).random((40, 300)) < 0.5)
    with pytest.raises(statistics.RunError, match=r"into 301 groups, .*: 4\.8 GB, where 2\.0 GB of memory are free"):
        sums.part(known)
    assert len(sums.groups) == 1
    sums.part(torch.ones(40, 300, dtype=torch.bool))
