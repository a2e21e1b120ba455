"""Optimizing Class Distribution in Memory: Liang & Li, Optimizing Class Distribution in Memory for Multi-Label Online
Continual Learning, 2022 (arXiv 2209.11469).

Of l_i stored images with class i the memory's distribution is q_i = l_i / Σ_j l_j. Wanted is p_i = n_i^ρ / Σ_j n_j^ρ
over the n_i images of the stream so far that showed the class; ρ is ``replay.power``. Images come in small batches. All
are stored, and while there are more than ``replay.budget``, the one leaves, old or new, without which
KL(q ‖ p) = Σ_i q_i log(q_i / p_i) is least; ties are broken by chance. With T = Σ_j l_j and an image of classes Y,

    KL without it = [Σ_i g_i(l_i) − Σ_{i∈Y} (g_i(l_i) − g_i(l_i − 1))] / (T − |Y|) − log(T − |Y|),
    g_i(l) = l log l − l log p_i,

so that one sum over the labels of all images weighs them all. Deviations: the divergence is taken in the direction in
which a class without an image is no infinity; and what a stream without sessions does not have, an image that comes
back while it is stored gains the labels it now shows if that brings q nearer to p.
"""

from __future__ import annotations

import numpy as np

from .online import Online, allocation, least

BATCH = 10  # images that come at a time, as in the paper
SLACK = 1e-12  # within which two divergences are the same


class OCDM(Online):
    def choose(
        self, session: int, images: np.ndarray, shown: np.ndarray, counts: np.ndarray, rng: np.random.Generator
    ) -> None:
        for first in range(0, len(images), BATCH):
            batch = slice(first, first + BATCH)
            target = allocation(counts[batch][-1], self.replay.power)
            takes = np.array([self.takes(*one, target) for one in zip(images[batch], shown[batch], strict=True)])
            self.store(session, images[batch][takes], shown[batch][takes])
            if (many := len(self.rows) - self.replay.budget) > 0:
                self.drop(leaving(self.shown, target, many, rng))

    def takes(self, image: int, shown: np.ndarray, target: np.ndarray) -> bool:
        """Is it new, or does the memory come nearer to the target p (C,) with the classes (C,) that it shows now?"""
        if image not in self.rows:
            return True
        sizes = self.shown.sum(axis=0)
        return divergence(sizes + shown, target) < divergence(sizes, target) - SLACK


def divergence(sizes: np.ndarray, target: np.ndarray) -> float:
    """KL(q ‖ p) of partitions of sizes l (C,) from the target p (C,)."""
    there = sizes > 0
    shares = sizes[there] / sizes.sum()
    return float(shares @ np.log(shares / target[there]))


def leaving(shown: np.ndarray, target: np.ndarray, many: int, rng: np.random.Generator) -> list[int]:
    """Places of so many images, in the order in which they go; shown (m, C) the classes of each, target p (C,)."""
    rows, columns = np.divmod(np.flatnonzero(shown), len(target))  # as np.nonzero(shown), several times as fast
    labels, sizes = np.bincount(rows, minlength=len(shown)), np.bincount(columns, minlength=len(target))  # |Y|, l
    log = np.log(np.maximum(np.arange(len(rows) + 1), 1))  # of whole numbers; l log l of 0 is 0
    log_target = np.log(np.where(target > 0, target, 1))
    gone: list[int] = []
    for _ in range(many):
        g, fewer = sizes * (log[sizes] - log_target), np.maximum(sizes - 1, 0)
        less = g - fewer * (log[fewer] - log_target)  # (C,) what each class takes from Σ g with an image of it
        total = np.maximum(sizes.sum() - labels, 1)
        without = (g.sum() - np.bincount(rows, less[columns], len(shown))) / total - log[total]  # KL (m,)
        without[gone] = np.inf
        gone.append(least(without, SLACK, rng))
        sizes = sizes - shown[gone[-1]]
    return gone
