"""A memory of fixed size that a stream of images leaves behind: what PRS and OCDM share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import Replay
from .base import Memory


class Online(Memory):
    """At most ``replay.budget`` images, of which it knows no more than the sessions showed that they were stored in.

    Each session's images come once, in a seeded order, with labels of the session's own classes. An image that comes
    back with a later session while it is stored takes no second place: stored again, it shows the labels of both.
    """

    lacks = "no exemplar shows"

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay)
        self.rows = np.zeros(0, np.int64)  # (m,) rows of the training set, in the order in which they were stored
        self.shown = np.zeros((0, 0), bool)  # (m, C seen) which classes each shows
        self.stored_in = np.zeros((0, 0), bool)  # (m, sessions)
        self.counts = np.zeros(0, np.int64)  # n (C seen,), images of the stream so far that showed each class

    @abstractmethod
    def choose(
        self, session: int, images: np.ndarray, shown: np.ndarray, counts: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Let a session's images (m,) come in, with the classes (m, C seen) that each shows; counts (m, C seen): n when
        it has come."""

    def update(
        self, session: int, images: np.ndarray, labels: np.ndarray, features: np.ndarray | None, seed: int
    ) -> None:
        rng, there, before = np.random.default_rng([seed, session]), labels > 0, len(self.counts)
        stream = rng.permutation(np.flatnonzero(there.any(axis=1)))
        new = ((0, 0), (0, there.shape[1]))
        self.shown = np.pad(self.shown, new)
        self.stored_in = np.pad(self.stored_in, ((0, 0), (0, session + 1 - self.stored_in.shape[1])))
        shown = np.pad(there[stream], ((0, 0), (before, 0)))
        counts = np.pad(self.counts, new[1]) + shown.cumsum(axis=0)
        self.counts = np.pad(self.counts, new[1]) + shown.sum(axis=0)
        self.choose(session, images[stream], shown, counts, rng)

    def store(self, session: int, images: np.ndarray, shown: np.ndarray) -> None:
        """Add images (k,) with the classes (k, C seen) that each shows."""
        new = np.ones(len(images), bool)
        for k, image in enumerate(images):
            place = np.flatnonzero(self.rows == image)  # it is there, or it is not
            self.shown[place] |= shown[k]
            self.stored_in[place, session] = True
            new[k] = not len(place)
        here = np.arange(self.stored_in.shape[1]) == session
        self.rows = np.concatenate([self.rows, images[new]])
        self.shown = np.concatenate([self.shown, shown[new]])
        self.stored_in = np.concatenate([self.stored_in, np.tile(here, (new.sum(), 1))])

    def drop(self, places: list[int]) -> None:
        """Remove the images at these places of ``rows``."""
        stays = np.ones(len(self.rows), bool)
        stays[places] = False
        self.rows, self.shown, self.stored_in = self.rows[stays], self.shown[stays], self.stored_in[stays]

    # ---- as every memory ----

    @property
    def lists(self) -> list[list[int]]:
        return [self.rows.tolist()] if len(self.rows) else []

    def stored(self, sessions: int) -> np.ndarray:
        return np.pad(self.stored_in, ((0, 0), (0, sessions - self.stored_in.shape[1])))

    def renumber(self, lists: list[list[int]]) -> None:
        self.rows = np.array([image for rows in lists for image in rows], np.int64)

    @property
    def learned(self) -> int:
        return len(self.counts)

    def keeps(self, classes: int) -> bool:
        return self.replay.budget > 0

    def lacking(self, classes: Sequence[str]) -> list[str]:
        return [name for name, images in zip(classes, self.shown.sum(axis=0), strict=False) if not images]

    def state(self) -> dict[str, Any]:
        return {
            "images": self.rows.tolist(),
            "classes": [np.flatnonzero(shown).tolist() for shown in self.shown],  # that each image shows
            "stored_in": [np.flatnonzero(sessions).tolist() for sessions in self.stored_in],
            "counts": self.counts.tolist(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.rows = np.array(state["images"], np.int64)
        self.counts = np.array(state["counts"], np.int64)
        self.shown = _marked(state["classes"], len(self.counts))
        self.stored_in = _marked(state["stored_in"], 1 + max((max(own) for own in state["stored_in"]), default=-1))


def _marked(lists: list[list[int]], columns: int) -> np.ndarray:
    """(len(lists), columns) bool: True in the columns that a row's list names."""
    marked = np.zeros((len(lists), columns), bool)
    for row, named in enumerate(lists):
        marked[row, named] = True
    return marked


def allocation(counts: np.ndarray, power: float) -> np.ndarray:
    """Target p_i = n_i^ρ / Σ_j n_j^ρ over the classes that have come; counts n (..., C) → (..., C)."""
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** power, 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def least(values: np.ndarray, slack: float, rng: np.random.Generator) -> int:
    """Place of the least of (n,) values; of several that are equal but for rounding (``slack``) one by chance."""
    places = np.flatnonzero(values <= values.min() + slack)
    return int(places[rng.integers(len(places))] if len(places) > 1 else places[0])
