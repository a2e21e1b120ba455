"""Ridge regression from sums: what scikit-learn finds with all images at hand, session by session and without them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from krt_core.config import load_experiment
from krt_core.data import open_dataset
from krt_core.lab.report import runs_table, summary_table
from krt_core.lab.report.html import html_report
from krt_core.machine.distributed import World
from krt_core.methods import method_class
from krt_core.methods.ridge import PENALTIES, Learned
from krt_core.methods.statistics import Statistics
from krt_core.options import RidgeOptions
from krt_core.runs.files import read_tensors
from krt_core.session import train
from krt_core.weights.convert import load_model

D = 6


def images(count, classes, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, D)) + rng.normal(size=D)
    return x, (rng.random((count, classes)) < 0.4).astype(float)


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def test_sessions_add_up_to_one_regression_on_everything():
    sums, seen, wanted = Statistics(D), [], np.zeros((0, 0))
    for t, (count, classes) in enumerate([(30, 2), (17, 3), (40, 1)]):
        x, own = images(count, classes, t)
        old = wanted.shape[1]
        wanted = np.block([[wanted, np.zeros((len(wanted), classes))], [np.zeros((count, old)), own]])
        seen.append(x)
        sums.widen(classes, shares=True)
        labels = np.hstack([np.zeros((count, old)), own])
        sums.add(*tensors(x, labels, np.ones(labels.shape, bool), np.ones(count)))
    assert len(sums.groups) == 1
    every = np.concatenate(seen)
    W, b = sums.solution(0.3)
    unit = np.diag((every - every.mean(0)).T @ (every - every.mean(0))).mean()
    theirs = Ridge(alpha=0.3 * unit).fit(every, wanted)
    assert np.abs(W.numpy() - theirs.coef_.T).max() < 1e-8 and np.abs(b.numpy() - theirs.intercept_).max() < 1e-8


def test_weights_are_those_of_scikit_learn():
    (x, y), weights = images(25, 2, 5), np.random.default_rng(1).random(25)
    sums = Statistics(D)
    sums.widen(2, shares=True)
    sums.add(*tensors(x, y, np.ones(y.shape, bool), weights))
    W, b = sums.solution(0.1)
    unit = float(sums.solve([0, 1]).unit)
    theirs = Ridge(alpha=0.1 * unit).fit(x, y, sample_weight=weights)
    assert np.abs(W.numpy() - theirs.coef_.T).max() < 1e-8 and np.abs(b.numpy() - theirs.intercept_).max() < 1e-8


def test_leaving_each_image_out_in_turn_needs_no_second_fit():
    (x, y), weights = images(15, 2, 3), np.random.default_rng(0).random(15) + 0.5
    sums = Statistics(D)
    sums.widen(2, shares=True)
    sums.add(*tensors(x, y, np.ones(y.shape, bool), weights))
    solver = sums.solve([0, 1])
    penalties = [0.01, 1.0]
    found = solver.press(*tensors(x, y, weights), penalties).numpy()
    for penalty, errors in zip(penalties, found, strict=True):
        wanted = np.zeros(2)
        for i in range(15):
            others = np.arange(15) != i
            fit = Ridge(alpha=penalty * float(solver.unit)).fit(x[others], y[others], sample_weight=weights[others])
            wanted += weights[i] * (y[i] - fit.predict(x[i : i + 1])[0]) ** 2
        assert np.allclose(errors, wanted, rtol=1e-9)


@pytest.mark.parametrize("again", [False, True])
def test_a_model_as_if_some_images_had_not_been_learned(again):
    """By scikit-learn without them; also where an earlier session had counted them, as not showing these classes."""
    x, y = images(20, 2, 3)
    sums, rows = Statistics(D), np.arange(100, 120)
    sums.widen(2, shares=True)
    every = tensors(x, y, np.ones(y.shape, bool), np.ones(20))
    repeated = torch.arange(20) < (8 if again else 0)
    if again:
        sums.add(*(part[:8] for part in (every[0], 0 * every[1], *every[2:])))
    sums.add(*every, repeated)
    network = SimpleNamespace(heads=torch.nn.ModuleList([torch.nn.Linear(D, 1), torch.nn.Linear(D, 1)]))
    method = method_class("ridge")(RidgeOptions(penalty=0.1), load_experiment("digits_demo"))
    method.context, method.statistics, method.penalty = SimpleNamespace(model=network, world=World()), sums, 0.1
    assert method.without(rows[:5]) is None  # it does not have them any more
    method.learned = Learned(*every, rows)
    before = {key: value.clone() for key, value in network.heads.state_dict().items()}
    left = np.array([101, 103, 110])
    others = ~np.isin(rows, left)
    with method.without(left):
        unit = np.diag((x[others] - x[others].mean(0)).T @ (x[others] - x[others].mean(0))).mean()
        theirs = Ridge(alpha=0.1 * unit).fit(x[others], y[others])
        found = torch.cat([head.weight for head in network.heads]).detach().numpy()
        np.testing.assert_allclose(found, 8 * theirs.coef_, atol=1e-5)
        offsets = torch.cat([head.bias for head in network.heads]).detach().numpy()
        np.testing.assert_allclose(offsets, 8 * (theirs.intercept_ - 0.5), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in network.heads.state_dict().items())


def test_what_is_not_known_takes_part_in_nothing():
    x, y = images(40, 3, 7)
    known = np.random.default_rng(2).random(y.shape) < 0.7
    known[:, 0] = True
    sums = Statistics(D)
    sums.widen(3, shares=True)
    sums.part(torch.from_numpy(known))
    sums.add(*tensors(x, y, known, np.ones(40)))
    assert sorted(column for group in sums.groups for column in group.columns) == [0, 1, 2]
    W, b = sums.solution(0.5)
    for column in range(3):
        rows = known[:, column]
        unit = float(sums.solve([column]).unit)
        theirs = Ridge(alpha=0.5 * unit).fit(x[rows], y[rows, column])
        assert np.allclose(W[:, column], theirs.coef_, atol=1e-8) and np.isclose(float(b[column]), theirs.intercept_)


def test_groups_stay_together_until_they_differ():
    sums = Statistics(D)
    sums.widen(2, shares=True)
    x, y = images(5, 2, 0)
    sums.add(*tensors(x, y, np.ones((5, 2), bool), np.ones(5)))
    sums.widen(2, shares=False)  # of the images so far these are unknown
    assert [group.columns for group in sums.groups] == [[0, 1], [2, 3]] and not float(sums.groups[1].n)
    known = np.ones((5, 4), bool)
    known[2, 1] = False
    sums.part(torch.from_numpy(known))
    assert sorted(group.columns for group in sums.groups) == [[0], [1], [2, 3]]
    assert Statistics.from_state(sums.state()).together([1, 2, 3]) == sums.together([1, 2, 3])


@pytest.mark.parametrize("old", ["zero", "soft", "class_mean", "unknown"])
def test_a_run_learns_in_closed_form_and_goes_on(tiny, tmp_path, old):
    experiment = tiny(method="ridge", ridge__old=old)
    whole = train(experiment, tmp_path / "whole", show="none")
    part = train(experiment, tmp_path / "part", show="none")
    (part.folder / "DONE").unlink()
    (part.folder / "session_01" / "state.json").unlink()
    again = train(experiment, tmp_path / "part", show="none")
    for session in (0, 1):
        first, second = whole.model_state(session), again.model_state(session)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert np.array_equal(whole.scores(1).scores, again.scores(1).scores)
    assert whole.method_state(1)["penalty"] in PENALTIES
    assert whole.summary["last_mAP"] > 60  # colours are easy
    later = read_tensors(whole.session_folder(1) / "model.safetensors", "")
    assert not any(name.startswith("backbone.") for name in later)  # it is in the first session's file
    assert load_model(whole, 1).sessions == 2


def test_the_backbone_may_learn_in_the_first_session(tiny, tmp_path):
    """As in L3A: one training, then closed form."""
    run = train(tiny(method="ridge", model__freeze="first"), tmp_path / "run", show="none")
    still = train(tiny(method="ridge"), tmp_path / "still", show="none")
    first, second = run.model_state(0), run.model_state(1)
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("backbone."))
    assert any(not torch.equal(first[name], tensor) for name, tensor in still.model_state(0).items())
    assert [line["session"] for line in run.epochs] == [0, 0, 0, 1]  # two epochs, then closed form twice


def test_joint_ridge_sees_everything_and_random_features_widen(tiny, tmp_path):
    joint = train(tiny(method="joint_ridge", model__expand=64), tmp_path / "joint", show="none")
    assert joint.model_state(1)["heads.0.weight"].shape == (4, 64)
    assert joint.summary["forgetting"] == 0


@pytest.mark.parametrize(
    "how", [{"method": "ridge"}, {"method": "finetune", "train__head_start": "ridge", "train__epochs": 1}]
)
@pytest.mark.parametrize(
    ("rare", "words"),
    [([10], "of ant there is one image; the penalty is chosen by the other classes"),
     ([10, 20], "of ant, bee there is one image; the penalty is chosen by no class of this session")],
)  # fmt: skip
def test_a_class_with_one_image_is_named_and_left_out_of_the_choice(tiny, tmp_path, coco_root, how, rare, words):
    path = coco_root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    for category in rare:
        there = [a for a in content["annotations"] if a["category_id"] == category]
        content["annotations"] = [a for a in content["annotations"] if a not in there[1:]]
    path.write_text(json.dumps(content))
    run = train(tiny(**how), tmp_path / "run", show="none")
    assert words in (run.folder / "log.txt").read_text()


def test_the_bytes_of_sums_stand_beside_those_of_exemplars(tiny, tmp_path):
    """In state.json, in DONE and in tables."""
    ridge = train(tiny(method="ridge"), tmp_path / "ridge", show="none")
    replay = train(tiny(method="finetune", replay__per_class=2), tmp_path / "replay", show="none")
    sums = read_tensors(ridge.session_folder(1) / "method.safetensors", "")
    state, stored = ridge.session_state(1), replay.session_state(1)
    assert state["exemplar_bytes"] == 0 and state["method_bytes"] == sum(tensor.nbytes for tensor in sums.values())
    kept = {image for ids in stored["exemplar_ids"] for image in ids}
    data = open_dataset(replay.experiment.data, "train")
    sizes = [data.path(row).stat().st_size for row, image in enumerate(data.ids) if image in kept]
    assert stored["exemplar_bytes"] == sum(sizes) > 0 == stored["method_bytes"]
    for run in (ridge, replay):
        assert all(run.summary[key] == run.session_state(1)[key] for key in ("exemplar_bytes", "method_bytes"))
    table = runs_table([ridge, replay])
    assert table.method_bytes.tolist() == [state["method_bytes"], 0] and table.backbone.tolist() == [
        "frozen",
        "trained",
    ]
    said = summary_table(table).set_index("method").stored
    assert "of state" in said["ridge"] and said["finetune, 2 exemplars per class"].startswith("8 images (")
    assert "MB of state" in html_report([ridge, replay])
