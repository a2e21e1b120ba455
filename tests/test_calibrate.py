"""Probabilities and thresholds from images held out: what is known is found, AP stays, and a run carries them on."""

import doctest
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_coco
from interrupted import stopped_after
from sklearn.linear_model import LogisticRegression

import krt_core.calibrate.thresholds as thresholds_module
from krt_core.calibrate import Calibrating, aimed_threshold, fit
from krt_core.calibrate.sessions import moments, straight
from krt_core.config import Calibrate, load_experiment
from krt_core.errors import ConfigError, RunError
from krt_core.machine.distributed import World
from krt_core.methods.statistics import Statistics
from krt_core.metrics import average_precision, calibration_error, calibration_errors
from krt_core.protocol import make_protocol
from krt_core.runs.calibration import Calibration, along, logit, sigmoid
from krt_core.runs.folder import Run
from krt_core.session import train

SLOPES, OFFSETS = np.array([2.0, 0.5, 1.0]), np.array([-3.0, 1.0, -1.0])


def drawn(count=20000, seed=0):
    """Scores of which the calibrated logit is known, and labels drawn by it."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (count, 3))
    return sigmoid(z), rng.random((count, 3)) < sigmoid(SLOPES * z + OFFSETS)


# ---- fitting ----


def test_doctests():
    assert doctest.testmod(thresholds_module).failed == 0


def test_a_known_logistic_is_found_again():
    scores, labels = drawn(seed=1)
    found = fit(scores, labels).calibration
    np.testing.assert_allclose(found.a, SLOPES, rtol=0.05)
    np.testing.assert_allclose(found.b, OFFSETS, atol=0.08)
    assert found.fitted.all() and found.images == 20000 and (found.shown == labels.sum(axis=0)).all()


def test_platt_is_logistic_regression_on_his_targets():
    """scikit-learn knows whole labels alone: an image with target t is two, of weights t and 1 − t."""
    scores, labels = drawn(60, 1)
    found = fit(scores, labels).calibration
    for c in range(3):
        y = labels[:, c]
        t = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
        z = np.tile(logit(scores[:, [c]]), (2, 1))
        theirs = LogisticRegression(C=1e12, tol=1e-12, max_iter=10000)
        theirs.fit(z, np.repeat([1, 0], 60), sample_weight=np.concatenate([t, 1 - t]))
        assert found.a[c] == pytest.approx(theirs.coef_[0, 0], rel=1e-3)
        assert found.b[c] == pytest.approx(theirs.intercept_[0], abs=1e-3)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_the_error_falls_on_other_images_and_ap_stays(kind):
    calibration = fit(*drawn(3000, 1), kind).calibration
    scores, labels = drawn(3000, 2)
    p = calibration.probabilities(scores)
    assert p.dtype == np.float32 and calibration_errors(scores, labels).mean() > 10
    assert calibration_errors(p, labels).mean() < 3 and calibration_error(p, labels) < 2
    # Where a curve is nearly level, float32 may tie two of them.
    np.testing.assert_allclose(average_precision(p, labels), average_precision(scores, labels), atol=1e-3)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_the_ranking_stays_even_where_labels_contradict_it(kind):
    rng = np.random.default_rng(0)
    scores = rng.random((80, 2))
    labels = np.stack([rng.random(80) < 1 - scores[:, 0], rng.random(80) < 0.3], axis=1)  # falling, and no relation
    p = fit(scores, labels, kind).calibration.logits(logit(np.sort(scores, axis=0)))
    assert (np.diff(p, axis=0) > 0).all()


def test_isotonic_finds_what_no_line_does():
    rng = np.random.default_rng(0)
    z = rng.uniform(-4, 4, (20000, 1))
    labels = rng.random((20000, 1)) < np.where(z < 0, 0.1, 0.7)
    found = {
        kind: fit(sigmoid(z), labels, kind).calibration.probabilities(sigmoid(z)) for kind in ("platt", "isotonic")
    }
    assert calibration_error(found["isotonic"], labels) < 2 < calibration_error(found["platt"], labels) / 2


def test_labels_that_nobody_knows_take_no_part():
    scores, labels = drawn(2000)
    known = np.random.default_rng(1).random(labels.shape) < 0.5
    hidden = fit(scores, np.where(known, labels, -1).astype(np.int8)).calibration
    for c in range(3):
        rows = known[:, c]
        alone = fit(scores[rows][:, [c]], labels[rows][:, [c]]).calibration
        assert (hidden.a[c], hidden.b[c], hidden.shown[c]) == (alone.a[0], alone.b[0], alone.shown[0])


def test_classes_with_few_images_share_a_calibration():
    scores, labels = drawn(200)
    labels[:, 0] &= np.cumsum(labels[:, 0]) <= 3
    labels[:, 1] &= np.cumsum(labels[:, 1]) <= 2
    labels[:, 2] &= np.cumsum(labels[:, 2]) <= 30
    found = fit(scores, labels)
    assert found.few.tolist() == [True, True, False] and found.among.all() and found.calibration.fitted.all()
    c = found.calibration
    assert c.a[0] == c.a[1] != c.a[2] and c.b[0] == c.b[1]
    pooled = fit(scores.reshape(-1, 1), labels.reshape(-1, 1)).calibration
    assert (c.a[0], c.b[0]) == pytest.approx((pooled.a[0], pooled.b[0]))


def test_a_class_of_which_nothing_can_be_told_stays_as_it_is():
    scores = drawn(50)[0]
    found = fit(scores, np.stack([np.zeros(50), np.ones(50), np.zeros(50)], axis=1) > 0).calibration
    assert not found.fitted.any() and (found.probabilities(scores) == scores.astype(np.float32)).all()
    none = fit(np.zeros((0, 2)), np.zeros((0, 2), bool)).calibration
    assert not none.fitted.any() and none.thresholds.tolist() == [0.5, 0.5]


# ---- thresholds ----


def slow_expectation(p, weights, threshold):
    named = p > threshold
    right = (weights * p)[named].sum()
    return {
        "f1": 2 * right / (weights[named].sum() + (weights * p).sum()),
        "precision": right / max(weights[named].sum(), 1e-12), "recall": right / (weights * p).sum(),
    }  # fmt: skip


@pytest.mark.parametrize("aim", ["f1", "precision", "recall"])
def test_thresholds_by_trying_all(aim):
    rng = np.random.default_rng(0)
    p, weights = (rng.random(60) ** 2).round(2), rng.uniform(1, 5, 60)  # with ties
    found = aimed_threshold(p, weights, Calibrate(aim=aim, at=0.6))
    every = [(t, slow_expectation(p, weights, t)[aim]) for t in np.unique(p) - 1e-9]
    assert slow_expectation(p, weights, found.threshold)[aim] == pytest.approx(found.expected)
    if aim == "f1":
        assert found.expected == pytest.approx(max(value for _, value in every))
    fits = [t for t, value in every if value >= 0.6]
    closest = {"f1": found.threshold, "precision": min(fits), "recall": max(fits)}[aim]
    assert (p > found.threshold).sum() == (p > closest).sum() and found.held


def test_an_aim_out_of_reach_is_told():
    found = aimed_threshold(np.array([0.7, 0.4, 0.1]), np.ones(3), Calibrate(aim="precision", at=0.9))
    assert not found.held and found.expected == 0.7 and 0.4 < found.threshold < 0.7


def test_the_aims_hold_on_other_images():
    calibration = fit(*drawn(20000, 1)).calibration
    p, (scores, labels) = calibration.probabilities(drawn(20000, 1)[0]), drawn(20000, 2)
    tested = calibration.probabilities(scores)
    for c in range(3):
        t = aimed_threshold(p[:, c], np.ones(len(p)), Calibrate(aim="recall", at=0.8)).threshold
        assert (tested[:, c] > t)[labels[:, c]].mean() == pytest.approx(0.8, abs=0.02)
        t = aimed_threshold(p[:, c], np.ones(len(p)), Calibrate(aim="precision", at=0.85)).threshold
        assert labels[:, c][tested[:, c] > t].mean() == pytest.approx(0.85, abs=0.03)


# ---- carried on ----


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_more_images_without_a_class_make_it_rarer(kind):
    """Fitted where a class is frequent, it says what is so where ten times as many others stand beside it."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(2, 1, 20000), rng.normal(0, 1, 20000)])[:, None]
    shown = np.arange(40000)[:, None] < 20000
    made = fit(sigmoid(z), shown, kind).calibration.for_images(220000)
    others = np.concatenate([z[:20000], np.tile(z[20000:], (10, 1))])
    labels = np.arange(len(others))[:, None] < 20000
    assert calibration_error(made.probabilities(sigmoid(others)), labels) < 0.3
    assert calibration_error(fit(sigmoid(z), shown, kind).calibration.probabilities(sigmoid(others)), labels) > 5
    again = made.for_images(40000)
    np.testing.assert_allclose(again.logits(z), fit(sigmoid(z), shown, kind).calibration.logits(z), atol=1e-9)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_a_drift_along_a_line_is_undone(kind):
    scores, labels = drawn(2000)
    before = fit(scores, labels, kind).calibration
    now = (logit(scores) - [1.0, -2, 0.5]) / [0.5, 2, 1]
    moved = before.moved(*straight(*moments(now, logit(scores))))
    np.testing.assert_allclose(moved.logits(now), before.logits(logit(scores)), atol=1e-6)
    assert moments(now[:9], now[:9]) is None


def test_classes_are_joined_and_cut():
    platt, isotonic = fit(*drawn(300)).calibration, fit(*drawn(300, 1), "isotonic").calibration
    z = logit(drawn(50, 2)[0])
    both = platt.then(isotonic)
    np.testing.assert_allclose(both.logits(np.hstack([z, z])), np.hstack([platt.logits(z), isotonic.logits(z)]))
    np.testing.assert_array_equal(platt.then(platt).logits(np.hstack([z, z])), np.hstack([platt.logits(z)] * 2))
    assert not platt.then(platt).curves and len(both.curves) == 6


def test_a_curve_goes_on_beyond_its_ends():
    corners = np.array([[0.0, 1, 2], [0, 5, 6]])
    np.testing.assert_allclose(along(corners, np.array([-3.0, 0, 0.5, 1.5, 2, 4])), [-3, 0, 2.5, 5.5, 6, 8])


# ---- the file ----


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_what_is_written_is_read(tmp_path, kind):
    made = fit(*drawn(300), kind).calibration
    made.write(tmp_path / "calibration.json")
    read = Calibration.read(tmp_path / "calibration.json", 3, "way out")
    for key in ("a", "b", "thresholds", "fitted", "images", "shown"):
        np.testing.assert_array_equal(getattr(made, key), getattr(read, key))
    assert all(np.array_equal(*pair) for pair in zip(made.curves, read.curves, strict=True))
    assert Calibration.read(tmp_path / "nowhere.json", 3, "way out") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a": None}, "a must be"), ({"a": [1.0, 1.0]}, "3 classes"), ({"b": [0.0, float("nan"), 0.0]}, "is none"),
        ({"a": [1.0, -1.0, 1.0]}, "slope"), ({"fitted": [1, 0, 1]}, "bool"), ({"curves": [[[0.0]]]}, "3 classes"),
        ({"curves": [[[0.0, 0.0], [0.0, 1.0]]] * 3}, "does not rise"), ({"curves": [[[0.0], []]] * 3}, "does not rise"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, changes, said):
    path = tmp_path / "calibration.json"
    fit(*drawn(300)).calibration.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(RunError, match=said) as error:
        Calibration.read(path, 3, "do this.")
    assert str(path) in str(error.value) and "do this." in str(error.value)


def test_a_file_without_what_later_versions_write(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"a": [2.0], "b": [1.0], "thresholds": [0.3], "fitted": [True]}))
    read = Calibration.read(path, 1, "way out")
    assert read.images == 0 and read.for_images(100).b == [1.0]  # nothing is known of how many images it was for
    path.write_text(json.dumps({"a": [2.0], "thresholds": [0.3], "fitted": [True]}))
    with pytest.raises(RunError, match="it lacks b"):
        Calibration.read(path, 1, "way out")


# ---- in a run ----

HELD = dict(data__validation=0.4, train__epochs=2, train__evaluate_every=0)


@pytest.fixture
def small(tiny, tmp_path):
    """As `tiny`, with enough images to hold some out."""
    root = str(write_coco(tmp_path / "data" / "small", train=100))
    return lambda **changes: tiny(data__root=root, **{**HELD, **changes})


@pytest.mark.parametrize("method", ["krt", "ridge", "census", "joint", "cumulative", "agcn"])
def test_a_run_calibrates_what_it_has_learned(small, method):
    run = train(small(method=method), show="none", device="cpu")
    for t, classes in ((0, 2), (1, 4)):
        found, scores = run.calibration(t), run.scores(t)
        assert len(found.a) == classes and found.fitted.any() and (found.thresholds > 0).all()
        assert (found.thresholds < 1).all() and (run.session_folder(t) / "calibration.json").is_file()
        p = found.probabilities(scores.scores)
        np.testing.assert_allclose(
            average_precision(p, scores.labels[:, :classes]),
            average_precision(scores.scores, scores.labels[:, :classes]), atol=0.5,  # float32 may tie two of them
        )  # fmt: skip
    assert run.calibration(1).images == 100 and run.calibration(0).images < 100


def test_nothing_is_written_or_named_otherwise_without_validation_images(tiny):
    plain = tiny(method="finetune", train__epochs=1)
    assert "calibrate" not in plain.run_name() and not [key for key in plain.changes() if key.startswith("calibrate")]
    assert load_experiment("digits_demo", {"method": "finetune", "seed": 1}).hash() == "026cd363"  # as ever
    run = train(plain, show="none", device="cpu")
    assert not list(run.folder.rglob("calibration.json"))
    assert not run.calibration(1).fitted.any() and len(run.calibration(1).a) == 4


@pytest.mark.parametrize("changes", [{"calibrate__kind": "none"}, {"data__test": "validation"}])
def test_none_where_none_is_wanted_or_the_images_are_tested_on(small, changes):
    run = train(small(method="finetune", train__epochs=1, **changes), show="none", device="cpu")
    assert not list(run.folder.rglob("calibration.json"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibrate.at": 0.8, "data.validation": 0.2}, "calibrate.at is of calibrate.aim"),
        ({"calibrate.kind": "isotonic"}, "data.validation"),
        ({"calibrate.aim": "recall", "data.validation": 0.2, "data.test": "validation"}, "not tested on"),
        ({"calibrate.aim": "accuracy"}, "f1, precision, recall"), ({"calibrate.at": 1}, "less than 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        load_experiment("digits_demo", changes)


def same(one: Run, two: Run) -> None:
    for t in range(2):
        texts = [(run.session_folder(t) / "calibration.json").read_text() for run in (one, two)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("method", ["krt", "agcn"])
def test_an_interrupted_run_calibrates_as_one_in_one_go(small, tmp_path, method):
    experiment = small(method=method, train__epochs=3)
    whole = train(experiment, tmp_path / "whole", show="none", device="cpu")
    for name, at in (("inside", (1, 0)), ("before", (1, 2))):
        with stopped_after(*at):
            train(experiment, tmp_path / name, show="none", device="cpu")
        same(whole, train(experiment, tmp_path / name, show="none", device="cpu"))


def test_a_damaged_calibration_stops_a_run_that_needs_it_before_it_trains(small, tmp_path):
    experiment = small(method="finetune")
    with stopped_after(1, 0):
        train(experiment, tmp_path / "run", show="none", device="cpu")
    path = tmp_path / "run" / "session_00" / "calibration.json"
    kept = path.read_text()
    path.write_text(kept[:40])
    with pytest.raises(RunError, match=r"calibration\.json is damaged .*delete the folder"):
        train(experiment, tmp_path / "run", show="none", device="cpu")
    path.unlink()  # as in folders of versions that knew none: old classes stay as they are
    run = train(experiment, tmp_path / "run", show="none", device="cpu")
    assert run.calibration(1).fitted.tolist()[:2] == [False, False] and run.calibration(1).fitted[2:].any()


def test_ridge_knows_its_drift_from_its_sums(tiny):
    """As least squares over the images themselves would find it."""
    rng = np.random.default_rng(0)
    x, w = torch.from_numpy(rng.normal(size=(50, 4)) + 1), torch.from_numpy(rng.random(50))
    sums = Statistics(4)
    sums.widen(1, shares=True)
    sums.add(x, torch.ones(50, 1, dtype=torch.float64), torch.ones(50, 1, dtype=torch.bool), w)
    now = torch.from_numpy(rng.normal(size=(4, 1)))
    before = 2 * now + 0.3 * torch.from_numpy(rng.normal(size=(4, 1)))
    slope, offset = straight(*sums.solve([0]).moments(now, before).numpy())
    wanted = np.polyfit((x @ now).numpy()[:, 0], (x @ before).numpy()[:, 0], 1, w=np.sqrt(w.numpy()))
    assert (slope[0], offset[0]) == pytest.approx(wanted)


@pytest.mark.parametrize("method", ["ridge", "census", "masked"])
def test_where_too_few_images_are_held_out_those_learned_from_count_too(small, method):
    """Methods in closed form leave each out in turn; others keep the scores as they are."""
    run = train(small(method=method, data__validation=0.06), show="none", device="cpu")
    log, counted = (run.folder / "log.txt").read_text(), method != "masked"
    assert ("training images count too, each scored as if it had not been learned from" in log) == counted
    assert run.calibration(0).fitted.all() == counted


def test_left_out_scores_are_not_those_of_images_that_were_learned():
    """Folds in which each class has its share, scored inside, and put together in their order."""
    labels = np.zeros((41, 2), bool)
    labels[:20, 0] = labels[10:, 1] = True
    held, inside, asked = np.arange(41) == 40, [], []

    @contextmanager
    def without(rows):
        inside.append(rows)
        yield
        inside.append(None)

    def predict(rows):
        assert inside[-1] is None or (inside[-1] == rows).all()
        asked.append(rows)
        return np.stack([rows, rows + 100], axis=1).astype(float)

    method = SimpleNamespace(sees="session", without=without)
    told = []
    calibrating = Calibrating(
        Calibrate(), make_protocol(("ant", "bee"), 2, 2), method, labels, held, None, World(), told.append, True
    )
    rows, scores = calibrating._left_out(0, np.array([40]), predict)
    assert sorted(rows) == list(range(40)) and (scores[:, 0] == rows).all() and len(asked) == 5
    for fold in asked:  # ten of one kind, ten of both, twenty of the other
        assert labels[fold, 0].sum() == 4 and labels[fold, 1].sum() in (6, 7)
    assert "show, or lack, ant, bee" in told[0]
    method.without = lambda rows: None
    assert calibrating._left_out(0, np.array([40]), predict) is None


def test_the_log_says_what_is_no_plain_case():
    labels = np.zeros((60, 4), bool)
    labels[:30, 0], labels[30:, 1], labels[:3, 2], labels[:, 3] = True, True, True, True
    scores, said = np.random.default_rng(0).random((60, 4)), []
    calibrating = Calibrating(
        Calibrate(aim="precision", at=0.999), make_protocol(CLASSES, 4, 1),
        SimpleNamespace(sees="session", without=lambda rows: None),
        labels, np.ones(60, bool), None, World(), said.append, True,
    )  # fmt: skip
    found = calibrating.after(0, None, lambda rows: scores[rows])
    assert (
        said[0]
        == "calibration: under 5 validation images show cat: they share one calibration, with 1 of the other classes"
    )
    assert said[1] == "calibration: too few validation images show, or lack, dog: their scores stay as they are"
    assert said[2].startswith("calibration: no threshold holds a precision of 0.999 for ant (0.") and len(said) == 3
    assert found.fitted.tolist() == [True, True, True, False] and found.thresholds[3] == 0.5


# ---- a class alone ----


def alone(kind="platt", aim="f1", **more):
    """Three old classes that are calibrated, and a session whose images all show a fourth: 40 held out and 60 learned
    from, after 300. Returns what comes of it, the held-out scores, and what the log says."""
    rng, said = np.random.default_rng(3), []
    z = rng.normal(0, 1.5, (400, 3))
    labels = np.zeros((400, 4), bool)
    labels[:300, :3] = rng.random((300, 3)) < sigmoid([1.0, 2, 3] * z[:300] + [-1.0, 0, 1])
    labels[300:, 3] = True
    before = fit(sigmoid(z[:300]), labels[:300, :3], kind).calibration
    held = np.arange(400) >= 360
    protocol = make_protocol(CLASSES, 3, 1)
    run = SimpleNamespace(calibration=lambda session: before)
    method = SimpleNamespace(sees="session", drift=lambda: None, without=lambda rows: None)
    calibrating = Calibrating(
        Calibrate(kind, aim, **more), protocol, method, labels, held, run, World(), said.append, True
    )
    scores = np.hstack([sigmoid(z), sigmoid(rng.normal(1, 1, (400, 1)))])
    seen = int(labels.any(axis=1).sum())
    return calibrating.after(1, None, lambda rows: scores[rows]), scores[held], before.for_images(seen), seen, said


def test_a_class_that_no_image_lacks_takes_the_middle_of_the_others():
    found, scores, old, seen, said = alone()
    assert found.fitted.tolist() == [True] * 4 and found.images == seen and found.shown[3] == 100
    odds = np.log(old.shown / (seen - old.shown))
    assert found.a[3] == pytest.approx(np.median(old.a))
    assert found.b[3] == pytest.approx(np.median(old.b - odds) + np.log(100 / (seen - 100)))
    p = found.probabilities(scores)[:, 3]
    assert (p > found.thresholds[3]).sum() == 20  # half of the images that show it
    assert said == [
        "calibration: too few validation images lack dog: the middle of the old classes' calibrations is taken, at its "
        "own frequency, and 50% of the images that show it are named"
    ]


def test_the_middle_of_curves_is_a_line():
    found, scores, old, seen, _ = alone("isotonic")
    z = logit(scores[:, :3])
    lines = np.array([np.polyfit(z[:, c], old.logits(z)[:, c], 1) for c in range(3)])
    assert found.a[3] == pytest.approx(np.median(lines[:, 0].clip(0.1, 10)), rel=1e-6)
    assert found.curves[3].shape == (2, 1) and 0 < found.thresholds[3] < 1


def test_a_recall_is_held_by_a_class_alone():
    found, scores, *_, said = alone(aim="recall", at=0.8)
    assert (found.probabilities(scores)[:, 3] > found.thresholds[3]).mean() == 0.8
    assert said[-1].endswith("and 80% of the images that show it are named")


def test_without_calibrated_classes_before_it_a_class_alone_stays_as_it_is(small):
    run = train(small(method="ridge", protocol__increment=1), show="none", device="cpu")
    log = (run.folder / "log.txt").read_text()
    for name in CLASSES:
        assert f"too few validation images show, or lack, {name}: their scores stay as they are" in log
    assert not run.calibration(3).fitted.any() and run.calibration(3).thresholds.tolist() == [0.5] * 4


def test_a_simulated_session_of_one_class(small):
    run = train(small(method="ridge", protocol__sizes=[3, 1]), show="none", device="cpu")
    found, first = run.calibration(1), run.calibration(0)
    assert first.fitted[:3].any() and found.fitted[3] and found.b[3] != 0 and found.thresholds[3] != 0.5
