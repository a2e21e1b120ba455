"""What one session may see: label absence for its own images, exemplars with the labels they may show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .memory import Memory
from .protocol import Protocol


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
