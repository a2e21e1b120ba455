import inspect

import numpy as np
import pytest

import krt_core.memory.ranked as memory_module
from krt_core.config import Replay
from krt_core.memory import Ranked, herding


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
    assert sorted(herding(np.ones((5, 3)), 5, max_steps=20).tolist()) == [0, 1, 2, 3, 4]  # identical rows end
    assert herding(features, 0).dtype == np.int64  # none at all are still numbers of rows


@pytest.mark.parametrize("block", [4096, 2])
def test_herding_compares_directions_whatever_the_lengths(block, monkeypatch):
    """Two of three rows point along x, so that the first chosen does, though the third is a thousand times as long."""
    monkeypatch.setattr(memory_module, "BLOCK", block)
    assert herding(np.array([[0.0, 10], [0.01, 0], [0.01, 0]]), 1).tolist() == [1]
    assert herding(np.array([[0.01, 0], [0.01, 0], [0.0, 10]]), 1).tolist() == [0]
    assert herding(np.array([[1.0, 0], [2, 0]]), 2).tolist() == [1, 0]  # 1e-8 on each length decides between equals


def test_where_the_steps_of_herding_run_out_the_nearest_to_the_mean_follow():
    angles = np.radians([40.0, 0, 10, 30, 90, 15])  # the mean of the unit vectors stands at 30 degrees
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert herding(features, 6, max_steps=1).tolist() == [3, 0, 5, 2, 1, 4]
    assert herding(features, 4, max_steps=0).tolist() == [3, 0, 5, 2]
    assert inspect.signature(herding).parameters["max_steps"].default == 1000  # as published


def _labels():
    labels = np.zeros((12, 4), dtype=bool)
    labels[:6, 0] = labels[4:10, 1] = labels[8:, 2] = labels[10:, 3] = True
    return labels


@pytest.mark.parametrize("selection", ["herding", "random"])
def test_memory_keeps_its_quota_and_drops_images_already_stored(selection):
    labels, features = _labels(), np.random.default_rng(0).normal(size=(12, 8))
    memory = Ranked(Replay(per_class=3, selection=selection))
    memory.update(0, np.arange(10), labels[:10, :2], features[:10], seed=0)
    assert [len(r) for r in memory.ranked] == [3, 3] and len(set(memory.images.tolist())) == 6
    again = Ranked(Replay(per_class=3, selection=selection))
    again.load_state(memory.state())
    assert again.ranked == memory.ranked and again.sessions == memory.sessions


def test_memory_with_a_fixed_budget_shrinks_the_older_lists_from_the_end():
    labels, features = _labels(), np.random.default_rng(0).normal(size=(12, 8))
    memory = Ranked(Replay(budget=8))
    memory.update(0, np.arange(10), labels[:10, :2], features[:10], seed=0)
    before = [list(r) for r in memory.ranked]
    memory.update(1, np.arange(8, 12), labels[8:, 2:], features[8:], seed=0)
    assert [len(r) for r in memory.ranked[:2]] == [2, 2] and [r[:2] for r in before] == memory.ranked[:2]
    assert len(memory.images) <= 8 and len(memory.stored_in) == len(memory.images)


def test_fewer_images_than_exemplars_keeps_what_there_is():
    memory = Ranked(Replay(per_class=50))
    memory.update(0, np.arange(12), _labels(), np.random.default_rng(0).normal(size=(12, 8)), seed=0)
    assert 0 < len(memory.images) <= 12


def test_stored_labels_widened_as_published_or_strict():
    labels = np.ones((1, 6), dtype=bool)
    for kind, expected in (("widened", [0, 0, 1, 1, 1, 1]), ("strict", [0, 0, 1, 1, 0, 0])):
        memory = Ranked(Replay(per_class=1, labels=kind), [[], [], [0]], [0, 0, 1])
        assert memory.visible(labels, [0, 2, 4], [2, 4, 6]).astype(int).tolist() == [expected]
    twice = Ranked(Replay(per_class=1, duplicates=True), [[0], [], [0]], [0, 0, 1])  # each copy by its own session
    assert twice.visible(labels, [0, 2], [2, 4]).astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_an_image_that_comes_back_is_stored_once_unless_duplicates_are_kept():
    labels = np.array([[1, 1, 1], [1, 0, 0]], dtype=bool)  # image 0 has a class of both sessions, two of the first
    once, twice = Ranked(Replay(per_class=2)), Ranked(Replay(per_class=2, duplicates=True))
    for memory in (once, twice):
        memory.update(0, np.array([0, 1]), labels[:, :2], np.eye(2), seed=0)
        memory.update(1, np.array([0]), labels[:1, 2:], np.eye(2)[:1], seed=0)
        assert memory.sessions == [0, 0, 1]
    assert [sorted(ranking) for ranking in once.ranked] == [[0, 1], [], []]
    assert [sorted(ranking) for ranking in twice.ranked] == [[0, 1], [0], [0]]
    assert twice.stored_in.tolist() == [0, 0, 0, 1]


def test_what_chooses_the_exemplars():
    features, rows, labels = np.random.default_rng(0).normal(size=(30, 4)), np.arange(100, 130), np.ones((30, 1), bool)

    def chosen(selection, features, seed=0):
        memory = Ranked(Replay(per_class=5, selection=selection))
        memory.update(0, rows, labels, features, seed)
        return memory.images.tolist()

    assert chosen("herding", features) == (100 + herding(features, 5)).tolist()
    by_chance = chosen("random", None)
    assert len({*by_chance}) == 5 and {*by_chance} <= {*rows.tolist()}
    assert chosen("random", features) == chosen("herding", None) == by_chance  # no look at features, or none to look at
    assert chosen("random", None, seed=1) != by_chance


def test_quotas_and_who_falls_short_of_them():
    assert [Ranked(Replay(budget=8)).quota(classes) for classes in (0, 1, 2, 3)] == [8, 8, 4, 2]
    assert Ranked(Replay(per_class=3)).quota(7) == 3
    memory = Ranked(Replay(per_class=2), [[5, 6], [7], []], [0, 0, 1])
    assert memory.lacking(["ant", "bee", "cat", "of a session to come"]) == ["bee (1)", "cat (0)"]


def test_an_empty_memory_is_rows_too_and_each_class_has_a_session():
    memory, labels = Ranked(Replay(per_class=2)), np.ones((3, 4), bool)
    assert labels[memory.images].shape == (0, 4) and memory.visible(labels, [0], [2]).shape == (0, 2)
    assert memory.stored_in.dtype == np.int64
    with pytest.raises(ValueError):
        _ = Ranked(Replay(per_class=2), [[0], [1]], [0]).stored_in


def test_no_image_is_stored_for_a_class_that_is_unknown_of_it():
    labels = np.array([[1], [-1], [0], [1], [-1]], np.int8)
    for selection in ("herding", "random"):
        memory = Ranked(Replay(per_class=5, selection=selection))
        memory.update(0, np.arange(5), labels, np.random.default_rng(0).normal(size=(5, 4)), seed=0)
        assert sorted(memory.images.tolist()) == [0, 3]
