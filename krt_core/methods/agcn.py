"""AGCN: a graph over all classes so far gives each class its classifier.

Du et al., *AGCN: Augmented Graph Convolutional Network for Lifelong Multi-Label Image Recognition*, ICME 2022.

- **Augmented correlation matrix** A (C, C), A_cd = P(d | c), built once at the start of a session over its images. With
  u (m, C) the old model's probabilities of old classes and the session's labels of new ones, A_cd = Σ u_c u_d / Σ u_c.
  So new–new comes from labels alone, old–new and new–old from labels and soft labels; old–old is inherited. The
  diagonal is 1. Normalised: Â = D^-½ A D^-½, D the sums of A's rows.
- **Graph.** H = Â · LeakyReLU(Â E V) W with class embeddings E (C, 300), V (300, D), W (D, channels). Row H_c is the
  classifier of class c: p_c = sigmoid(x · H_c) of the pooled feature x (channels,).
- **Loss** λ_cls · classification of the new classes + λ_dst · binary cross-entropy of the old classes against the old
  model's probabilities + λ_gph · Σ (H_old − H)² over the old classes, H_old by the old model's own graph.

Deviations: the embeddings are random, fixed or learned, where the paper has word vectors: they carry no meaning of a
class's name, so the graph knows how classes are related by A alone. Classification is the asymmetric loss of all
methods here, distillation is summed. An old label that an exemplar shows is a target of 1 in the distillation (the
paper has no exemplars). Pairs with an unknown label count nowhere in A. The weight of the graph loss is ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Experiment
from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..model.network import pool
from ..options import AGCNOptions
from .base import Context
from .head import GrowingHead, OwnHead, soft_distillation

WORD = 300  # numbers of a class embedding, as of GloVe


class ClassGraph(GrowingHead):
    """Two graph convolutions from class embeddings to classifier rows; see the module."""

    correlation: Tensor

    def __init__(self, channels: int, dim: int, seed: int, learned: bool):
        super().__init__()
        self.seed, self.learned = seed, learned
        self.words = nn.ParameterList()  # of each session's classes
        self.register_buffer("correlation", torch.eye(0))  # A (C, C), before normalisation
        self.first, self.second = nn.Linear(WORD, dim, bias=False), nn.Linear(dim, channels, bias=False)

    def grow(self, classes: int) -> None:
        begin = sum(self.sizes)
        super().grow(classes)
        words = torch.stack([self._word(begin + c) for c in range(classes)])
        self.words.append(nn.Parameter(words, requires_grad=self.learned))
        grown = torch.eye(begin + classes).to(self.correlation)
        grown[:begin, :begin] = self.correlation
        self.correlation = grown

    def _word(self, column: int) -> Tensor:
        """(300,) of the class in a column: it does not depend on how many classes come with it."""
        return torch.randn(WORD, generator=torch.Generator().manual_seed((self.seed * 100_003 + column) % 2**63))

    def classifiers(self) -> Tensor:
        """H (C, channels)."""
        root = self.correlation.sum(dim=1).rsqrt()
        near = root[:, None] * self.correlation * root  # Â
        with torch.autocast(near.device.type, enabled=False):
            hidden = F.leaky_relu(near @ self.first(torch.cat(list(self.words))), 0.2)
            return near @ self.second(hidden)

    def classify(self, features: Tensor, classifiers: Tensor) -> Tensor:
        """Logits (B, C) of maps (B, channels, h, w), or of their means, by rows H (C, channels)."""
        with torch.autocast(features.device.type, enabled=False):
            return pool(features).to(classifiers.dtype) @ classifiers.T

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(features, self.classifiers())


class AGCN(OwnHead):
    head: ClassGraph
    old_head: ClassGraph | None
    Options = AGCNOptions
    needs_maps = False
    only_new = True
    knows_unknown = True
    paper = "Du et al., ICME 2022"
    stores = "the correlation of the classes, and the last session's graph"

    def make_head(self, channels: int, patches: int) -> ClassGraph:
        experiment: Experiment = self.experiment
        return ClassGraph(channels, experiment.model.embed_dim, experiment.seed, self.options.embeddings == "learned")

    def start_session(self, context: Context) -> None:
        super().start_session(context)
        if self.options.correlation:
            self.correlate(context)

    @torch.no_grad()
    def correlate(self, context: Context) -> None:
        """Fill A but its old block from the session's images."""
        classes, old = context.session.stop, context.session.start
        sums = torch.zeros(2, classes, classes, dtype=torch.float64)  # Σ u_c u_d, and Σ u_c where d is known
        context.model.eval()
        for batch in context.batches():
            value, known = batch.labels.clamp(min=0).double(), (batch.labels >= 0).double()
            if self.old_head is not None:
                value[:, :old] = torch.sigmoid(self.ask_old_head(batch.images)).double()
                known[:, :old] = 1
            sums += batch.weight * torch.stack([value.T @ value, value.T @ known]).cpu()
        context.world.add_up([sums])
        correlation = sums[0] / sums[1].clamp(min=1e-12)
        correlation.fill_diagonal_(1)
        correlation[:old, :old] = self.head.correlation[:old, :old]
        self.head.correlation.copy_(correlation)

    def loss(self, batch: Batch) -> dict[str, Any]:
        options, new = self.options, self.context.session.columns
        classifiers = self.head.classifiers()
        logits = self.head.classify(self.context.forward(batch.images).features, classifiers)
        classification = asymmetric_loss(logits[:, new], batch.labels[:, new])
        parts = {"classification": options.classification_weight * self.scale * classification}
        if self.old_head is not None:
            distilled = soft_distillation(logits, self.ask_old_head(batch.images), batch.labels)
            parts["distillation"] = options.distillation_weight * self.scale * distilled
            if options.graph_weight:
                moved = (classifiers[: new.start] - self.old_head.classifiers()).square().sum()
                parts["graph"] = options.graph_weight * batch.share * moved
        return {"loss": sum(parts.values()), "parts": parts, "logits": logits}
