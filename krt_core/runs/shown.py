"""What the sessions of a run have shown: how often each class, among how many images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..protocol import Protocol


@dataclass(frozen=True)
class Shown:
    """What the sessions so far have shown: how many images with each class, of how many of which that was known. By it
    a run goes on whose images are gone."""

    counts: np.ndarray  # (C,)
    images: np.ndarray  # (C,)

    @property
    def frequency(self) -> np.ndarray:
        """(C,) share of the images that were shown with each class."""
        return self.counts / np.maximum(self.images, 1)

    def as_dict(self) -> dict[str, list[float]]:
        return {"counts": self.counts.tolist(), "images": self.images.tolist()}

    def then(self, protocol: Protocol, labels: np.ndarray, index: int) -> Shown:
        """With session ``index``, which was added; labels (n, C) of the training set in learning order."""
        stop = protocol.sessions[index].stop
        own, new = labels[protocol.train_images(labels, index)][:, :stop], (0, stop - len(self.counts))
        counts = np.pad(self.counts, new) + (own > 0).sum(axis=0)
        return Shown(counts, np.pad(self.images, new) + (own >= 0).sum(axis=0))


class Tally:
    """What the sessions show, by labels (n, C) of the training set in learning order. Each session is looked at once,
    however often and of whichever session is asked.

    Of the labels only what the sessions really showed is used: the positives of a class in its own session, taken to be
    as frequent where its labels are unknown as where they are known, and which images came by until then.
    """

    def __init__(self, protocol: Protocol, labels: np.ndarray):
        self.protocol, self.labels = protocol, labels
        self._came = np.zeros(len(labels), bool)
        self._images: list[int] = []  # after each session
        self._counts: list[np.ndarray] = []  # of each session's own classes

    def images(self, session: int) -> int:
        """How many images the sessions up to this one have shown."""
        for current in self.protocol.sessions[len(self._images) : session + 1]:
            rows = self.protocol.train_images(self.labels, current.index)
            own = self.labels[rows, current.columns]
            self._came[rows] = True
            self._images.append(int(np.count_nonzero(self._came)))
            self._counts.append((own > 0).sum(axis=0) * (len(own) / np.maximum((own >= 0).sum(axis=0), 1)))
        return self._images[session]

    def shown(self, session: int) -> Shown:
        """What the sessions up to this one have shown."""
        images, stop = self.images(session), self.protocol.sessions[session].stop
        return Shown(np.concatenate(self._counts[: session + 1]), np.full(stop, float(images)))

    def frequency(self, session: int) -> np.ndarray:
        """(C_old,) how often each class of the sessions before this one was shown, as a share of all images so far,
        those of this one too. Images of a session are picked by its classes, so an old class is rarer among them where
        classes seldom meet: this is an estimate, not the truth."""
        images = self.images(session)
        return np.concatenate([np.zeros(0), *self._counts[:session]]) / max(images, 1)
