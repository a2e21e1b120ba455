import numpy as np
import pytest
import torch

from krt_core.config import Replay
from krt_core.dpl import exact_threshold, find_thresholds, search_threshold
from krt_core.losses import asymmetric_loss, token_distillation
from krt_core.memory import Memory, herding
from krt_core.protocol import make_protocol, seen_frequency


def test_asymmetric_loss_is_the_formula():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), (torch.rand(5, 3) < 0.4).float()
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-x))
        pm = max(p - 0.05, 0)
        total += -np.log(p) if y else -(pm**4) * np.log(1 - pm)
    assert float(asymmetric_loss(logits, targets)) == pytest.approx(total, rel=1e-5)


def test_losses_stay_finite_in_half_precision_and_at_extremes():
    logits = torch.tensor([[60.0, -60.0]], dtype=torch.float16, requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_token_distillation_compares_concatenated_old_tokens_only():
    torch.manual_seed(0)
    old, new = torch.randn(4, 2, 8), torch.randn(4, 3, 8)
    a, b = old.flatten(1), new[:, :2].flatten(1)
    expected = (1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean()
    torch.testing.assert_close(token_distillation(old, new), expected)
    assert float(token_distillation(old, torch.cat([3 * old, new[:, 2:]], 1))) == pytest.approx(0, abs=1e-6)


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


def test_herding_follows_the_mean_better_than_chance():
    features = np.random.default_rng(0).normal(size=(60, 16)) + 1
    chosen = herding(features, 10)
    assert len(set(chosen.tolist())) == 10
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    error = np.linalg.norm(unit.mean(0) - unit[chosen].mean(0))
    rng = np.random.default_rng(1)
    others = [np.linalg.norm(unit.mean(0) - unit[rng.permutation(60)[:10]].mean(0)) for _ in range(50)]
    assert error < min(others)
    assert sorted(herding(features[:4], 10).tolist()) == [0, 1, 2, 3]
    assert len(herding(features[:0], 10)) == 0
    assert sorted(herding(np.ones((5, 3)), 3, max_steps=20).tolist()) != []  # identical rows end


def _labels():
    labels = np.zeros((12, 4), dtype=bool)
    labels[:6, 0] = labels[4:10, 1] = labels[8:, 2] = labels[10:, 3] = True
    return labels


@pytest.mark.parametrize("selection", ["herding", "random"])
def test_memory_keeps_its_quota_and_drops_images_already_stored(selection):
    labels, features = _labels(), np.random.default_rng(0).normal(size=(12, 8))
    memory = Memory(Replay(per_class=3, selection=selection))
    memory.update(0, np.arange(10), labels[:10, :2], features[:10], seed=0)
    assert [len(r) for r in memory.ranked] == [3, 3] and len(set(memory.images.tolist())) == 6
    again = Memory(Replay(per_class=3, selection=selection))
    again.load_state(memory.state())
    assert again.ranked == memory.ranked and again.sessions == memory.sessions


def test_memory_with_a_fixed_budget_shrinks_the_older_lists_from_the_end():
    labels, features = _labels(), np.random.default_rng(0).normal(size=(12, 8))
    memory = Memory(Replay(budget=8))
    memory.update(0, np.arange(10), labels[:10, :2], features[:10], seed=0)
    before = [list(r) for r in memory.ranked]
    memory.update(1, np.arange(8, 12), labels[8:, 2:], features[8:], seed=0)
    assert [len(r) for r in memory.ranked[:2]] == [2, 2] and [r[:2] for r in before] == memory.ranked[:2]
    assert len(memory.images) <= 8 and len(memory.stored_in) == len(memory.images)


def test_fewer_images_than_exemplars_keeps_what_there_is():
    memory = Memory(Replay(per_class=50))
    memory.update(0, np.arange(12), _labels(), np.random.default_rng(0).normal(size=(12, 8)), seed=0)
    assert 0 < len(memory.images) <= 12


def test_stored_labels_widened_as_published_or_strict():
    labels = np.ones((1, 6), dtype=bool)
    for kind, expected in (("widened", [0, 0, 1, 1, 1, 1]), ("strict", [0, 0, 1, 1, 0, 0])):
        memory = Memory(Replay(per_class=1, labels=kind), [[], [], [0]], [0, 0, 1])
        assert memory.visible(labels, [0, 2, 4], [2, 4, 6]).astype(int).tolist() == [expected]
    twice = Memory(Replay(per_class=1, duplicates=True), [[0], [], [0]], [0, 0, 1])  # each copy by its own session
    assert twice.visible(labels, [0, 2], [2, 4]).astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_pseudo_labels_set_confident_old_classes_and_nothing_else():
    from types import SimpleNamespace

    from krt_core.config import load_experiment
    from krt_core.dpl import ThresholdRecord
    from krt_core.methods import METHODS

    experiment = load_experiment("digits_demo")
    krt = METHODS["krt"](experiment.options, experiment)
    krt.context = SimpleNamespace(session=SimpleNamespace(index=1))
    krt.records = {1: ThresholdRecord(0.7, 0.5, 0.5, 0, True)}
    labels = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # the second image is replayed: an old label is known
    old_logits = torch.logit(torch.tensor([[0.71, 0.69], [0.1, 0.9]]))
    assert krt.restore(labels, old_logits).tolist() == [[1, 0, 1], [1, 1, 0]]  # set, never unset
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0]]


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


def test_frequency_of_old_classes_uses_only_what_was_shown():
    labels = np.zeros((10, 4), bool)
    labels[:4, 0] = labels[3:6, 1] = labels[5:, 2] = labels[8:, 3] = True
    protocol = make_protocol(tuple("abcd"), 2, 1)
    assert seen_frequency(protocol, labels, 1).tolist() == [0.4, 0.3]  # ten images by then: four with a, three with b
    hidden = labels.copy()
    hidden[:, 3] = ~hidden[:, 3]  # a class of the future
    assert seen_frequency(protocol, hidden, 1).tolist() == [0.4, 0.3]
    assert len(seen_frequency(protocol, labels, 0)) == 0
