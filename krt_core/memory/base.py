"""What every memory can be asked, however it chooses its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..config import Replay


class Memory(ABC):
    """Images that are kept for replay, as rows of the training set, each with the sessions in which it was stored: what
    is stored in a session hides the labels of earlier ones."""

    lacks: ClassVar[str]  # what is the matter with `lacking`, in words

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.told: set[str] = set()  # what was lacking when it was asked

    # ---- what is stored ----

    @property
    @abstractmethod
    def lists(self) -> list[list[int]]:
        """Stored rows in lists: one a class where classes have rankings of their own, else all in one."""

    @property
    def images(self) -> np.ndarray:
        """(m,) stored rows, list by list; where the replay keeps duplicates, an image stored for two classes appears
        twice."""
        return np.array([image for rows in self.lists for image in rows], dtype=np.int64)

    @abstractmethod
    def stored(self, sessions: int) -> np.ndarray:
        """(m, sessions) bool: in which of the sessions so far each of ``images`` was stored."""

    @abstractmethod
    def renumber(self, lists: list[list[int]]) -> None:
        """Take other numbers for the images of ``lists``, as where rows count other images."""

    # ---- choosing ----

    @property
    @abstractmethod
    def learned(self) -> int:
        """Classes for which it has chosen so far."""

    @abstractmethod
    def keeps(self, classes: int) -> bool:
        """Does it store anything once so many classes are learned?"""

    @abstractmethod
    def update(
        self, session: int, images: np.ndarray, labels: np.ndarray, features: np.ndarray | None, seed: int
    ) -> None:
        """Choose exemplars among the images of the session that has just ended.

        images (m,) rows of the training set the session trained on (without replayed ones), labels (m, classes of the
        session) with 1 or True for what is there, features (m, channels) pooled backbone features with test transforms
        (None where they are not looked at).
        """

    @abstractmethod
    def lacking(self, classes: Sequence[str]) -> list[str]:
        """Classes (names in learning order) of which it has less than it should, in words."""

    def remark(self, classes: Sequence[str]) -> str:
        """For the log: `lacking`, as far as it was not told before, or nothing."""
        lacking = [name for name in self.lacking(classes) if name not in self.told]
        self.told.update(lacking)
        return f"{self.lacks} {', '.join(lacking)}" if lacking else ""

    # ---- what it shows ----

    def visible(self, labels: np.ndarray, starts: Sequence[int], stops: Sequence[int], hidden: int = 0) -> np.ndarray:
        """What the stored images show: (m, C seen) of the labels' kind; what they do not show reads ``hidden``.

        labels (n, all classes) of the training set in learning order; starts, stops: columns of each session so far.
        ``widened`` (published): the classes of the session an image was stored in and of all later ones; ``strict``: of
        that session only. Of an image that was stored in several, all that these show.
        """
        shows = self.stored(len(stops))  # (m, sessions)
        if self.replay.labels == "widened":
            shows = np.logical_or.accumulate(shows, axis=1)
        shown = labels[self.images, : stops[-1]]
        shown = shown.astype(np.int8) if hidden else shown
        shown[~np.repeat(shows, np.subtract(stops, starts), axis=1)] = hidden
        return shown

    # ---- what must survive a restart ----

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain JSON values."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None: ...
