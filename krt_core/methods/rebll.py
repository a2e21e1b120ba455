"""RebLL: positives and negatives in balance, in the loss and among the labels.

Du et al., *Rebalancing Multi-Label Class-Incremental Learning*, AAAI 2025. With new logits z and the old model's
probabilities q of an image, p = sigmoid(z), sums over images and classes:

- asymmetric distillation, old classes: −Σ d(q) [w₊ q log p + w₋ (1 − q) log(1 − p)], w₋ > w₊: what the old model says
  is absent counts for more; d(q) = exp(−decay |2q − 1|): what it is overconfident of counts for less
- classification, of labels that are shown or restored: the asymmetric loss, from the second session on with a γ− below
  its usual 4, so that negatives keep more of their weight
- online relabelling: a label of an old class that the session does not show is 1 where q > ``relabel``, and else takes
  part in no classification; the distillation tells of it

In the paper exemplars are relabelled, old classes by the old model and later ones by the current model once it is
trained. Deviations: the session's own images are relabelled too, so that it works without exemplars; a class learned
after an exemplar was stored (hidden from it with ``replay.labels=strict``) is relabelled from the session after its own
on, by the old model, which by then is that trained model; nothing is relabelled as absent; the first session is learned
as by every other method here, so that all start from one model. The forms of d and of the
weights are ours, from the paper's words, and so are their values. The backbone is any, the head
linear as the paper's or ICA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..machine.precision import full_precision
from ..options import RebLLOptions
from .base import Method


class RebLL(Method):
    Options = RebLLOptions
    paper = "Du et al., AAAI 2025"
    knows_unknown = True
    hidden = -1

    def loss(self, batch: Batch) -> dict[str, Any]:
        if self.context.old_model is None:
            return super().loss(batch)
        output = self.context.forward(batch.images)
        old = torch.sigmoid(full_precision(self.context.ask_old(batch.images).logits))  # (B, C old)
        classification = asymmetric_loss(output.logits, self.relabel(batch.labels, old), self.options.gamma_neg)
        distillation = self.options.weight * self.distil(output.logits, old)
        parts = {"classification": self.scale * classification, "distillation": self.scale * distillation}
        return {"loss": sum(parts.values()), "parts": parts, "logits": output.logits}

    def relabel(self, labels: Tensor, old: Tensor) -> Tensor:
        """Labels (B, C), of which unknown ones are 1 where the old model's probabilities (B, C old) are high."""
        found = (labels[:, : old.shape[1]] < 0) & (old > self.options.relabel)
        relabelled = labels.clone()
        relabelled[:, : old.shape[1]][found] = 1
        return relabelled

    def distil(self, logits: Tensor, old: Tensor) -> Tensor:
        """Asymmetric distillation of probabilities (B, C old) into logits (B, C), summed."""
        logits = full_precision(logits[:, : old.shape[1]])
        positive = self.options.positive * old * F.logsigmoid(logits)
        negative = self.options.negative * (1 - old) * F.logsigmoid(-logits)
        certain = torch.exp(-self.options.decay * (2 * old - 1).abs())
        return -(certain * (positive + negative)).sum()
