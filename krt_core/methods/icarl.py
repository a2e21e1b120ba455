"""iCaRL: herded exemplars, and distillation of the old classes on all images.

Rebuffi et al., *iCaRL: Incremental Classifier and Representation Learning*, CVPR 2017, algorithm 3. With logits z
(B, C) of the model and ẑ (B, C_old) of the old one the loss is

    Σ BCE(z_new, y_new) + λ Σ BCE(z_old, σ(ẑ)),

both sums over all images of the batch, exemplars too, and their classes, times the loop's scale; λ = 1 in the paper.
Exemplars are chosen by herding (`replay.selection`), and as in the paper their old labels are not learned: the old
model speaks for them.

Deviations: several classes are there at once, so that it answers by the sigmoid outputs, not by the nearest mean of
exemplars, which names one class. Backbone, optimiser and schedule are the loop's.
"""

from __future__ import annotations

from typing import Any

import torch

from ..data.pipeline import Batch
from ..errors import ConfigError
from ..losses import binary_cross_entropy
from ..options import ICaRLOptions
from .base import Context, Method


class ICaRL(Method):
    Options = ICaRLOptions
    needs_exemplars = True
    paper = "Rebuffi et al., CVPR 2017"
    knows_unknown = True
    hidden = -1  # new classes on exemplars that do not show them (replay.labels=strict) count in no loss

    def start_session(self, context: Context) -> None:
        if (selection := context.experiment.replay.selection) != "herding":
            raise ConfigError(f"method icarl herds its exemplars: set replay.selection=herding, not {selection}.")
        super().start_session(context)

    def loss(self, batch: Batch) -> dict[str, Any]:
        output, own = self.context.forward(batch.images), self.context.session.columns
        new = binary_cross_entropy(output.logits[:, own], self.targets(batch)[:, own])
        parts = {"classification": self.scale * new}
        if self.context.old_model is not None:
            old = torch.sigmoid(self.context.ask_old(batch.images).logits)  # (B, C_old)
            told = self.context.annotated(batch)[:, : own.start]
            old = torch.where(told, batch.labels[:, : own.start], old)
            apart = binary_cross_entropy(output.logits[:, : own.start], old)
            parts["distillation"] = self.options.weight * self.scale * apart
        return {"loss": sum(parts.values()), "parts": parts, "logits": output.logits}
