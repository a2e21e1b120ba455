import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from krt_core.config import Replay, load_experiment
from krt_core.errors import ConfigError, DataError
from krt_core.memory import Ranked
from krt_core.protocol import (
    Session,
    View,
    check_labels,
    make_protocol,
    planned_images,
    protocol_of,
    session_view,
)  # fmt: skip
from krt_core.runs.shown import Tally

LETTERS = tuple("hgfedcba")


def test_alphabetical_order_and_cuts():
    p = make_protocol(LETTERS, base=0, increment=2)
    assert p.classes == tuple("abcdefgh") and p.name == "B0-C2"
    assert [(s.start, s.stop) for s in p.sessions] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [(s.start, s.stop) for s in make_protocol(LETTERS, 4, 3).sessions] == [(0, 4), (4, 7), (7, 8)]
    assert make_protocol(LETTERS, 4, 3).name == "B4-C3"
    assert len(make_protocol(LETTERS, 8, 2).sessions) == 1


PUBLISHED = [(80, 0, 10, 8), (80, 40, 10, 5), (80, 20, 4, 16), (80, 0, 5, 16),
             (20, 0, 4, 5), (20, 10, 2, 6), (20, 5, 3, 6), (20, 4, 2, 9)]  # fmt: skip


@pytest.mark.parametrize(("classes", "base", "increment", "sessions"), PUBLISHED)
def test_published_protocols_have_their_number_of_sessions(classes, base, increment, sessions):
    assert len(make_protocol(tuple(f"c{i:02d}" for i in range(classes)), base, increment).sessions) == sessions


def test_seeded_order_is_a_repeatable_shuffle():
    one, two = make_protocol(LETTERS, 0, 2, order_seed=1), make_protocol(LETTERS, 0, 2, order_seed=1)
    assert one.classes == two.classes != make_protocol(LETTERS, 0, 2).classes
    assert sorted(one.classes) == sorted(LETTERS)
    labels = np.eye(8, dtype=bool)
    assert [LETTERS[i] for i in one.order] == list(one.classes)
    assert (one.reorder(labels).argmax(axis=1) == [one.classes.index(name) for name in LETTERS]).all()


def test_label_absence():
    p = make_protocol(tuple("abcd"), 0, 2)
    labels = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    assert p.train_images(labels, 0).tolist() == [0, 1]
    assert p.train_images(labels, 1).tolist() == [0, 2]  # image 0 comes back
    assert p.visible_labels(labels[[0, 2]], 1).tolist() == [[False, False, True, False], [False, False, False, True]]
    assert p.visible_labels(labels[[0, 1]], 0).tolist() == [
        [True, False],
        [False, True],
    ]  # the future does not exist yet
    subsets = p.test_subsets(labels, 1)
    assert [rows.tolist() for rows, _ in subsets.values()] == [[0, 1], [0, 1, 2], [0, 2]]
    assert subsets["seen"][1] == slice(0, 4) and subsets["new"][1] == slice(2, 4)


def test_impossible_protocols_are_refused():
    with pytest.raises(ConfigError, match="base is 9"):
        make_protocol(LETTERS, 9, 2)
    with pytest.raises(DataError, match="'a'"):
        make_protocol(("a", "a", "b"), 0, 1)
    with pytest.raises(DataError, match="labelled with b"):
        check_labels(make_protocol(("a", "b"), 0, 1), np.array([[True, False]]), "tiny train")


@pytest.mark.skipif(
    not os.environ.get("KRT_COCO_LABELS"), reason="KRT_COCO_LABELS names no file of COCO train2014 labels"
)
def test_coco_sessions_have_the_published_sizes():
    with np.load(Path(os.environ["KRT_COCO_LABELS"]), allow_pickle=False) as stored:
        classes = tuple(map(str, stored["classes"]))
        labels = np.unpackbits(stored["labels"], axis=1, count=len(classes)).astype(bool)
    expected = {
        (0, 10): [18599, 28071, 27930, 17218, 51104, 18851, 16845, 21750],
        (40, 10): [60611, 51104, 18851, 16845, 21750],
    }
    for (base, increment), sizes in expected.items():
        p = make_protocol(classes, base, increment)
        assert [len(p.train_images(p.reorder(labels), s.index)) for s in p.sessions] == sizes


def test_an_order_by_names():
    protocol = make_protocol(("a", "b", "c", "d"), 0, 2, order=("d", "b", "a", "c"))
    assert protocol.classes == ("d", "b", "a", "c") and protocol.order == (3, 1, 0, 2)
    for order, words in (
        (("d", "b", "a"), "leaves out c"), (("d", "b", "a", "c", "c"), "'c' twice"),
        (("d", "b", "a", "x"), "class 'x'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            make_protocol(("a", "b", "c", "d"), 0, 2, order=order)


@pytest.mark.parametrize(
    ("sizes", "name", "base", "increment"),
    [((3, 1, 2), "3+1+2", 3, 0), ((2, 2, 2), "B0-C2", 2, 2), ((4, 1, 1), "B4-C1", 4, 1), ((1, 3, 2), "B1-C3", 1, 3),
     ((6,), "B0-C6", 6, 6), ((2, 1, 3), "2+1+3", 2, 0)],
)  # fmt: skip
def test_uneven_sessions(sizes, name, base, increment):
    protocol = make_protocol(tuple("abcdef"), 0, 10, sizes=sizes)
    assert [s.stop - s.start for s in protocol.sessions] == list(sizes)
    assert (protocol.name, protocol.base, protocol.increment) == (name, base, increment)
    section = load_experiment("digits_demo", {"protocol.sizes": list(sizes)}).protocol
    assert section.name == name and protocol_of(section, tuple("abcdef")) == protocol
    if increment:
        assert protocol.sessions == make_protocol(tuple("abcdef"), base, increment).sessions
    with pytest.raises(ConfigError, match="add up to 6, but the data set has 5"):
        make_protocol(tuple("abcde"), 0, 10, sizes=sizes)


def test_disjoint_sessions_share_no_image_and_hide_no_later_class():
    rng = np.random.default_rng(0)
    labels = rng.random((200, 6)) < 0.3
    labels = labels[labels.any(axis=1)]
    protocol = make_protocol(tuple("abcdef"), 0, 2, images="disjoint")
    assert protocol.name == "B0-C2 disjoint"
    assert protocol.as_published == (0, 0)  # no published number is on such a split
    parts = [protocol.train_images(labels, t) for t in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))  # each image once
    for rows, session in zip(parts, protocol.sessions, strict=True):
        assert labels[rows][:, session.columns].any(axis=1).all() and not labels[rows][:, session.stop :].any()
        assert not protocol.visible_labels(labels[rows], session.index)[:, : session.start].any()
    shown = sum(labels[rows][:, s.columns].sum() for rows, s in zip(parts[:2], protocol.sessions, strict=False))
    assert Tally(protocol, labels).frequency(2).sum() == pytest.approx(shown / len(labels))
    assert len(parts[0]) < len(make_protocol(tuple("abcdef"), 0, 2).train_images(labels, 0))


def test_a_class_that_disjoint_sessions_leave_without_an_image_is_named():
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    check_labels(make_protocol(("a", "b", "c"), 0, 1), labels, "train", True)
    disjoint = make_protocol(("a", "b", "c"), 0, 1, images="disjoint")
    with pytest.raises(DataError, match="every image of a also shows a class that is learned later"):
        check_labels(disjoint, labels, "train", True)
    check_labels(disjoint, labels, "test")
    with pytest.raises(ValueError):
        check_labels(disjoint, labels[:, :2], "test")  # a column for each class


def test_frequency_of_old_classes_uses_only_what_was_shown():
    labels = np.zeros((10, 4), bool)
    labels[:4, 0] = labels[3:6, 1] = labels[5:, 2] = labels[8:, 3] = True
    protocol = make_protocol(tuple("abcd"), 2, 1)
    assert Tally(protocol, labels).frequency(1).tolist() == [0.4, 0.3]  # ten images by then: four with a, three with b
    hidden = labels.copy()
    hidden[:, 3] = ~hidden[:, 3]  # a class of the future
    assert Tally(protocol, hidden).frequency(1).tolist() == [0.4, 0.3]
    assert len(Tally(protocol, labels).frequency(0)) == 0
    one = np.eye(1, 4, dtype=bool)  # a single image, of class a
    assert Tally(protocol, one).frequency(1).tolist() == [1, 0] and Tally(protocol, ~one & one).frequency(1).sum() == 0


# Six images of four classes, learned as a and b, then c, then d; the last one has no label.
SIX = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=bool)
ABCD = make_protocol(tuple("abcd"), 2, 1)


def seen(index, memory=None, sees="session"):
    """Rows, labels as words and the number of its own rows of a session's view."""
    view = session_view(ABCD, SIX, index, memory, sees)
    return view.rows.tolist(), ["".join("abcd"[c] for c in np.flatnonzero(line)) for line in view.labels], view.own


def test_what_a_session_sees_worked_by_hand():
    assert seen(0) == seen(0, Ranked(Replay(per_class=1))) == ([0, 1, 2], ["a", "a", "b"], 3)
    assert seen(1) == ([1, 3, 4], ["c", "c", "c"], 3)
    two = Ranked(Replay(per_class=1), [[0], [2]], [0, 0])
    assert seen(1, two) == ([1, 3, 4, 0, 2], ["c", "c", "c", "a", "b"], 3)
    three = Ranked(Replay(per_class=1), [[1], [2], [4]], [0, 0, 1])
    assert seen(2, three) == ([2, 4, 1, 2, 4], ["d", "d", "ac", "bd", "cd"], 2)  # the stored ones with later classes
    views = [session_view(ABCD, SIX, t, None, "session").labels for t in range(3)]
    assert [y.shape for y in views] == [(3, 2), (3, 3), (2, 4)] and {y.dtype for y in views} == {np.dtype(bool)}


def test_a_method_that_sees_everything_learns_once():
    assert seen(0, sees="all") == ([0, 1, 2, 3, 4], ["a", "ac", "bd", "c", "cd"], 5)
    assert seen(1, sees="all") == ([], [], 0) and session_view(ABCD, SIX, 1, None, "all").labels.shape == (0, 4)
    assert ABCD.taught(0, "all") == Session(0, 0, 4) and ABCD.taught(1, "all") is None
    assert [ABCD.taught(t, "session") for t in range(3)] == [Session(0, 0, 2), Session(1, 2, 3), Session(2, 3, 4)]


def test_a_method_that_sees_all_so_far_learns_every_session_anew():
    assert seen(0, sees="seen") == ([0, 1, 2], ["a", "a", "b"], 3)
    assert seen(1, Ranked(Replay(per_class=1), [[0], [2]], [0, 0]), "seen") == (
        [0, 1, 2, 3, 4],
        ["a", "ac", "b", "c", "c"],
        5,
    )
    assert seen(2, sees="seen") == ([0, 1, 2, 3, 4], ["a", "ac", "bd", "c", "cd"], 5)
    assert [ABCD.taught(t, "seen") for t in range(3)] == [Session(0, 0, 2), Session(1, 0, 3), Session(2, 0, 4)]
    disjoint = make_protocol(tuple("abcd"), 2, 1, images="disjoint")
    assert [session_view(disjoint, SIX, t, None, "seen").rows.tolist() for t in range(3)] == [
        [0], [0, 1, 3], [0, 1, 2, 3, 4],
    ]  # fmt: skip
    assert [planned_images(disjoint, SIX, t, None, "seen") for t in range(3)] == [1, 3, 5]


def test_how_many_images_a_session_will_show():
    def planned(memory, sees="session"):
        return [planned_images(ABCD, SIX, index, memory, sees) for index in range(3)]

    assert planned(None) == planned(Ranked(Replay())) == [3, 3, 2]
    assert planned(Ranked(Replay(per_class=2))) == [3, 3 + 4, 2 + 6]  # two of each older class
    assert planned(Ranked(Replay(budget=5))) == [3, 3 + 5, 2 + 5]
    assert planned(None, "all") == [5, 0, 0] and planned(Ranked(Replay(per_class=2)), "seen") == [3, 5, 5]


def test_names_of_a_session_and_of_the_published_split():
    assert [ABCD.class_names(t) for t in range(3)] == [("a", "b"), ("c",), ("d",)]
    assert ABCD.as_published == (2, 1)


def test_nothing_of_a_protocol_can_be_changed_behind_a_run():
    for made, field in ((ABCD, "base"), (ABCD.sessions[0], "stop"), (View(np.zeros(0), np.zeros(0), 0), "own")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, field, 9)


def test_unknown_labels_choose_no_image_and_are_shown_as_such():
    p, disjoint = make_protocol(tuple("abcd"), 0, 2), make_protocol(tuple("abcd"), 0, 2, images="disjoint")
    labels = np.array([[1, -1, 1, -1], [0, 1, -1, -1], [-1, -1, 0, 1], [-1, -1, -1, -1], [1, 0, -1, 0]], np.int8)
    assert [p.train_images(labels, t).tolist() for t in (0, 1)] == [[0, 1, 4], [0, 2]]
    assert [disjoint.train_images(labels, t).tolist() for t in (0, 1)] == [[1, 4], [0, 2]]
    first, second = (session_view(p, labels, t, None, "session") for t in (0, 1))
    assert first.labels.dtype == np.int8 and first.labels.tolist() == [[1, -1], [0, 1], [1, 0]]
    assert second.labels.tolist() == [[0, 0, 1, -1], [0, 0, 0, 1]]  # what is hidden is absent, known or not
    masked = session_view(p, labels, 1, None, "session", -1)
    assert masked.labels.tolist() == [[-1, -1, 1, -1], [-1, -1, 0, 1]]
    assert session_view(p, labels > 0, 0, None, "session").labels.dtype == bool
    everything = session_view(p, labels, 0, None, "all")
    assert everything.rows.tolist() == [0, 1, 2, 4] and (everything.labels == labels[everything.rows]).all()
    assert planned_images(p, labels, 0, None, "all") == 4 and planned_images(p, labels, 1, None, "session") == 2
    subsets = {key: rows.tolist() for key, (rows, _) in p.test_subsets(labels, 1).items()}
    assert subsets == {"base": [0, 1, 4], "seen": [0, 1, 2, 4], "new": [0, 2]}
    with pytest.raises(DataError, match="no image is labelled with c"):
        check_labels(p, np.where(labels == 1, [1, 1, -1, 1], labels), "tiny train")
    # Of the 3 images of the first session a is known of all (2 show it), b of 2 (1 shows it); 4 images so far.
    assert Tally(p, labels).frequency(1).tolist() == [2 / 4, 1.5 / 4]


def test_an_exemplar_shows_what_is_unknown_of_it():
    p, memory = make_protocol(tuple("abcdef"), 0, 2), Ranked(Replay(per_class=1), [[1], [2], [0], [3]], [0, 0, 1, 1])
    labels = np.array([[1, 0, 1, -1, 0, -1], [1, -1, 0, 0, -1, 1], [0, 1, -1, 1, 1, 0], [-1, 0, 0, 1, 0, 0]], np.int8)
    view = session_view(p, labels, 2, memory, "session")
    assert view.rows.tolist() == [1, 2, 1, 2, 0, 3] and view.own == 2
    assert view.labels[2:].tolist() == [*labels[[1, 2]].tolist(), [0, 0, 1, -1, 0, -1], [0, 0, 0, 1, 0, 0]]
    hidden = session_view(p, labels, 2, memory, "session", -1).labels[2:]
    assert hidden[:2].tolist() == labels[[1, 2]].tolist() and hidden[2:, :2].tolist() == [[-1, -1]] * 2
    strict = Ranked(Replay(per_class=1, labels="strict"), memory.ranked, memory.sessions)
    assert session_view(p, labels, 2, strict, "session").labels[2].tolist() == [1, -1, 0, 0, 0, 0]
