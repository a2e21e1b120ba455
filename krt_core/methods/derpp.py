"""DER++: dark experience replay. Exemplars come with the logits that the model gave them when they were stored.

Buzzega et al., *Dark Experience for General Continual Learning: a Strong, Simple Baseline*, NeurIPS 2020, eq. 6. With
logits z (B, C) of the model and those stored with an exemplar, ẑ, of the C_i classes known then, the loss is

    Σ_new ASL(z, y) + Σ_exemplars [ α (1 / C_i) Σ_c (z_c − ẑ_c)² + β ASL(z, y) ],

times the loop's scale. The squared error is a mean over classes and the classification a sum, as in the paper. Logits
are taken at the end of the session in which an image is stored, with test transforms; one that is stored for another
class later on keeps its first ones, and one that `replay.budget` drops takes its own along.

Deviations: the paper stores logits during training, of images of a stream. Its two terms draw a batch of exemplars
each, as large as that of new images; here both are of the exemplars that the shuffle has mixed into a batch, so that an
exemplar counts as often as a new image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Experiment
from ..data.pipeline import Batch, move
from ..losses import asymmetric_loss
from ..machine.precision import full_precision
from ..options import DERppOptions
from .finetune import Finetune


class DERpp(Finetune):
    Options = DERppOptions
    needs_exemplars = True
    paper = "Buzzega et al., NeurIPS 2020"
    stores = "logits of each exemplar"
    knows_unknown = True

    def __init__(self, options: DERppOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.rows = torch.zeros(0, dtype=torch.int64)  # (m,) of the stored images in the training set, rising
        self.logits = torch.zeros(0, 0)  # (m, C) as they were stored; NaN for classes that came later

    def loss(self, batch: Batch) -> dict[str, Any]:
        replayed = batch.places >= self.context.own
        if not replayed.any():
            return super().loss(batch)
        output, labels = self.context.forward(batch.images), self.targets(batch)
        new, old = (self._indices(chosen, labels) for chosen in (~replayed, replayed))
        repeated = asymmetric_loss(output.logits[old], labels[old])
        classification = asymmetric_loss(output.logits[new], labels[new]) + self.options.beta * repeated
        distance = self.distance(output.logits[old], batch.rows[replayed])
        parts = {
            "classification": self.scale * classification,
            "stored_logits": self.options.alpha * self.scale * distance,
        }
        return {"loss": sum(parts.values()), "parts": parts, "logits": output.logits}

    def distance(self, logits: Tensor, rows: np.ndarray) -> Tensor:
        """Σ over exemplars (k,) of the mean squared distance of logits (k, C) from those stored."""
        stored = move(self.logits[torch.searchsorted(self.rows, torch.from_numpy(rows))], logits.device)
        known = ~stored.isnan()
        apart = full_precision(logits[:, : stored.shape[1]]) - stored.nan_to_num()
        return ((apart.square() * known).sum(dim=1) / known.sum(dim=1)).sum()

    def remember(self, exemplars: np.ndarray) -> None:
        """Take the logits of new exemplars; forget those of exemplars that are gone."""
        rows = torch.from_numpy(np.unique(exemplars))
        before = torch.isin(rows, self.rows)
        logits = torch.full((len(rows), self.context.session.stop), torch.nan)
        logits[before, : self.logits.shape[1]] = self.logits[torch.isin(self.rows, rows)]
        if not before.all():
            logits[~before] = torch.from_numpy(self.context.logits(rows[~before].numpy()))
        self.rows, self.logits = rows, logits

    def renumber(self, rows: dict[int, int]) -> None:
        moved = torch.tensor([rows[row] for row in self.rows.tolist()], dtype=torch.int64)
        order = moved.argsort()
        self.rows, self.logits = moved[order], self.logits[order]

    @staticmethod
    def _indices(chosen: np.ndarray, like: Tensor) -> Tensor:
        return move(torch.from_numpy(np.flatnonzero(chosen)), like.device)

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "logits": self.logits}

    def load_state(self, state: dict[str, Any]) -> None:
        self.rows, self.logits = state.get("rows", self.rows), state.get("logits", self.logits)
