"""CENSUS: cumulative ridge regression that counts every image once, and looks at the parts of an image, too.

It stands on `krt_core.methods.ridge`: a linear head in closed form on a backbone that stands still, no gradient, no
exemplars. Two things are added.

*Once.* An image that shows classes of several sessions comes in several sessions. Cumulative ridge regression counts it
each time anew, and each time all labels but the session's as absent: with k labels in k sessions it learns that each of
them is there to one part in k. Here eight bytes of each image stay behind, a hash of its name. One that was counted
before is not added to the sums over images (Σφφᵀ, Σφ, n) again, only its new labels to those over labels (Σφyᵀ, Σy). So
the head is, after each session and to the last digits, ridge regression on all images so far with all labels shown of
them so far: nothing is lost by the sessions but the labels that no session shows. Where no image comes twice (disjoint
sessions) it is cumulative ridge regression. Where labels are unknown a class counts the images that it is known of.

*Parts.* With W, b fitted on means over the map, the value of class c is

    v_c = (s_c(mean of the map) + a · max over cells j of s_c(mean of cell j)) / (1 + a),    s_c(φ) = φᵀW_c + b_c,

with the map averaged in ``cells`` × ``cells`` parts. What covers a part of the photo speaks louder there than in the
mean. Nothing is learned for it and nothing stored.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Experiment
from ..machine.precision import full_precision
from ..model import Network
from ..options import CensusOptions
from .base import Context
from .ridge import Ridge


class Census(Ridge):
    Options = CensusOptions
    paper = "this workbench, docs/census.md"
    stores = "sums over all images: Σφφᵀ, Σφ, Σφyᵀ, Σy; a hash of each image's name"
    replays = False  # an exemplar is an image that was counted
    needs_maps = True
    knows_unknown = True

    def __init__(self, options: CensusOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.counted = np.zeros(0, dtype=np.int64)  # hashes of the images in the sums, rising
        self.needs_maps = options.parts > 0

    def _repeated(self, context: Context, rows: np.ndarray) -> Tensor:
        """(m,) bool: are images, by row of the training set, in the sums already? From now on they are."""
        if not self.options.once:
            return super()._repeated(context, rows)
        hashes = np.array([name_hash(str(context.ids[row])) for row in rows], dtype=np.int64)
        found = np.isin(hashes, self.counted)
        self.counted = np.union1d(self.counted, context.world.gather(hashes))
        return torch.from_numpy(found)

    def scores(self, model: Network, images: Tensor) -> Tensor:
        maps, a = full_precision(model.features(images)), self.options.parts
        whole = model.classify(maps)
        if not a:
            return torch.sigmoid(whole)
        cells = F.adaptive_avg_pool2d(maps, min(self.options.cells, *maps.shape[2:])).flatten(2)  # (B, channels, N)
        parts = (model.classify(cell[:, :, None, None]) for cell in cells.unbind(2))
        best = functools.reduce(torch.maximum, parts)  # one after the other: all at once outgrow a processor's cache
        return torch.sigmoid((whole + a * best) / (1 + a))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "counted": torch.from_numpy(self.counted)}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.counted = state["counted"].numpy() if "counted" in state else self.counted


def name_hash(name: str) -> int:
    """64 bits of a name, the same in every process and on every machine. Two of a million names share one by a chance
    of 3e-8."""
    return int.from_bytes(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )
