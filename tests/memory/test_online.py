"""PRS and OCDM against plain re-statements of both, and what they keep of a long tail."""

import json
import math
import time

import numpy as np
import pytest

from krt_core.config import Replay, load_experiment
from krt_core.errors import ConfigError
from krt_core.memory import memory_of
from krt_core.memory.prs import chance
from krt_core.protocol import make_protocol

KINDS = ("prs", "ocdm")
PROTOCOL = make_protocol(tuple("abcdefghi"), 0, 3)


def long_tail(seed, images=300, classes=9, head=0.5, fall=0.75):
    """(n, classes) bool: each class less frequent than another by a factor, in no order."""
    rng = np.random.default_rng(seed)
    return rng.random((images, classes)) < rng.permutation(head * fall ** np.arange(classes))


def streamed(memory, labels, seed=0, protocol=PROTOCOL, sessions=None):
    """As the loop does it: each session's images with the columns of its classes alone."""
    for session in protocol.sessions if sessions is None else [protocol.sessions[t] for t in sessions]:
        rows = protocol.train_images(labels, session.index)
        memory.update(session.index, rows, labels[rows][:, session.columns], None, seed)
    return memory


# ---- the two rules once more, with lists and loops ----


def wanted(n, power):
    total = sum(count**power for count in n if count)
    return [count**power / total if count else 0 for count in n]


def sizes_of(memory, classes=9):
    return [sum(c in one["classes"] for one in memory) for c in range(classes)]


def one_of_the_least(values, slack, rng):
    best = [place for place, value in enumerate(values) if value <= min(values) + slack]
    return best[rng.integers(len(best))] if len(best) > 1 else best[0]


def far_from(sizes, p):
    return sum(abs(size - share * sum(sizes)) for size, share in zip(sizes, p, strict=True))


def kl_from(sizes, p):
    shares = [size / sum(sizes) for size in sizes]
    return sum(q * math.log(q / share) for q, share in zip(shares, p, strict=True) if q)


def add(memory, image, session, classes):
    for one in memory:
        if one["image"] == image:
            one["sessions"].add(session)
            one["classes"] |= classes
            return
    memory.append({"image": image, "sessions": {session}, "classes": set(classes)})


def plain_prs(memory, stream, session, budget, power, n, rng):
    draws = rng.random(len(stream))
    for draw, (image, classes) in zip(draws, stream, strict=True):
        for c in classes:
            n[c] += 1
        p = wanted(n, power)
        weights = {c: math.exp(-n[c]) for c in classes}
        chance = sum(w / sum(weights.values()) * min(1, budget * p[c] / n[c]) for c, w in weights.items())
        if len(memory) == budget and draw >= chance:
            continue
        if len(memory) == budget and image not in [one["image"] for one in memory]:
            sizes = sizes_of(memory)
            excess = {c: size - p[c] * sum(sizes) for c, size in enumerate(sizes) if size}
            fullest = list(excess)[one_of_the_least([-e for e in excess.values()], 1e-9, rng)]
            inside = [place for place, one in enumerate(memory) if fullest in one["classes"]]
            needed = [sum(excess[c] <= 1e-9 for c in memory[place]["classes"]) for place in inside]
            inside = [place for place, count in zip(inside, needed, strict=True) if count == min(needed)]
            without = [[size - (c in memory[place]["classes"]) for c, size in enumerate(sizes)] for place in inside]
            memory.pop(inside[one_of_the_least([far_from(left, p) for left in without], 1e-9, rng)])
        add(memory, image, session, classes)


def plain_ocdm(memory, stream, session, budget, power, n, rng):
    for first in range(0, len(stream), 10):
        batch = stream[first : first + 10]
        for _, classes in batch:
            for c in classes:
                n[c] += 1
        p, sizes = wanted(n, power), sizes_of(memory)
        held = [one["image"] for one in memory]
        for image, classes in batch:
            gained = [size + (c in classes) for c, size in enumerate(sizes)]
            if image not in held or kl_from(gained, p) < kl_from(sizes, p) - 1e-12:
                add(memory, image, session, classes)
        while len(memory) > budget:
            sizes = sizes_of(memory)
            without = [[size - (c in one["classes"]) for c, size in enumerate(sizes)] for one in memory]
            memory.pop(one_of_the_least([kl_from(left, p) for left in without], 1e-12, rng))


def plain(kind, labels, budget, power, seed):
    """What `Memory.state` holds."""
    memory, n = [], [0] * 9
    for session in PROTOCOL.sessions:
        rng = np.random.default_rng([seed, session.index])
        own = range(session.start, session.stop)
        order = rng.permutation(PROTOCOL.train_images(labels, session.index)).tolist()
        stream = [(image, {c for c in own if labels[image, c] > 0}) for image in order]
        {"prs": plain_prs, "ocdm": plain_ocdm}[kind](memory, stream, session.index, budget, power, n, rng)
    return {
        "images": [one["image"] for one in memory],
        "classes": [sorted(one["classes"]) for one in memory],
        "stored_in": [sorted(one["sessions"]) for one in memory],
        "counts": n,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("budget", "power", "seed"), [(40, 0.0, 0), (40, -0.2, 1), (25, 1.0, 2), (7, -0.1, 3), (1, 0.0, 4), (10**4, 0.0, 5)]
)
def test_both_are_what_they_say(kind, budget, power, seed):
    labels = long_tail(seed).astype(np.int8)
    labels[np.random.default_rng(seed).random(labels.shape) < 0.1] = -1  # unknown: not there
    memory = streamed(memory_of(Replay(budget=budget, selection=kind, power=power)), labels, seed)
    state = memory.state()
    assert state == plain(kind, labels, budget, power, seed)
    assert len(set(state["images"])) == len(state["images"]) == min(budget, (labels > 0).any(axis=1).sum())
    assert budget < 20 or any(len(sessions) > 1 for sessions in state["stored_in"])  # some came back


def test_the_rarest_label_decides_by_what_chance_an_image_comes_in():
    def of(n, sizes, shown=(True, True)):
        return chance(np.array([shown]), np.array([n]), np.array([sizes], float)).tolist()

    weight = 1 / (1 + math.exp(-1))  # of the rarer of two classes of which one image more has come
    assert of([4, 5], [8, 2]) == pytest.approx([weight * 1 + (1 - weight) * 2 / 5])  # a partition with room counts once
    assert of([4, 5], [1, 2], (True, False)) == [1 / 4]
    assert of([90_000, 80_000], [3, 8]) == pytest.approx([8 / 80_000])  # e^-80000 is no number
    assert of([70_000, 70_000], [7, 14]) == pytest.approx([1.5e-4])


# ---- what they are for ----


def kl(sizes, target):
    shares = sizes / sizes.sum()
    return float(sum(q * math.log(q / p) for q, p in zip(shares, target, strict=True) if q))


def shown_sizes(memory, labels, protocol=PROTOCOL):
    """Images of each class among the exemplars, counted where a session showed it as they were stored."""
    in_session = np.repeat(memory.stored(len(protocol.sessions)), 3, axis=1)
    return (labels[memory.images] & in_session).sum(axis=0)


def reservoir(labels, count, seed):
    """Sizes (9,) of so many of all images that come, drawn evenly."""
    came = [(row, session) for session in PROTOCOL.sessions for row in PROTOCOL.train_images(labels, session.index)]
    sizes = np.zeros(9)
    for place in np.random.default_rng(seed).choice(len(came), count, replace=False):
        row, session = came[place]
        sizes[session.columns] += labels[row, session.columns]
    return sizes


@pytest.mark.parametrize(("power", "part"), [(0.0, 0.05), (-0.2, 0.5)])
def test_the_memory_is_distributed_as_it_is_meant_to_be(power, part):
    """By the mean divergence over five streams, against one list a class and against a plain reservoir. With a power
    below 0 new classes ask at first for more than in the end, and old images that make room do not come back."""
    found = {kind: [] for kind in ("random", "reservoir", *KINDS)}
    for seed in range(5):
        labels = long_tail(seed, images=2000)
        target = np.array(wanted(labels.sum(axis=0).tolist(), power))
        found["reservoir"].append(kl(reservoir(labels, 90, seed), target))
        for kind in ("random", *KINDS):
            replay = Replay(budget=90, selection=kind, power=power if kind in KINDS else 0.0)
            memory = streamed(memory_of(replay), labels, seed)
            sizes = shown_sizes(memory, labels)
            found[kind].append(kl(sizes, target))
            assert len(memory.images) == 90
            if kind in KINDS and not power:
                assert sizes.min() >= 9, sizes  # the tail, of some 100 images, as the head of 1000
    mean = {kind: np.mean(values) for kind, values in found.items()}
    others = min(mean["random"], mean["reservoir"])
    assert mean["prs"] < part * others and mean["ocdm"] < part * others, mean


def test_a_class_that_is_rarer_than_its_target_is_kept_whole():
    labels = long_tail(0, images=2000)
    labels[:, 4] = False
    labels[[5, 900, 1800], 4] = True
    for kind in KINDS:
        memory = streamed(memory_of(Replay(budget=90, selection=kind)), labels)
        assert {5, 900, 1800} <= set(memory.images.tolist()), kind
        assert shown_sizes(memory, labels)[4] == 3


def test_coco_takes_seconds():
    """A tenth of it; pure loops would take minutes."""
    labels, protocol = long_tail(0, 8000, 80, 0.4, 0.96), make_protocol(tuple(map(str, range(80))), 0, 40)
    for kind in KINDS:
        began = time.process_time()
        memory = streamed(memory_of(Replay(budget=1000, selection=kind)), labels, protocol=protocol)
        assert time.process_time() - began < 10 and len(memory.images) == 1000


# ---- as every memory ----


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_as_if_never_interrupted_and_by_seed_alone(kind):
    labels, replay = long_tail(0), Replay(budget=40, selection=kind)
    whole = streamed(memory_of(replay), labels, 3)
    parts = streamed(memory_of(replay), labels, 3, sessions=[0])
    for t in (1, 2):
        np.random.seed(t)
        again = memory_of(replay)
        again.load_state(json.loads(json.dumps(parts.state())))
        assert again.state() == parts.state() and again.learned == 3 * t
        parts = streamed(again, labels, 3, sessions=[t])
    assert parts.state() == whole.state()
    assert streamed(memory_of(replay), labels, 4).state() != whole.state()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_memory_is_one_too(kind):
    memory, labels = memory_of(Replay(budget=5, selection=kind)), np.ones((3, 9), bool)
    memory.load_state(memory.state())
    assert memory.images.dtype == np.int64 and memory.lists == [] and memory.learned == 0
    assert labels[memory.images].shape == (0, 9) and memory.visible(labels, [0], [3]).shape == (0, 3)
    assert memory.keeps(0) and not memory_of(Replay(selection=kind)).keeps(9)
    memory.update(0, np.array([7, 9]), np.array([[0, 1], [0, 0]]), None, 0)  # an image without a class is none
    assert memory.lists == [[7]] and memory.remark(["ant", "bee", "of a session to come"]) == "no exemplar shows ant"


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_two_sessions_takes_one_place_and_shows_both(kind):
    labels = np.array([[1, 0, 1, 0, 0, 1]], bool)  # of sessions 0, 1 and 2, with two classes each
    protocol = make_protocol(tuple("abcdef"), 0, 2)
    starts, stops = [0, 2, 4], [2, 4, 6]
    for shown, expected in (("strict", [1, 1, 0, 0, 1, 1]), ("widened", [1] * 6)):
        memory = memory_of(Replay(budget=2, selection=kind, labels=shown))
        streamed(memory, labels, protocol=protocol, sessions=[0])
        memory.update(1, np.array([0]), np.zeros((1, 2), bool), None, 0)  # held out of that one
        streamed(memory, labels, protocol=protocol, sessions=[2])
        assert memory.lists == [[0]] and memory.state()["classes"] == [[0, 5]]
        assert memory.stored(4).tolist() == [[True, False, True, False]]
        everywhere = np.ones((1, 6), np.int8)  # what its labels would say
        assert memory.visible(everywhere, starts, stops).tolist() == [expected]
        assert memory.visible(everywhere, starts, stops, -1).tolist() == [[e or -1 for e in expected]]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["replay.selection=prs"], "replay.selection=prs needs replay.budget, not replay.per_class"),
        (["replay.selection=ocdm", "replay.per_class=5"], "replay.selection=ocdm needs replay.budget"),
        (["replay.selection=ocdm", "replay.per_class=5", "replay.budget=9"], "per_class or budget, not both"),
        (["replay.power=-0.1", "replay.budget=9"], "replay.power is of replay.selection=prs and ocdm"),
        (["replay.selection=prs", "replay.budget=9", "replay.power=-1.5"], "replay.power must be at least -1"),
        (["replay.selection=prs", "replay.budget=9", "replay.power=2"], "replay.power must be at most 1"),
        (["replay.selection=pr"], "Did you mean 'prs'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits_demo", overrides)
    assert words in str(caught.value)
