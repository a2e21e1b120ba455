"""PRS: Kim, Jeong & Kim, Imbalanced Continual Learning with Partitioning Reservoir Sampling, ECCV 2020.

Each class i has a partition, of l_i stored images that show it, and a target for it, m_i = m·p_i with
p_i = n_i^ρ / Σ_j n_j^ρ: m images in all (``replay.budget``), n_i images of the stream so far with the class, ρ
(``replay.power``) 0 for partitions of one size, 1 for those of the stream.

- *In*: while there is room, every image; then one with classes Y by the chance Σ_{i∈Y} w_i · min(1, m_i / n_i), where
  w_i = e^{−n_i} / Σ_{j∈Y} e^{−n_j}: the rarest of its classes decides.
- *Out*, for each that comes in: the partition with the greatest excess δ_i = l_i − p_i Σ_j l_j; of its images those
  that show the fewest classes with δ_j ≤ 0; and of these the one without which Σ_i |l_i − p_i Σ_j l_j| is least.

Ties are broken by chance. Deviations from the authors' code: it draws the partition by softmax(δ), here it is the
greatest; n counts the image that comes, as in plain reservoir sampling; classes of which nothing is stored just now
keep their targets. And what a stream without sessions does not have, an image that comes back while it is stored gains,
if it is taken in, the labels it now shows, and none goes out.
"""

from __future__ import annotations

import numpy as np

from .online import Online, allocation, least

SLACK = 1e-9  # images within which two distances are the same


class PRS(Online):
    def choose(
        self, session: int, images: np.ndarray, shown: np.ndarray, counts: np.ndarray, rng: np.random.Generator
    ) -> None:
        budget = self.replay.budget
        targets = allocation(counts, self.replay.power)  # p (m, C)
        enters = rng.random(len(images)) < chance(shown, counts, budget * targets)
        for row, image in enumerate(images):
            if not (enters[row] or len(self.rows) < budget):
                continue
            if len(self.rows) == budget and image not in self.rows:
                self.drop([self.leaving(targets[row], rng)])
            self.store(session, images[row : row + 1], shown[row : row + 1])

    def leaving(self, target: np.ndarray, rng: np.random.Generator) -> int:
        """Place of the stored image that makes room; target p (C,)."""
        sizes = self.shown.sum(axis=0)
        excess = np.where(sizes > 0, sizes - target * sizes.sum(), -np.inf)  # δ (C,) of partitions that hold an image
        fullest = least(-excess, SLACK, rng)
        places = np.flatnonzero(self.shown[:, fullest])
        wanted = self.shown[places][:, excess <= SLACK].sum(axis=1)  # classes without excess that each shows
        places = places[wanted == wanted.min()]
        left = sizes - self.shown[places]  # (k, C) sizes without each of them
        distance = np.abs(left - target * left.sum(axis=1, keepdims=True)).sum(axis=1)
        return int(places[least(distance, SLACK, rng)])


def chance(shown: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(m,) by which an image comes in; shown (m, C) its classes, counts n and sizes m_i (m, C) when it comes."""
    n = np.where(shown, counts, np.inf)
    weights = np.exp(n.min(axis=1, keepdims=True) - n)
    return (weights * np.minimum(1, sizes / n)).sum(axis=1) / weights.sum(axis=1)
