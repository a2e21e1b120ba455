"""Thresholds of pseudo labels against plain re-statements of what they are to be."""

import numpy as np
import pytest

from krt_core.dpl import MAX_STEPS, START, STEP, TOLERANCE, exact_threshold, find_thresholds, search_threshold


def walk(scores, target, start, tolerance=0.1, step=0.005, most=100):
    """The published search, said as plainly as it goes: (threshold, per image, steps, met)."""
    threshold, seen = start, []
    for steps in range(most + 1):
        found = (scores > np.float64(threshold).astype(scores.dtype)).sum() / len(scores)
        seen.append((abs(found - target), steps, threshold, found))
        if abs(found - target) < tolerance:
            return threshold, found, steps, True
        threshold = threshold + step if found > target else threshold - step
    _, steps, threshold, found = min(seen)
    return threshold, found, steps, False


def random_scores(seed, n=40, c=6, dtype=np.float32):
    return np.random.default_rng(seed).beta(0.6, 1.5, (n, c)).astype(dtype)


def test_the_constants_are_the_published_ones():
    assert (START, STEP, TOLERANCE, MAX_STEPS) == (0.8, 0.005, 0.1, 100)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("target", "start"), [(1.2, 0.8), (0.4, 0.3), (3.5, 0.75), (5.95, 0.2), (0.0, 0.9)])
def test_the_walk(seed, target, start):
    scores = random_scores(seed)
    made = search_threshold(scores, target, start)
    threshold, found, steps, met = walk(scores, target, start)
    assert (made.threshold, made.found, made.steps, made.converged) == (threshold, found, steps, met)
    assert made.target == target and made.per_class == () and made.values.tolist() == [made.threshold]


def test_a_walk_that_jumps_across_the_band_takes_the_closest_of_all_it_has_seen():
    scores = np.repeat([[0.9], [0.6]], [1, 3], axis=0).astype(np.float32)  # 0.25 above 0.6, 1.0 below it
    made = search_threshold(scores, 0.5)
    assert not made.converged and made.found == 0.25 and 0.6 <= made.threshold <= 0.8
    assert made.steps == 0  # the first of equals, not the last
    far = search_threshold(scores, 0.5, 0.3)
    assert (far.found, far.steps) == (0.25, walk(scores, 0.5, 0.3)[2]) and far.steps > 0
    assert search_threshold(np.full((4, 1), 0.5, np.float32), 0.5, max_steps=3).steps == 0


def test_the_walk_may_take_a_hundred_steps_and_no_more():
    scores = np.full((10, 1), 0.5, np.float32)
    scores[:5] = 0.2
    first = 0.8
    for _ in range(100):
        first -= 0.005
    near = (np.linspace(0.9, 0.31, 10) < 0.3)[:, None]
    assert not near.any()
    only_at_the_end = np.where(np.arange(10) < 5, first + 1e-4, 0.0).astype(np.float32)[:, None]
    made = search_threshold(only_at_the_end, 0.5)
    assert made.converged and made.steps == 100
    assert not search_threshold(only_at_the_end, 0.5, max_steps=99).converged


def test_the_band_is_open():
    scores = np.array([[0.9], [0.1]], np.float32)  # 0.5 per image at 0.8
    assert search_threshold(scores, 0.5, tolerance=1e-9).converged
    assert not search_threshold(scores, 0.75, tolerance=0.25).converged  # as far away as the tolerance is not within
    ties = np.full((10, 2), 0.4, np.float32)  # none or two per image: none is as far from 0.1 as the tolerance
    assert exact_threshold(ties, 0.1).found == 0 and not exact_threshold(ties, 0.1).converged


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", [0.0, 0.35, 1.1, 2.5, 6.0])
def test_the_exact_rule_is_the_best_there_is(seed, target):
    scores = random_scores(seed, n=7, c=5).round(1)  # many ties
    made = exact_threshold(scores, target)
    cuts = np.unique(np.concatenate([[-0.05], np.unique(scores) + 0.05]))
    best = min(abs((scores > cut).sum() / len(scores) - target) for cut in cuts)
    found = (scores > made.threshold).sum() / len(scores)
    assert found == made.found and abs(found - target) == pytest.approx(best)
    assert made.steps == 0 and made.converged == (abs(found - target) < 0.1)


def test_the_exact_threshold_stands_midway():
    scores = np.array([[0.2], [0.4], [0.8]], np.float32)
    assert exact_threshold(scores, 1 / 3).threshold == pytest.approx(0.6)
    assert exact_threshold(scores, 2 / 3).threshold == pytest.approx(0.3)
    assert exact_threshold(scores, 0.0).threshold == pytest.approx(0.9)  # between the highest score and 1
    assert exact_threshold(scores, 1.0).threshold == pytest.approx(0.1)  # between 0 and the lowest
    none = np.array([[0.0], [0.5]], np.float32)  # a score of 0 is above nothing but what is less
    assert exact_threshold(none, 1.0).threshold == -0.5 and exact_threshold(none, 1.0).found == 1


def test_which_rule_finds_and_where_it_begins():
    scores = random_scores(1)
    one = find_thresholds(scores, 1.0)
    assert one == search_threshold(scores, 1.0, 0.8)
    exact = find_thresholds(scores, 1.0, "exact")
    assert exact == exact_threshold(scores, 1.0) and exact.threshold != one.threshold
    last = search_threshold(random_scores(2), 2.5)
    assert find_thresholds(scores, 1.0, last=last) == search_threshold(scores, 1.0, last.threshold)
    assert find_thresholds(scores, 1.0, last=last).steps != one.steps


@pytest.mark.parametrize("rule", ["published", "exact"])
def test_a_threshold_for_each_class(rule):
    scores, shares = random_scores(3, n=60, c=3), np.array([0.5, 0.3, 0.2])
    made = find_thresholds(scores, 1.5, rule, shares)

    def alone(column, target, start):
        part = scores[:, column : column + 1]
        if rule == "exact":
            return exact_threshold(part, target)
        return search_threshold(part, target, start, tolerance=0.1 / 3)

    single = [alone(c, 1.5 * share, 0.8) for c, share in enumerate(shares)]
    assert made.per_class == tuple(record.threshold for record in single) == tuple(made.values)
    assert made.threshold == pytest.approx(np.mean(made.per_class)) and made.target == 1.5
    assert made.found == pytest.approx(sum(record.found for record in single))
    assert made.steps == max(record.steps for record in single)
    assert made.converged == all(record.converged for record in single)
    later = find_thresholds(random_scores(4, n=60, c=4)[:, :4], 1.5, rule, np.full(4, 0.25), made)
    if rule == "published":  # known classes begin where they ended, a new one at 0.8
        again = random_scores(4, n=60, c=4)
        starts = [*made.per_class, 0.8]
        for c, start in enumerate(starts):
            expected = search_threshold(again[:, c : c + 1], 1.5 / 4, start, tolerance=0.1 / 4)
            assert later.per_class[c] == expected.threshold


def test_a_record_survives_json():
    record = find_thresholds(random_scores(5), 1.0, "exact", np.full(6, 1 / 6))
    assert type(record)(**record.as_dict()) == record
    with pytest.raises(AttributeError):
        record.threshold = 0.5


def test_threshold_meets_the_band():
    probabilities = np.random.default_rng(0).random((400, 10))
    record = search_threshold(probabilities, target=1.5)
    assert record.converged and abs(record.found - 1.5) < 0.1
    assert record.found == pytest.approx((probabilities > record.threshold).sum() / 400)
    again = search_threshold(probabilities, target=1.5, start=record.threshold)
    assert again.steps == 0 and again.threshold == record.threshold


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7])
def test_threshold_never_dies_on_saturated_scores(value):
    record = search_threshold(np.full((3, 10), value), target=2.9)
    assert not record.converged and record.found in (0.0, 10.0)
    assert record.found == 0.0  # 0 is nearer to 2.9 than 10 is
    with pytest.raises(ValueError, match="non-empty"):
        search_threshold(np.zeros((0, 10)), 1.0)


def test_the_exact_rule_meets_the_target_where_scores_allow_it():
    rng = np.random.default_rng(0)
    scores = rng.random((400, 7)).astype(np.float32)
    for target in (0.3, 1.7, 4.0):
        record = exact_threshold(scores, target)
        assert record.converged and (scores > record.threshold).sum() / 400 == pytest.approx(target, abs=1 / 400)
    ties = np.full((10, 2), 0.4, np.float32)  # all or nothing: the nearer of 0 and 2 per image
    assert exact_threshold(ties, 1.8).found == 2 and exact_threshold(ties, 0.1).found == 0
    assert (ties > exact_threshold(ties, 1.8).threshold).all()


@pytest.mark.parametrize("rule", ["published", "exact"])
def test_thresholds_per_class_give_each_class_its_share(rule):
    rng = np.random.default_rng(1)
    scores = np.stack([rng.beta(a, 2, 600) for a in (0.5, 1, 3)], axis=1).astype(np.float32)  # rare to frequent
    record = find_thresholds(scores, 0.9, rule, np.array([0.1, 0.3, 0.6]))
    named = (scores > record.values).mean(axis=0)
    assert record.converged and record.values.shape == (3,)
    np.testing.assert_allclose(named, [0.09, 0.27, 0.54], atol=0.034)
    assert record.found == pytest.approx(named.sum()) and record.threshold == pytest.approx(record.values.mean())
    later = find_thresholds(np.c_[scores, scores[:, :1]], 0.9, rule, np.full(4, 0.25), record)  # one class more
    assert later.values.shape == (4,)
