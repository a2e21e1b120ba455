"""CSC: a graph over class activation maps calibrates how classes are related; entropy calibrates how sure old ones are.

Zhang et al., *Confidence Self-Calibration for Multi-Label Class-Incremental Learning*, ECCV 2024.

- **Class nodes.** Patches X (B, N, D) = features · P; activation maps M = X Rᵀ + b (B, N, C) by a row R_c for each
  class; nodes V = sigmoid(M)ᵀ X / N (B, C, D).
- **Static graph.** V₁ = V + LeakyReLU(S V W₁) with a learnable S (C, C), common to all images. A new session's S has
  the old block inherited and the identity elsewhere.
- **Dynamic graph.** Of each image Q = sigmoid([V₁, g] Fᵀ) / C (B, C, C), g (B, D) the mean of V₁ over classes and
  F (C, 2 D) with a row for each class; V₂ = V₁ + LeakyReLU(Q V₁ W₂).
- **Answer.** The logit of class c is the mean of K_c · V₂_c + k_c and of the highest value of M_c over the patches.
- **Loss.** classification of the new classes + λ · binary cross-entropy of the old classes against the old model's
  probabilities − β · Σ H(p_c) over the old classes, H the binary entropy: whoever is too sure of old classes pays.

Deviations: sums over patches and classes are means, so that no number depends on the size of the map or the count of
classes; the residuals, the mean of both answers, β and λ are our choice. Classification is the asymmetric loss of all
methods here. An old label that an exemplar shows is a target of 1 in the distillation. Rows of old classes go on
learning.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..options import CSCOptions
from .head import GrowingHead, OwnHead, small, small_linear, soft_distillation


class ActivationGraph(GrowingHead):
    """Class nodes of activation maps, and two graph convolutions over them; see the module."""

    def __init__(self, channels: int, dim: int, graph: bool):
        super().__init__()
        self.dim, self.graph = dim, graph
        self.projection = nn.Linear(channels, dim)
        self.maps, self.map_biases = nn.ParameterList(), nn.ParameterList()  # R (C, D), b (C,), a session each
        if graph:
            self.static, self.dynamic = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)  # W₁, W₂
            self.relations = nn.ParameterList()  # F (C, 2 D)
            self.rows, self.biases = nn.ParameterList(), nn.ParameterList()  # K (C, D), k (C,)
            self.adjacency = nn.Parameter(torch.eye(0))  # S
        self.apply(small_linear)

    def grow(self, classes: int) -> None:
        super().grow(classes)
        self.maps.append(small(classes, self.dim))
        self.map_biases.append(nn.Parameter(torch.zeros(classes)))
        if self.graph:
            self.relations.append(small(classes, 2 * self.dim))
            self.rows.append(small(classes, self.dim))
            self.biases.append(nn.Parameter(torch.zeros(classes)))
            old = self.adjacency.data
            grown = torch.eye(len(old) + classes).to(old)
            grown[: len(old), : len(old)] = old
            self.adjacency = nn.Parameter(grown)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            patches = self.projection(self.patches(features))  # X (B, N, D)
            maps = patches @ _all(self.maps).T + _all(self.map_biases)  # M (B, N, C)
            highest = maps.amax(dim=1)
            if not self.graph:
                return highest
            nodes = self.relate(torch.sigmoid(maps).transpose(1, 2) @ patches / patches.shape[1])
            return ((nodes * _all(self.rows)).sum(dim=-1) + _all(self.biases) + highest) / 2

    def relate(self, nodes: Tensor) -> Tensor:
        """V (B, C, D) → V₂ (B, C, D)."""
        nodes = nodes + F.leaky_relu(self.static(self.adjacency @ nodes), 0.2)  # V₁
        beside = nodes.mean(dim=1, keepdim=True).expand_as(nodes)
        matrix = torch.sigmoid(torch.cat([nodes, beside], dim=-1) @ _all(self.relations).T) / nodes.shape[1]  # Q
        return nodes + F.leaky_relu(self.dynamic(matrix @ nodes), 0.2)


class CSC(OwnHead):
    head: ActivationGraph
    Options = CSCOptions
    only_new = True
    knows_unknown = True
    paper = "Zhang et al., ECCV 2024"
    stores = "the last session's graph"

    def make_head(self, channels: int, patches: int) -> ActivationGraph:
        return ActivationGraph(channels, self.experiment.model.embed_dim, self.options.graph)

    def loss(self, batch: Batch) -> dict[str, Any]:
        new = self.context.session.columns
        logits = self.head(self.context.forward(batch.images).features)
        parts = {"classification": self.scale * asymmetric_loss(logits[:, new], batch.labels[:, new])}
        if self.old_head is not None:
            distilled = soft_distillation(logits, self.ask_old_head(batch.images), batch.labels)
            parts["distillation"] = self.options.distillation_weight * self.scale * distilled
            if self.options.entropy_weight:
                parts["entropy"] = -self.options.entropy_weight * self.scale * entropy(logits[:, : new.start]).sum()
        return {"loss": sum(parts.values()), "parts": parts, "logits": logits}


def entropy(logits: Tensor) -> Tensor:
    """Binary entropy in nats of sigmoid(logits): log(1 + e^z) − z · sigmoid(z), finite in value and gradient."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


def _all(sessions: nn.ParameterList) -> Tensor:
    return torch.cat(list(sessions))
