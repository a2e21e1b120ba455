"""A ranked list of images for each class, best first: by herding, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..config import Replay
from .base import Memory


@dataclass
class Ranked(Memory):
    """Each class keeps its own list, and remembers the session in which it was learned."""

    replay: Replay
    ranked: list[list[int]] = field(default_factory=list)  # per class in learning order
    sessions: list[int] = field(default_factory=list)  # of those classes
    told: set[str] = field(default_factory=set, compare=False, repr=False)
    lacks: ClassVar[str] = "fewer images than exemplars asked for:"

    @property
    def lists(self) -> list[list[int]]:
        return self.ranked

    @property
    def stored_in(self) -> np.ndarray:
        """(m,) session in which each of ``images`` was stored."""
        pairs = zip(self.sessions, self.ranked, strict=True)
        return np.array([session for session, ranking in pairs for _ in ranking], dtype=np.int64)

    def stored(self, sessions: int) -> np.ndarray:
        return np.eye(sessions, dtype=bool)[self.stored_in]

    def renumber(self, lists: list[list[int]]) -> None:
        self.ranked = lists

    @property
    def learned(self) -> int:
        return len(self.ranked)

    def keeps(self, classes: int) -> bool:
        return self.quota(classes) > 0

    def quota(self, classes: int) -> int:
        """Images each of ``classes`` classes may keep."""
        return self.replay.per_class or self.replay.budget // max(classes, 1)

    def update(
        self, session: int, images: np.ndarray, labels: np.ndarray, features: np.ndarray | None, seed: int
    ) -> None:
        """For each class of the session as many of its images as its quota says (features None: at random). With a
        fixed budget the older rankings are cut to the new quota."""
        total = len(self.ranked) + labels.shape[1]
        quota = self.quota(total)
        if not quota:
            return
        if self.replay.budget:
            self.ranked = [ranking[:quota] for ranking in self.ranked]
        rng = np.random.default_rng([seed, session])
        taken = set(self.images.tolist())
        for column in range(labels.shape[1]):
            candidates = np.flatnonzero(labels[:, column] > 0)
            if not self.replay.duplicates:
                candidates = np.array([row for row in candidates if int(images[row]) not in taken], dtype=np.int64)
            if self.replay.selection == "herding" and features is not None:
                chosen = candidates[herding(features, quota, rows=candidates)]
            else:
                chosen = rng.permutation(candidates)[:quota]
            ranking = [int(images[row]) for row in chosen]
            taken.update(ranking)
            self.ranked.append(ranking)
            self.sessions.append(session)

    def lacking(self, classes: Sequence[str]) -> list[str]:
        """Classes (names in learning order) with fewer images than their quota, and how many, as in "cat (3)"."""
        quota, stored = self.quota(len(self.ranked)), zip(classes, self.ranked, strict=False)
        return [f"{name} ({len(ranking)})" for name, ranking in stored if len(ranking) < quota]

    def state(self) -> dict[str, Any]:
        return {"ranked": self.ranked, "sessions": self.sessions}

    def load_state(self, state: dict[str, Any]) -> None:
        self.ranked = [list(map(int, ranking)) for ranking in state["ranked"]]
        self.sessions = [int(session) for session in state["sessions"]]


BLOCK = 4096  # rows that are normalised at a time


def herding(features: np.ndarray, count: int, max_steps: int = 1000, rows: np.ndarray | None = None) -> np.ndarray:
    """Order of up to ``count`` rows whose running mean stays closest to the mean of all.

    features (m, channels), L2-normalised inside; rows: of these only, which are then counted from 0. Fewer rows than
    ``count``: all of them, ranked. For unit vectors the row that brings the mean closest is the one with the largest
    product with the residual k·mean − sum. As published, a step may land on a row that is already chosen: it then
    counts for the residual once more but adds no exemplar.
    Source: Rebuffi et al., iCaRL, CVPR 2017, algorithm 4.
    """
    normed = features.copy() if rows is None else features[rows]  # the only copy
    if not len(normed):
        return np.zeros(0, dtype=np.int64)
    count = min(count, len(normed))
    for start in range(0, len(normed), BLOCK):
        block = normed[start : start + BLOCK]
        block /= np.linalg.norm(block, axis=1, keepdims=True) + 1e-8  # as published; decides between equals
    mean = normed.mean(axis=0)
    residual = mean.copy()
    chosen: dict[int, None] = {}  # an ordered set
    for _ in range(max_steps):
        if len(chosen) == count:
            break
        best = int((normed @ residual).argmax())
        chosen[best] = None
        residual = residual + mean - normed[best]
    rest = [row for row in (normed @ mean).argsort()[::-1].tolist() if row not in chosen]  # the steps may run out
    return np.array([*chosen, *rest][:count], dtype=np.int64)
