"""KBK: class embeddings that attend to the patches, and pseudo labels by a threshold of each class's own.

arXiv 2608.30316, which builds on HCP: Zhang et al., *Specifying What You Know or Not for Multi-Label Class-Incremental
Learning*, AAAI 2025.

- **Class embeddings.** z = block(s)([patches W + position, q_1 … q_C]) of shape (B, N + C, D), pre-LayerNorm
  self-attention over all tokens. Of them z_c (B, D), the output at the query of class c, goes through a LayerNorm to
  its own logit w_c·z_c + b_c. q_c, w_c and b_c are frozen when their session ends; projection, position, blocks and
  norm go on learning.
- **Pseudo labels.** At the end of a session μ_c and h_c are the means of p and of its binary entropy H(p) over the
  training images that show c, by test transforms. Later an old label is set to 1 where the old head's p_c ≥ μ_c and
  H(p_c) ≤ h_c.
- **Balance.** The term of image i and old class c weighs g_ic / mean(g), g = |p − y| without gradient; the mean is over
  the whole batch and the classes of c's session, positives and negatives apart.
- **Unknown.** A row u, common to all sessions, learns to say 1 to the mean of an image's z_c over the classes that are
  absent from it, and 0 to the z_c of those that are there. It takes no part in the answer.

The loss is the asymmetric one with γ+ 0, γ− 4.

Deviations: the patches are those of the last feature map of any backbone; the loss's margin is 0.05 and its sum is
scaled as everywhere here; the mixture for the unknown has equal weights in place of drawn ones, so that resumed runs
and several processes repeat it, and its classes are all those absent by the labels after restoring; a class without any
training image is never restored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import Experiment
from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..machine.precision import full_precision
from ..options import KBKOptions
from .base import Context
from .head import GrowingHead, OwnHead, SelfAttention, small, small_linear


class ClassQueries(GrowingHead):
    """A query and a classifier row for each class; see the module."""

    def __init__(self, channels: int, patches: int, dim: int, blocks: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.dim = dim
        self.projection = nn.Linear(channels, dim)
        self.position = small(1, patches, dim)
        self.blocks = nn.Sequential(*(SelfAttention(dim, heads, mlp_ratio) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)
        self.queries, self.rows, self.biases = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        self.unknown = nn.Linear(dim, 1)
        self.projection.apply(small_linear)
        self.unknown.apply(small_linear)

    def grow(self, classes: int) -> None:
        super().grow(classes)
        for own, new in (
            (self.queries, small(classes, self.dim)),
            (self.rows, small(classes, self.dim)),
            (self.biases, nn.Parameter(torch.zeros(classes))),
        ):
            own.requires_grad_(False)
            own.append(new)

    def embed(self, features: Tensor) -> Tensor:
        """Class embeddings (B, C, D) of maps (B, channels, h, w)."""
        tokens = self.projection(self.patches(features)) + self.position  # (B, N, D)
        queries = torch.cat(list(self.queries)).expand(tokens.shape[0], -1, -1)  # (B, C, D)
        every = self.blocks(torch.cat([tokens, queries.to(tokens.dtype)], dim=1))
        return full_precision(self.norm(every[:, tokens.shape[1] :]))

    def classify(self, embedded: Tensor) -> Tensor:
        """Logits (B, C) of class embeddings (B, C, D), each by its own row."""
        return (embedded * torch.cat(list(self.rows))).sum(dim=-1) + torch.cat(list(self.biases))

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.embed(features))


class KBK(OwnHead):
    head: ClassQueries
    Options = KBKOptions
    knows_unknown = True
    paper = "arXiv 2608.30316; HCP: Zhang et al., AAAI 2025"
    stores = "the means of each class's probability and entropy"

    def __init__(self, options: KBKOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.whole_batch = options.balance
        self.confidence = torch.zeros(0, 3, dtype=torch.float64)  # of each class learned: sums of p and H(p) over its
        # training positives, and how many

    def make_head(self, channels: int, patches: int) -> ClassQueries:
        model, options = self.experiment.model, self.options
        head = ClassQueries(channels, patches, model.embed_dim, options.blocks, options.heads, model.mlp_ratio)
        head.unknown.requires_grad_(options.unknown_weight > 0)
        return head

    # ---- pseudo labels ----

    @torch.no_grad()
    def end_session(self, context: Context) -> None:
        """Measure how sure the model is of what it has just been shown."""
        columns = context.session.columns
        found = torch.zeros(columns.stop - columns.start, 3, dtype=torch.float64)
        context.model.eval()
        for batch in context.batches():
            p = self.scores(context.model, batch.images)[:, columns].double()
            there = (batch.labels[:, columns] > 0).double() * batch.weight
            found += torch.stack([there * p, there * entropy(p), there], dim=-1).sum(dim=0).cpu()
        context.world.add_up([found])
        self.confidence = torch.cat([self.confidence[: columns.start], found])

    def limits(self) -> tuple[Tensor, Tensor]:
        """(C old,) of each old class: the least probability and the highest entropy at which it is restored."""
        sums = self.confidence[: self.context.session.start]
        if self.options.thresholds == "shared":
            sums = sums.sum(dim=0, keepdim=True).expand_as(sums)
        seen = sums[:, 2] > 0
        means = sums[:, :2] / sums[:, 2:].clamp(min=1)
        return means[:, 0].where(seen, torch.inf), means[:, 1]

    @torch.no_grad()
    def restore(self, labels: Tensor, old_logits: Tensor) -> Tensor:
        """Labels (B, C) with the old head's confident opinions set to 1, never to 0."""
        p = torch.sigmoid(old_logits).double()
        least, highest = (limit.to(p.device) for limit in self.limits())
        restored = labels.clone()
        restored[:, : p.shape[1]][(p >= least) & (entropy(p) <= highest)] = 1
        return restored

    # ---- the loss ----

    def loss(self, batch: Batch) -> dict[str, Any]:
        context, labels, weights = self.context, batch.labels, None
        embedded = self.head.embed(context.forward(batch.images).features)
        logits = self.head.classify(embedded)
        if self.old_head is not None:
            if self.options.thresholds != "none":
                restored = self.restore(labels, self.ask_old_head(batch.images))
                labels = torch.where(context.annotated(batch), labels, restored)
            if self.options.balance:
                weights = self.balance(logits, labels)
        parts = {"classification": self.scale * asymmetric_loss(logits, labels, weights=weights)}
        if self.options.unknown_weight:
            parts["unknown"] = self.options.unknown_weight * self.scale * self.unknown_loss(embedded, labels)
        return {"loss": sum(parts.values()), "parts": parts, "logits": logits}

    @torch.no_grad()
    def balance(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, C) weights of the terms: of old classes |p − y| over its mean in the whole batch, of new ones 1."""
        gap, weights = (torch.sigmoid(logits) - labels).abs(), torch.ones_like(logits)
        before = self.context.protocol.sessions[: self.context.session.index]
        # Of each earlier session its negatives, then its positives.
        kinds = [(s.columns, labels[:, s.columns] == kind) for s in before for kind in (0, 1)]
        sums = torch.stack([torch.stack([(gap[:, own] * of).sum(), of.sum().to(gap)]) for own, of in kinds]).double()
        if self.context.world.size > 1:
            sums = sums.cpu()
            self.context.world.add_up([sums])
        means = (sums[:, 0] / sums[:, 1].clamp(min=1)).clamp(min=1e-8).to(gap)
        for (own, of), mean in zip(kinds, means, strict=True):
            weights[:, own] = torch.where(of, gap[:, own] / mean, weights[:, own])
        return weights

    def unknown_loss(self, embedded: Tensor, labels: Tensor) -> Tensor:
        """Of class embeddings (B, C, D): the mean of those absent is unknown, each that is there is not."""
        absent, there = labels == 0, (labels > 0).to(embedded)
        count = absent.sum(dim=1, keepdim=True)
        mixed = (embedded * absent.unsqueeze(-1)).sum(dim=1) / count.clamp(min=1)  # (B, D)
        with torch.autocast(embedded.device.type, enabled=False):
            of_mixed, of_known = self.head.unknown(mixed), self.head.unknown(embedded).squeeze(-1)  # (B, 1), (B, C)
        targets = torch.where(count > 0, 1.0, -1.0)
        return asymmetric_loss(of_mixed, targets) + asymmetric_loss(of_known, there - 1)  # −1: not asked; 0: known

    # ---- what must survive a restart ----

    def state(self) -> dict[str, Any]:
        return {**super().state(), "confidence": self.confidence}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.confidence = state["confidence"].to("cpu", torch.float64)


def entropy(p: Tensor) -> Tensor:
    """Binary entropy in nats, 0 at 0 and 1."""
    return torch.special.entr(p) + torch.special.entr(1 - p)
