"""KRT: knowledge restored by dynamic pseudo labels, transferred by incremental cross-attention.

Dong et al., *Knowledge Restore and Transfer for Multi-label Class-Incremental Learning*, ICCV 2023.

Its ablations: ``krt.pseudo_labels=false`` (−DPL), ``krt.token_weight=0`` (− token distillation), ``krt.head=linear
krt.token_weight=0`` (−ICA). ``krt.oracle=true`` is no method but the bound of the first: the loop shows it the true
labels of old classes, and nothing is restored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Experiment
from ..data.pipeline import Batch, move
from ..dpl import ThresholdRecord, find_thresholds
from ..errors import ConfigError, RunError
from ..losses import asymmetric_loss, token_distillation
from ..options import KRTOptions
from .base import Context, Method


class KRT(Method):
    Options = KRTOptions
    paper = "Dong et al., ICCV 2023"
    stores = "a threshold of each session"
    oracle = "oracle"
    knows_unknown = True

    def __init__(self, options: KRTOptions, experiment: Experiment):
        super().__init__(options, experiment)
        if options.head == "linear" and options.token_weight:
            raise ConfigError("krt.head=linear has no tokens to distil: set krt.token_weight=0 as well.")
        self.records: dict[int, ThresholdRecord] = {}
        self.restores = options.pseudo_labels and not options.oracle
        self.asks_old_scores = self.restores

    def start_session(self, context: Context) -> None:
        """Find this session's pseudo-label threshold; kept from before when the session is resumed."""
        super().start_session(context)
        index, old = context.session.index, context.session.start
        if not index or not self.restores or index in self.records:
            return
        expected, shares = self.options.mean_labels * old / len(context.protocol.classes), np.full(old, 1 / old)
        if self.options.target == "estimated":
            expected = float(context.class_frequency.sum())
            if not np.isfinite(expected):
                raise RunError(
                    "How often the sessions have shown each class is not known: the run is older or was imported, and "
                    "its training images are not there. Put them back, or take krt.pseudo_labels=false."
                )
            shares = context.class_frequency / expected
        scores, last = context.old_scores(), self.records.get(index - 1)
        record = find_thresholds(scores, expected, self.options.rule, shares if self.options.per_class else None, last)
        self.records[index] = record
        how = f"{record.found:.2f} pseudo labels per image (expected {record.target:.2f}, {record.steps} steps)"
        how += ", given where nobody has annotated the class" if context.protocol.arrival(index) else ""
        if record.converged:
            context.log(f"DPL threshold {record.threshold:.3f}: {how}")
        else:
            context.log(f"DPL threshold {record.threshold:.3f} is the closest, none met the band: {how}")

    @torch.no_grad()
    def restore(self, labels: Tensor, old_logits: Tensor) -> Tensor:
        """Labels (B, C) with the old model's confident opinions set to 1, never to 0: what is unknown and not restored
        stays unknown."""
        if not self.restores:
            return labels
        thresholds = torch.from_numpy(self.records[self.context.session.index].values)  # (1,) or (C_old,)
        thresholds = move(thresholds.to(old_logits.dtype), old_logits.device)
        confident = torch.sigmoid(old_logits) > thresholds
        restored = labels.clone()
        restored[:, : confident.shape[1]][confident] = 1
        return restored

    def loss(self, batch: Batch) -> dict[str, Any]:
        context = self.context
        output = context.forward(batch.images)
        labels, distillation = self.targets(batch), None
        if context.old_model is not None:
            old = context.ask_old(batch.images)
            labels = torch.where(context.annotated(batch), labels, self.restore(labels, old.logits))
            if self.options.token_weight:
                weight = self.options.token_weight * batch.share * math.sqrt(context.growth)
                distillation = weight * token_distillation(old.tokens, output.tokens)
        classification = self.scale * asymmetric_loss(output.logits, labels)
        parts = {"classification": classification}
        if distillation is not None:
            parts["distillation"] = distillation
        return {"loss": sum(parts.values()), "parts": parts, "logits": output.logits}

    def state(self) -> dict:
        """Thresholds of each class are of the newest session alone: those before stand in the states of theirs."""
        told = {str(index): record.as_dict() for index, record in self.records.items()}
        earlier = {index: {**record, "per_class": ()} for index, record in list(told.items())[:-1]}
        return {"thresholds": told | earlier}

    def load_state(self, state: dict) -> None:
        stored = state.get("thresholds", {}).items()
        self.records = {int(i): ThresholdRecord(**{**r, "per_class": tuple(r["per_class"])}) for i, r in stored}
