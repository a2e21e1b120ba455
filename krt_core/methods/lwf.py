"""LwF: Learning without Forgetting, by distilling what the old model says.

Li & Hoiem, *Learning without Forgetting*, ECCV 2016. With logits z (B, C) of the model, ẑ (B, C_old) of the old one and
a temperature T the loss is

    Σ ASL(z_new, y_new) + λ Σ BCE(z_old / T, σ(ẑ / T)),

both sums over images and classes, times the loop's scale: the balance of the two is one per image, as in the paper.

Deviations: the softmax over a task's classes becomes a sigmoid for each class, since several are there at once, and the
loss on the new ones is the loop's asymmetric one. The old model is asked about the augmented images as they come, not
once about the plain ones. There is no warm-up of the new head alone (``train.head_start=ridge`` is one in closed form).
Labels of old classes that exemplars show, where there are any, are learned too.
"""

from __future__ import annotations

from typing import Any

import torch

from ..data.pipeline import Batch
from ..losses import asymmetric_loss, binary_cross_entropy
from ..options import LwFOptions
from .base import Method


class LwF(Method):
    Options = LwFOptions
    paper = "Li & Hoiem, ECCV 2016"
    knows_unknown = True
    hidden = -1  # the old model says more about old classes than that a session does not show them

    def loss(self, batch: Batch) -> dict[str, Any]:
        output = self.context.forward(batch.images)
        parts = {"classification": self.scale * asymmetric_loss(output.logits, self.targets(batch))}
        if self.context.old_model is not None:
            old, T = self.context.ask_old(batch.images).logits, self.options.temperature  # (B, C_old)
            apart = binary_cross_entropy(output.logits[:, : old.shape[1]], torch.sigmoid(old / T), T)
            parts["distillation"] = self.options.weight * self.scale * apart
        return {"loss": sum(parts.values()), "parts": parts, "logits": output.logits}
