"""POD: the KRT authors' own baseline. Distils the stages' maps and the pooled embedding of the old model.

Douillard et al., *PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning*, ECCV 2020, here with the
asymmetric loss and a growing linear head instead of its cosine classifier and softmax loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F

from ..data.pipeline import Batch
from ..losses import asymmetric_loss, pod_spatial
from ..options import PODOptions
from .base import Context, Method


class POD(Method):
    Options = PODOptions
    paper = "Douillard et al., ECCV 2020"
    knows_unknown = True

    def start_session(self, context: Context) -> None:
        super().start_session(context)
        if context.old_model is not None and context.model.still:
            context.log("the backbone stands still: POD has nothing to distil, this is fine-tuning")

    def loss(self, batch: Batch) -> dict[str, Any]:
        context = self.context
        distil = context.old_model is not None and not context.model.still
        output = context.forward(batch.images, with_stages=distil)
        parts = {"classification": self.scale * asymmetric_loss(output.logits, self.targets(batch))}
        if distil:
            old = context.ask_old(batch.images, with_stages=True)
            growth = batch.share * math.sqrt(context.growth)
            parts["spatial"] = self.options.spatial_weight * growth * pod_spatial(old.stages, output.stages)
            flat = 1 - F.cosine_similarity(old.pooled, output.pooled, dim=1).mean()
            parts["flat"] = self.options.flat_weight * growth * flat
        return {"loss": sum(parts.values()), "parts": parts, "logits": output.logits}
