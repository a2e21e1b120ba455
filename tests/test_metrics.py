import doctest

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

import krt_core.metrics as m
from krt_core.protocol import make_protocol
from krt_core.runs.summary import ap_tables


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    labels = rng.random((300, 7)) < 0.3
    return (0.5 * labels + rng.random((300, 7))) / 1.5, labels


def test_doctests():
    assert doctest.testmod(m).failed == 0


def test_average_precision_equals_scikit_learn(case):
    scores, labels = case
    expected = [100 * average_precision_score(labels[:, c], scores[:, c]) for c in range(7)]
    np.testing.assert_allclose(m.average_precision(scores, labels), expected, rtol=1e-10)
    assert m.mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))


def test_f1_equals_scikit_learn(case):
    scores, labels = case
    ours = m.precision_recall_f1(scores, labels, 0.5)
    p, r, f, _ = precision_recall_fscore_support(labels, scores > 0.5, average=None, zero_division=0)
    op, orr, of, _ = precision_recall_fscore_support(labels, scores > 0.5, average="micro")
    np.testing.assert_allclose(
        [ours[k] for k in ("CP", "CR", "CF1", "OP", "OR", "OF1")],
        100 * np.array([p.mean(), r.mean(), f.mean(), op, orr, of]),
    )


@pytest.mark.parametrize("metric", ["CF1", "OF1"])
def test_the_best_threshold_beats_every_other(case, metric):
    scores, labels = case
    best = m.precision_recall_f1(scores, labels, m.best_threshold(scores, labels, metric))[metric]
    others = [m.precision_recall_f1(scores, labels, t)[metric] for t in np.linspace(0, 1, 101)]
    assert best >= max(others) - 0.5 and best > np.median(others)  # of 200 quantiles, not of every score


def test_the_best_threshold_worked_by_hand():
    """Above 0.4 stand one wrong and both right pairs: 2·2 / (3 + 2) = 80 %; above 0.7 one right one: 2·1 / (1 + 2)."""
    scores, labels = np.array([[0.8], [0.6], [0.5], [0.2]], np.float32), np.array([[1], [0], [1], [-1]], np.int8)
    threshold = m.best_threshold(scores, labels)
    assert 0.2 < threshold < 0.5 and m.precision_recall_f1(scores, labels, threshold)["OF1"] == pytest.approx(80)
    with pytest.raises(ValueError, match="no best threshold"):
        m.best_threshold(scores, np.zeros((4, 1), bool))


def test_cf1_is_the_mean_of_f1_not_the_f1_of_means():
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 0]], dtype=bool)
    scores = np.array([[1, 1], [1, 0], [1, 0], [1, 0]], dtype=float)
    out = m.precision_recall_f1(scores, labels)
    assert out["CF1"] == pytest.approx((40 + 50) / 2)
    assert out["CF1"] != pytest.approx(2 * out["CP"] * out["CR"] / (out["CP"] + out["CR"]))


def test_f1_of_a_rare_class_worked_by_hand():
    """Two images have the class; four are named, one of them rightly."""
    labels = np.array([[1], [0], [0], [0], [1], [0]], dtype=bool)
    scores = np.array([[0.9], [0.9], [0.9], [0.9], [0.8], [0.8]])  # 0.8 is not above 0.8
    out = m.precision_recall_f1(scores, labels)
    assert out == pytest.approx(dict(CP=25, CR=50, CF1=100 / 3, OP=25, OR=50, OF1=100 / 3))
    only = m.precision_recall_f1(np.array([[0.9]]), np.array([[True]]))
    assert only == pytest.approx(dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), 100))


def test_scores_of_other_classes_than_the_labels_are_refused():
    with pytest.raises(ValueError):
        m.average_precision(np.ones((3, 2)), np.ones((3, 3), bool))


def test_nothing_predicted_and_no_positives():
    out = m.precision_recall_f1(np.zeros((3, 2)), np.ones((3, 2), bool))
    assert np.isnan(out["OP"]) and out["OF1"] == 0 and out["CF1"] == 0
    assert m.average_precision(np.ones((3, 1)), np.zeros((3, 1), bool))[0] == 0


def test_forgetting_definitions_on_a_table_worked_by_hand():
    nan = np.nan
    ap = np.array([[90.0, 70, nan, nan], [95, 60, 80, 60], [80, 65, 70, 50]])[:, :4]
    ap = np.column_stack([ap, [nan, nan, 55]])
    first = [0, 0, 1, 1, 2]
    np.testing.assert_allclose(m.forgetting_per_class(ap, first, "max"), [15, 5, 10, 10, nan])
    np.testing.assert_allclose(m.forgetting_per_class(ap, first, "first"), [10, 5, 10, 10, nan])
    out = m.forgetting({"fixed": ap}, first)
    assert out["max_class_fixed"] == pytest.approx(10)
    # task 0: means 80, 77.5, 72.5; task 1: 70, 60
    assert out["max_task_fixed"] == pytest.approx((7.5 + 10) / 2)
    assert m.forgetting({"fixed": ap[:1, :2]}, [0, 0]) == {}
    with pytest.raises(ValueError, match="'max' or 'first'"):
        m.forgetting_per_class(ap, first, "worst")


def test_forgetting_over_two_sessions_and_where_nothing_new_was_learned():
    assert m.forgetting({"own": np.array([[80.0, np.nan], [70, 60]])}, [0, 1]) == dict.fromkeys(
        ["max_class_own", "max_task_own", "first_class_own", "first_task_own"], 10
    )
    assert m.forgetting({"own": np.array([[80.0], [90], [75]])}, [0]) == {
        "max_class_own": 15, "max_task_own": 15, "first_class_own": 5, "first_task_own": 5,
    }  # fmt: skip


def test_a_task_has_the_mean_of_its_classes():
    table = m.task_table(np.array([[80.0, 60, np.nan], [70, 40, 90]]), [0, 0, 1])
    np.testing.assert_array_equal(table, [[70, np.nan], [55, 90]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_falling_order_is_a_stable_sort(dtype):
    rng = np.random.default_rng(0)
    tied = rng.integers(0, 40, 5000) / 40
    for scores in (rng.random(5000), tied, tied * 1e-40, 1e6 * tied, tied - 0.5, np.where(tied < 0.5, -0.0, 0.0)):
        scores = scores.astype(dtype)
        np.testing.assert_array_equal(m.falling_order(scores), np.argsort(-scores, kind="stable"))


def test_pools_of_test_images():
    """Each pool's AP is the AP of its images alone."""
    rng = np.random.default_rng(0)
    protocol = make_protocol(tuple("abcdef"), 2, 2)
    labels = rng.random((400, 6)) < 0.2
    scores = [rng.random((400, session.stop)).astype(np.float32).round(2) for session in protocol.sessions]
    tables = ap_tables(protocol, [(s, labels) for s in scores])
    for t, session in enumerate(protocol.sessions):
        for earlier in protocol.sessions[: t + 1]:
            for c in range(earlier.start, earlier.stop):
                seen, own = labels[:, : session.stop].any(axis=1), labels[:, earlier.columns].any(axis=1)
                for pool, chosen in (("fixed", slice(None)), ("seen", seen), ("own", own)):
                    alone = m.average_precision(scores[t][chosen, c, None], labels[chosen, c, None])
                    assert tables[pool][t, c] == alone[0]
        assert all(np.isnan(table[t, session.stop :]).all() for table in tables.values())


def test_a_threshold_for_each_class_equals_scikit_learn(case):
    scores, labels = case
    thresholds = np.linspace(0.2, 0.8, 7)
    ours = m.precision_recall_f1(scores, labels, thresholds)
    _, _, f, _ = precision_recall_fscore_support(labels, scores > thresholds, average=None, zero_division=0)
    _, _, of, _ = precision_recall_fscore_support(labels, scores > thresholds, average="micro")
    np.testing.assert_allclose([ours["CF1"], ours["OF1"]], 100 * np.array([f.mean(), of]))
    assert m.precision_recall_f1(scores, labels, np.full(7, 0.5)) == m.precision_recall_f1(scores, labels, 0.5)


@pytest.mark.parametrize(("mass", "strategy"), [(True, "quantile"), (False, "uniform")])
def test_reliability_curves_equal_scikit_learn(mass, strategy):
    rng = np.random.default_rng(0)
    p = rng.random(1001) ** 3
    labels = rng.random(1001) < p
    mean, share, count = m.reliability_curve(p, labels, 10, mass)
    theirs, predicted = calibration_curve(labels, p, n_bins=10, strategy=strategy)
    np.testing.assert_allclose(mean, predicted)
    np.testing.assert_allclose(share, theirs)
    assert count.sum() == 1001 and (not mass or set(count) <= {100, 101})


def test_calibration_errors_by_a_slow_restatement(case):
    scores, labels = case
    labels = np.where(np.random.default_rng(1).random(labels.shape) < 0.2, -1, labels)
    for c, found in enumerate(m.calibration_errors(scores, labels)):
        pairs = sorted((p, y) for p, y in zip(scores[:, c], labels[:, c], strict=True) if y >= 0)
        edges, error = np.quantile([p for p, _ in pairs], np.arange(1, 15) / 15), 0.0
        for b in range(15):
            inside = [(p, y) for p, y in pairs if sum(p > edge for edge in edges) == b]
            error += abs(sum(p for p, _ in inside) - sum(y for _, y in inside)) / len(pairs)
        assert found == pytest.approx(100 * error)
    every = m.calibration_error(scores, labels)
    assert every == pytest.approx(m.calibration_errors(scores.reshape(-1, 1), labels.reshape(-1, 1))[0])


def test_perfect_probabilities_have_no_error_and_certain_wrong_ones_all():
    labels = np.array([[1], [0], [1], [0]])
    assert m.calibration_errors(labels.astype(float), labels) == [0]
    assert m.calibration_errors(1.0 - labels, labels) == [100]
    assert np.isnan(m.calibration_errors(np.full((2, 1), 0.5), np.full((2, 1), -1))).all()
    with pytest.raises(ValueError, match="no calibration"):
        m.reliability_curve(np.full(2, 0.5), np.full(2, -1))


def test_pairs_of_unknown_truth_are_left_out_of_every_metric():
    rng = np.random.default_rng(0)
    scores, truth = rng.random((40, 5)).round(1), rng.random((40, 5)) < 0.4  # with ties
    known = rng.random((40, 5)) < 0.7
    labels = np.where(known, truth, -1).astype(np.int8)
    alone = [m.average_precision(scores[k][:, [c]], truth[k][:, [c]])[0] for c, k in enumerate(known.T)]
    assert m.average_precision(scores, labels).tolist() == alone
    found, named = m.precision_recall_f1(scores, labels, 0.5), (scores > 0.5) & known
    true, present = (named & truth).sum(axis=0), (truth & known).sum(axis=0)
    precision, recall = true / named.sum(axis=0), true / present
    wanted = {
        "CP": precision.mean(), "CR": recall.mean(), "CF1": (2 * precision * recall / (precision + recall)).mean(),
        "OP": true.sum() / named.sum(), "OR": true.sum() / present.sum(),
        "OF1": 2 * true.sum() / (named.sum() + present.sum()),
    }  # fmt: skip
    assert found == pytest.approx({key: 100 * value for key, value in wanted.items()})
    assert m.precision_recall_f1(scores, truth.astype(np.int8)) == m.precision_recall_f1(scores, truth)
