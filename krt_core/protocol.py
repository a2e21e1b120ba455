"""The MLCIL protocol: which classes arrive when, and what each session may see.

A label matrix enters in the data set's own column order and leaves in *learning order*, so that "the classes seen so
far" are always the first C columns. Source: Dong et al., ICCV 2023, section 4.1; splits ``B{base}-C{increment}``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, DataError


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
