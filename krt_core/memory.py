"""Exemplars: which images are kept for replay, and what may be seen of their labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .config import Replay


@dataclass
class Memory:
    """Stored images, one ranked list per class (best first).

    Indices are rows of the training set. ``session_of[image]`` is the session in which an image was first stored: its
    labels of earlier sessions stay hidden.
    """

    replay: Replay
    ranked: list[list[int]] = field(default_factory=list)  # per class in learning order
    session_of: dict[int, int] = field(default_factory=dict)

    @property
    def images(self) -> np.ndarray:
        """Stored rows; an image stored for two classes appears twice if the replay keeps duplicates."""
        flat = [image for ranking in self.ranked for image in ranking]
        return np.array(flat if self.replay.duplicates else list(dict.fromkeys(flat)), dtype=np.int64)

    def quota(self, classes: int) -> int:
        """Images each of ``classes`` classes may keep."""
        return self.replay.per_class or self.replay.budget // max(classes, 1)

    def update(
        self, session: int, images: np.ndarray, labels: np.ndarray, features: np.ndarray | None, seed: int
    ) -> None:
        """Choose exemplars for the classes of the session that has just ended.

        images (m,) rows of the training set the session trained on (without replayed ones), labels (m, classes of the
        session) bool, features (m, channels) pooled backbone features with test transforms (None for random selection).
        With a fixed budget the older rankings are cut to the new quota.
        """
        total = len(self.ranked) + labels.shape[1]
        quota = self.quota(total)
        if not quota:
            return
        if self.replay.budget:
            self.ranked = [ranking[:quota] for ranking in self.ranked]
        rng = np.random.default_rng([seed, session])
        taken = set() if self.replay.duplicates else {image for ranking in self.ranked for image in ranking}
        for column in range(labels.shape[1]):
            candidates = np.flatnonzero(labels[:, column])
            if not self.replay.duplicates:
                candidates = np.array([row for row in candidates if int(images[row]) not in taken], dtype=np.int64)
            if self.replay.selection == "herding" and features is not None:
                chosen = candidates[herding(features[candidates], quota)]
            else:
                chosen = rng.permutation(candidates)[:quota]
            ranking = [int(images[row]) for row in chosen]
            taken.update(ranking)
            for image in ranking:
                self.session_of.setdefault(image, session)
            self.ranked.append(ranking)
        kept = {image for ranking in self.ranked for image in ranking}
        self.session_of = {image: first for image, first in self.session_of.items() if image in kept}

    def visible(self, labels: np.ndarray, image: int, starts: list[int], stops: list[int]) -> np.ndarray:
        """What a stored image shows: a mask (C,) over the seen columns.

        ``widened`` (published): the classes of its own session and of all later ones; ``strict``: its own session only.
        """
        own = self.session_of[image]
        mask = np.zeros(stops[-1], dtype=bool)
        mask[starts[own] : stops[-1] if self.replay.labels == "widened" else stops[own]] = True
        return labels[image, : stops[-1]] & mask

    def state(self) -> dict:
        return {"ranked": self.ranked, "session_of": {str(image): s for image, s in self.session_of.items()}}

    def load_state(self, state: dict) -> None:
        self.ranked = [list(map(int, ranking)) for ranking in state["ranked"]]
        self.session_of = {int(image): int(s) for image, s in state["session_of"].items()}


def herding(features: np.ndarray, count: int, max_steps: int = 1000) -> np.ndarray:
    """Order of up to ``count`` rows whose running mean stays closest to the mean of all.

    features (m, channels), L2-normalised inside. Fewer rows than ``count``: all of them, ranked. For unit vectors the
    row that brings the mean closest is the one with the largest product with the residual k·mean − sum. As published, a
    step may land on a row that is already chosen: it then counts for the residual once more but adds no exemplar.
    Source: Rebuffi et al., iCaRL, CVPR 2017, algorithm 4.
    """
    if not len(features):
        return np.zeros(0, dtype=np.int64)
    normed = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    mean = normed.mean(axis=0)
    residual = mean.copy()
    chosen: dict[int, None] = {}  # an ordered set
    for _ in range(max_steps):
        if len(chosen) >= min(count, len(normed)):
            break
        best = int((normed @ residual).argmax())
        chosen[best] = None
        residual = residual + mean - normed[best]
    rest = [row for row in (normed @ mean).argsort()[::-1].tolist() if row not in chosen]  # the steps may run out
    return np.array([*chosen, *rest][: min(count, len(normed))], dtype=np.int64)
