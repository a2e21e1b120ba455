"""The fifth stanza of a session: exemplars are chosen, and the images of the session to come are looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .machine.distributed import World
from .memory import Memory
from .methods import Method
from .protocol import Protocol, View, session_view
from .runs.folder import Ahead, Run

Predict = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Remembering:
    """What a run remembers with, the same in every session."""

    memory: Memory
    method: Method
    protocol: Protocol
    labels: np.ndarray  # (n, C) of the training set in learning order
    ids: np.ndarray  # (n,) of its images
    world: World
    seed: int
    log: Callable[[str], None]
    run: Run

    def before(self, index: int, view: View, ahead: Ahead | None, predict: Callable[[np.ndarray], np.ndarray]) -> Ahead:
        """What the old model says to a session's images: as it was looked ahead, or, where that is not to be had (the
        images have come since, a file is damaged), made now and written down. predict: by the old model."""
        ids = self.ids[view.rows]
        if ahead is not None and np.array_equal(ahead.ids, ids):
            return ahead
        self.log("scores of the old model on this session's images are not to be had: made again")
        rows, places = np.unique(view.rows, return_inverse=True)
        made = Ahead(ids, predict(rows)[places])
        if self.world.main:
            made.write(self.run.session_folder(index - 1) / "ahead.npz")
        return made

    def after(self, index: int, view: View, predict: Predict) -> Ahead | None:
        """Choose exemplars for the classes just learned; score the next session's images if the method asks for it.

        Both in one pass, as both want the model as it is now; predict: scores of rows and, where asked, features.
        """
        own = view.rows[: view.own]
        stores = self.method.replays and self.memory.keeps(self.protocol.sessions[index].stop)
        herds = stores and self.memory.replay.selection == "herding"
        looks_ahead = self.method.asks_old_scores and index + 1 < len(self.protocol.sessions)
        if stores and not herds:
            self.choose(index, own, None)
        wanted = [own] if herds else []
        if looks_ahead:
            wanted += [self.protocol.train_images(self.labels, index + 1), self.memory.images]
        if not wanted:
            return None
        rows = np.unique(np.concatenate(wanted))
        with_features = np.isin(rows, own) if herds else None  # of the session's own images, in their order
        scores, features = predict(rows, with_features)
        if herds:
            self.choose(index, own, features)
        if not looks_ahead:
            return None
        coming = session_view(self.protocol, self.labels, index + 1, self.memory, self.method.sees).rows
        return Ahead(self.ids[coming], scores[np.searchsorted(rows, coming)])

    def choose(self, index: int, own: np.ndarray, features: np.ndarray | None) -> None:
        """Exemplars of a session's own images, rows (m,)."""
        labels = self.labels[own][:, self.protocol.sessions[index].columns]
        # Features are with the main process; what others choose without them is replaced in the next line.
        self.memory.update(index, own, labels, features, self.seed)
        self.memory.load_state(self.world.decide(self.memory.state()))  # one set of exemplars for all processes
        if remark := self.memory.remark(self.protocol.classes):
            self.log(remark)
        self.method.remember(self.memory.images)
