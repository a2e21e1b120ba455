"""The MLCIL protocol: which classes arrive when, and what each session may see.

A label matrix enters in the data set's own column order and leaves in *learning order*, so that "the classes seen so
far" are always the first C columns. Source: Dong et al., ICCV 2023, section 4.1; splits ``B{base}-C{increment}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import ConfigError, DataError
from .memory import Memory


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
    base: int
    increment: int
    sessions: tuple[Session, ...]

    @property
    def name(self) -> str:
        return f"B{self.base if self.base != self.increment else 0}-C{self.increment}"

    def reorder(self, labels: np.ndarray) -> np.ndarray:
        """(n, all classes) in the data set's order → (n, all classes) in learning order."""
        return labels[:, list(self.order)]

    def class_names(self, session: int) -> tuple[str, ...]:
        return self.classes[self.sessions[session].columns]

    def train_images(self, labels: np.ndarray, session: int) -> np.ndarray:
        """Indices of the images with at least one label of the session's classes; labels (n, C) in learning order."""
        return np.flatnonzero(labels[:, self.sessions[session].columns].any(axis=1))

    def visible_labels(self, labels: np.ndarray, session: int) -> np.ndarray:
        """Label absence: (n, C seen) of which only the session's own columns are kept, older ones read False."""
        current = self.sessions[session]
        visible = np.zeros((len(labels), current.stop), dtype=bool)
        visible[:, current.columns] = labels[:, current.columns]
        return visible

    def test_subsets(self, labels: np.ndarray, session: int) -> dict[str, tuple[np.ndarray, slice]]:
        """Rows and columns on which *base*, *seen* and *new* are scored after a session."""
        columns = {
            "base": self.sessions[0].columns,
            "seen": slice(0, self.sessions[session].stop),
            "new": self.sessions[session].columns,
        }
        return {key: (np.flatnonzero(labels[:, cols].any(axis=1)), cols) for key, cols in columns.items()}


def make_protocol(classes: tuple[str, ...], base: int, increment: int, order_seed: int | None = None) -> Protocol:
    """Cut a class list into sessions.

    classes: the data set's names in its own column order. base 0 means as many as ``increment``. The last session takes
    what is left, also when that is less than ``increment``. Raises ConfigError if the numbers do not fit the list.
    """
    if len(set(classes)) != len(classes):
        raise DataError(
            f"Class names must be unique, found twice: {sorted({c for c in classes if classes.count(c) > 1})}."
        )
    base = base or increment
    if not 1 <= base <= len(classes):
        raise ConfigError(f"protocol.base is {base}, but the data set has {len(classes)} classes.")
    order = sorted(range(len(classes)), key=lambda column: classes[column])
    if order_seed is not None:
        np.random.default_rng(order_seed).shuffle(order)
    stops = [base, *range(base + increment, len(classes), increment)]
    if stops[-1] != len(classes):
        stops.append(len(classes))
    sessions = tuple(Session(i, start, stop) for i, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)))
    return Protocol(tuple(classes[i] for i in order), tuple(order), base, increment, sessions)


def check_labels(protocol: Protocol, labels: np.ndarray, what: str) -> None:
    """Raise DataError, naming the classes, if a class has no image; labels (n, C) in learning order."""
    empty = [name for name, count in zip(protocol.classes, labels.sum(axis=0), strict=True) if not count]
    if empty:
        raise DataError(
            f"{what}: no image is labelled with {', '.join(empty)}. "
            "Leave such classes out with data.classes=[...], or check the annotations."
        )


@dataclass(frozen=True)
class View:
    """Rows (m,) of the training set and their labels (m, C seen) bool as the session may see them."""

    rows: np.ndarray
    labels: np.ndarray
    own: int  # the first `own` rows are the session's, the rest replayed exemplars


def session_view(
    protocol: Protocol, labels: np.ndarray, index: int, memory: Memory | None, sees: Literal["session", "all"]
) -> View:
    """The view of session ``index``.

    labels (n, C) bool of the whole training set in learning order; memory None: no replay. sees "all": the first
    session sees every image with every label, later ones see nothing (joint training).
    """
    if sees == "all":
        rows = np.flatnonzero(labels.any(axis=1)) if index == 0 else np.zeros(0, np.int64)
        return View(rows, labels[rows], len(rows))
    rows = protocol.train_images(labels, index)
    visible = protocol.visible_labels(labels[rows], index)
    stored = memory.images if memory else np.zeros(0, np.int64)
    if not len(stored):
        return View(rows, visible, len(rows))
    starts, stops = zip(*((s.start, s.stop) for s in protocol.sessions[: index + 1]), strict=True)
    shown = memory.visible(labels, starts, stops)
    return View(np.concatenate([rows, stored]), np.concatenate([visible, shown]), len(rows))


def seen_frequency(protocol: Protocol, labels: np.ndarray, index: int) -> np.ndarray:
    """(C_old,) how often each class of the sessions before ``index`` was shown, as a share of all images seen so far.

    labels (n, C) of the training set in learning order; of these only what the sessions really showed is used: the
    positives of a class in its own session, and which images came by until now. Images of a session are picked by its
    classes, so an old class is rarer among them where classes seldom meet: this is an estimate, not the truth.
    """
    stop = protocol.sessions[index].stop
    images = labels[:, :stop].any(axis=1).sum()
    return labels[:, : protocol.sessions[index].start].sum(axis=0) / max(int(images), 1)
