"""The MLCIL protocol: which classes arrive when, and what each session may see.

A label matrix enters in the data set's own column order and leaves in *learning order*, so that "the classes seen so
far" are always the first C columns. Labels are bool, or int8 where some are unknown: 1, 0 and -1; images are chosen by
what is there alone. Source: Dong et al., ICCV 2023, section 4.1; splits ``B{base}-C{increment}``.

Images are *shared* there: one comes back with every session that has a label of it. In the field's second protocol they
are *disjoint*: an image is shown once, in the session of its last class, so that no later class hides in it (the
"disjoint" setting of Cermelli et al., CVPR 2020).

A run that `krt extend` has grown has sessions at its end whose images came with data of their own, and show all that
these are annotated with; what they are not annotated with is unknown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from .config import Protocol as Section
from .config import even, protocol_name
from .data import Halves, MultiLabelDataset
from .errors import ConfigError, DataError, did_you_mean
from .memory import Memory

# What a method sees: each session's labels alone; in each session anew all images and labels shown so far; or every
# label of every class, in one training.
Sees = Literal["session", "seen", "all"]


@dataclass(frozen=True)
class Session:
    """One step of the protocol. ``start`` and ``stop`` are columns in learning order."""

    index: int
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        """Columns of this session's classes."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Protocol:
    """``classes`` are names in learning order, ``order[i]`` is the data set's column of ``classes[i]``."""

    classes: tuple[str, ...]
    order: tuple[int, ...]
    base: int  # classes of the first session
    increment: int  # of every later one; 0 where they are uneven
    sessions: tuple[Session, ...]
    images: Literal["shared", "disjoint"] = "shared"
    added: int = 0  # sessions at the end that have data of their own
    arrived: np.ndarray | None = field(default=None, compare=False, repr=False)  # as of `MultiLabelDataset`

    def on(self, dataset: MultiLabelDataset, there: np.ndarray | None = None) -> Protocol:
        """The same for a data set: with its columns where it has all classes, in whatever order it names them, and with
        which data its images came. there (n,) bool: which of them sessions that were added have; None: all."""
        column = {name: place for place, name in enumerate(dataset.classes)}
        order = tuple(column[name] for name in self.classes) if column.keys() >= set(self.classes) else self.order
        arrived = dataset.arrived
        if arrived is not None and there is not None:
            arrived = np.where(there, arrived, -1)
        return replace(self, order=order, arrived=arrived)

    def arrival(self, session: int) -> int:
        """With which added data the images of a session came; 0: with the first."""
        return max(0, session + 1 - len(self.sessions) + self.added)

    @property
    def name(self) -> str:
        """As in "B0-C10" or "B40-C10"; with uneven sessions "4+3+5"."""
        return protocol_name(self.base, self.increment, tuple(s.stop - s.start for s in self.sessions), self.images)

    @property
    def as_published(self) -> tuple[int, int]:
        """Base and increment, by which published results are found; zeros, as of none, where images are disjoint."""
        return (self.base, self.increment) if self.images == "shared" else (0, 0)

    def reorder(self, labels: np.ndarray) -> np.ndarray:
        """(n, all classes) in the data set's order → (n, all classes) in learning order."""
        return labels[:, list(self.order)]

    def taught(self, session: int, sees: Sees) -> Session | None:
        """A session as a method learns it that sees so much; None where that is nothing new: after the only training of
        one that sees all labels at once."""
        if sees == "session":
            return self.sessions[session]
        if sees == "seen":
            return Session(session, 0, self.sessions[session].stop)
        return Session(0, 0, len(self.classes)) if session == 0 else None

    def class_names(self, session: int) -> tuple[str, ...]:
        return self.classes[self.sessions[session].columns]

    def train_images(self, labels: np.ndarray, session: int) -> np.ndarray:
        """Indices of the images with at least one label of the session's classes and, where images are disjoint, none
        of a later one; of a session that was added all that came with it, those that show nothing too. labels (n, C)
        in learning order."""
        current, place = self.sessions[session], self.arrival(session)
        if place and self.arrived is not None:
            return np.flatnonzero(self.arrived == place)
        chosen = (labels[:, current.columns] > 0).any(axis=1)
        if self.images == "disjoint":
            chosen &= ~(labels[:, current.stop :] > 0).any(axis=1)
        if self.arrived is not None:
            chosen &= self.arrived == 0
        return np.flatnonzero(chosen)

    def shown_images(self, labels: np.ndarray, session: int) -> np.ndarray:
        """Indices of the images that came with the sessions up to this one; labels (n, C) in learning order."""
        if self.images == "shared" and self.arrived is None:  # in one look
            return np.flatnonzero((labels[:, : self.sessions[session].stop] > 0).any(axis=1))
        return np.unique(np.concatenate([self.train_images(labels, t) for t in range(session + 1)]))

    def visible_labels(self, labels: np.ndarray, session: int, hidden: int = 0) -> np.ndarray:
        """Label absence: (n, C seen) of which only the session's own columns are kept; older ones read ``hidden``,
        whether they are known or not. A session that was added shows what is known."""
        current = self.sessions[session]
        if self.arrival(session):
            return labels[:, : current.stop]
        visible = np.full((len(labels), current.stop), hidden, dtype=labels.dtype)
        visible[:, current.columns] = labels[:, current.columns]
        return visible

    def test_subsets(self, labels: np.ndarray, session: int) -> dict[str, tuple[np.ndarray, slice]]:
        """Rows and columns on which *base*, *seen* and *new* are scored after a session."""
        columns = {
            "base": self.sessions[0].columns,
            "seen": slice(0, self.sessions[session].stop),
            "new": self.sessions[session].columns,
        }
        return {key: (np.flatnonzero((labels[:, cols] > 0).any(axis=1)), cols) for key, cols in columns.items()}


def make_protocol(
    classes: tuple[str, ...],
    base: int,
    increment: int,
    order_seed: int | None = None,
    order: tuple[str, ...] = (),
    sizes: tuple[int, ...] = (),
    images: Literal["shared", "disjoint"] = "shared",
) -> Protocol:
    """Cut a class list into sessions.

    classes: the data set's names in its own column order. base 0 means as many as ``increment``. The last session takes
    what is left, also when that is less than ``increment``. order: every name, in learning order; without it they are
    learned alphabetically, or in a shuffle by ``order_seed``. sizes: classes of each session, instead of base and
    increment. Raises ConfigError if the numbers or names do not fit the list.
    """
    if twice := sorted(name for name, times in Counter(classes).items() if times > 1):
        raise DataError(f"Class names must be unique, found twice: {twice}.")
    base = base or increment
    if sizes and sum(sizes) != len(classes):
        raise ConfigError(f"protocol.sizes add up to {sum(sizes)}, but the data set has {len(classes)} classes.")
    if not sizes and not 1 <= base <= len(classes):
        raise ConfigError(f"protocol.base is {base}, but the data set has {len(classes)} classes.")
    columns = _named(classes, order) if order else sorted(range(len(classes)), key=lambda column: classes[column])
    if order_seed is not None:
        np.random.default_rng(order_seed).shuffle(columns)
    if sizes:
        stops = np.cumsum(sizes).tolist()
        base, increment = even(sizes)
    else:
        stops = [base, *range(base + increment, len(classes), increment)]
        if stops[-1] != len(classes):
            stops.append(len(classes))
    sessions = tuple(Session(i, start, stop) for i, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)))
    return Protocol(tuple(classes[i] for i in columns), tuple(columns), base, increment, sessions, images)


def protocol_of(section: Section, classes: tuple[str, ...], added: int = 0) -> Protocol:
    """`make_protocol` as the ``protocol`` section of an experiment says. added: sessions at the end that were added."""
    s = section
    made = make_protocol(classes, s.base, s.increment, s.order_seed, s.order, s.sizes, s.images)
    return replace(made, added=added)


def _named(classes: tuple[str, ...], order: tuple[str, ...]) -> list[int]:
    """Columns of the names of ``protocol.order``, each class once."""
    column = {name: place for place, name in enumerate(classes)}
    for name in order:
        if name not in column:
            raise ConfigError(f"protocol.order: there is no class {name!r}.{did_you_mean(name, classes)}")
    twice, there = [name for name, times in Counter(order).items() if times > 1], set(order)
    left = [name for name in classes if name not in there]
    if twice:
        raise ConfigError(f"protocol.order names {twice[0]!r} twice.")
    if left:
        raise ConfigError(
            f"protocol.order leaves out {', '.join(left)}: name every class, or choose some with data.classes."
        )
    return [column[name] for name in order]


def check_labels(protocol: Protocol, labels: np.ndarray, what: str, train: bool = False) -> None:
    """Raise DataError, naming the classes, if a class has no image (of its own session, with ``train``); labels (n, C)
    in learning order."""
    labels = labels > 0
    counts = labels.sum(axis=0)
    if train and protocol.images == "disjoint":
        own = [labels[protocol.train_images(labels, s.index)][:, s.columns].sum(axis=0) for s in protocol.sessions]
        counts = np.concatenate(own)
    empty = [name for name, count in zip(protocol.classes, counts, strict=True) if not count]
    if empty and not labels.any(axis=0).all():
        raise DataError(
            f"{what}: no image is labelled with {', '.join(empty)}. "
            "Leave such classes out with data.classes=[...], or check the annotations."
        )
    if empty:
        raise DataError(
            f"{what}: every image of {', '.join(empty)} also shows a class that is learned later, so that with "
            "protocol.images=disjoint none is left. Learn them later (protocol.order), or share the images."
        )


def learned_labels(protocol: Protocol, halves: Halves) -> np.ndarray:
    """(n, C) labels in learning order of all training images; those that are held out have none, so that no session has
    them. DataError as `check_labels`, for the training and for the test images."""
    train, held, test = halves
    labels = protocol.reorder(train.truth) * ~held[:, None]
    if protocol.added:  # what came before was checked in its time, and need not be there any more
        check_added(protocol, labels, train)
        return labels
    check_labels(protocol, labels, f"{train.name} train", True)
    if test is not None:
        check_labels(protocol, protocol.reorder(test.truth), f"{test.name} test")
    return labels


def check_added(protocol: Protocol, labels: np.ndarray, train: MultiLabelDataset) -> None:
    """DataError where the last session, which was added, shows a class of its own in no image."""
    last = protocol.sessions[-1]
    own = labels[protocol.train_images(labels, last.index)]
    shown = (own > 0).any(axis=0)[last.columns]
    empty = [name for name, there in zip(protocol.class_names(last.index), shown, strict=True) if not there]
    if empty or not len(own):
        raise DataError(
            f"{train.source or train.root}: no image to learn from shows {', '.join(empty) or 'anything'}. Leave such "
            "classes out with classes=[...], or check the annotations."
        )


@dataclass(frozen=True)
class View:
    """Rows (m,) of the training set and their labels (m, C seen) as the session may see them: bool, or int8 where some
    are unknown (-1)."""

    rows: np.ndarray
    labels: np.ndarray
    own: int  # the first `own` rows are the session's, the rest replayed exemplars


def session_view(
    protocol: Protocol, labels: np.ndarray, index: int, memory: Memory | None, sees: Sees, hidden: int = 0,
    oracle: bool = False,
) -> View:  # fmt: skip
    """The view of session ``index``.

    labels (n, C) of the whole training set in learning order; memory None: no replay. sees "all": the first session
    sees every image with every label, later ones see nothing (joint training); "seen": each session sees every image
    shown so far with the labels of every class so far (cumulative training). hidden: what labels of classes learned
    before read where the session does not show them: 0, absent, or -1, unknown. oracle: they read what is
    true instead.
    """
    if sees == "all":
        rows = np.flatnonzero((labels > 0).any(axis=1)) if index == 0 else np.zeros(0, np.int64)
        return View(rows, labels[rows], len(rows))
    if sees == "seen":
        rows = protocol.shown_images(labels, index)
        return View(rows, labels[rows, : protocol.sessions[index].stop], len(rows))
    rows, seen = protocol.train_images(labels, index), labels[:, : protocol.sessions[index].stop]
    own = labels[rows].astype(np.int8) if hidden else labels[rows]
    visible = own[:, : seen.shape[1]] if oracle else protocol.visible_labels(own, index, hidden)
    if memory is None or not len(stored := memory.images):
        return View(rows, visible, len(rows))
    starts, stops = zip(*((s.start, s.stop) for s in protocol.sessions[: index + 1]), strict=True)
    shown = seen[stored] if oracle else memory.visible(labels, starts, stops, hidden)
    return View(np.concatenate([rows, stored]), np.concatenate([visible, shown]), len(rows))


def planned_images(protocol: Protocol, labels: np.ndarray, index: int, memory: Memory | None, sees: Sees) -> int:
    """How many images session ``index`` will show, as far as is known before it; arguments as of `session_view`."""
    if sees == "all":
        return int((labels > 0).any(axis=1).sum()) if index == 0 else 0
    if sees == "seen":
        return len(protocol.shown_images(labels, index))
    old = protocol.sessions[index].start
    stored = (memory.replay.budget or memory.replay.per_class * old) if memory and index else 0
    return len(protocol.train_images(labels, index)) + stored
