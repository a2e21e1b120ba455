"""MULTI-LANE: of each session a lane of its own that sums up the patch tokens and reads its classes out of the sums.

De Min et al., *Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental Learning*, CoLLAs
2024.

With patch tokens X (B, N, channels), S selectors and a class token of the lane's own:

    summaries = softmax(selectors Xᵀ / √channels) X W        (B, S, D), softmax over the N patches
    token     = block([class token, summaries]) at place 0   (B, D), self-attention, pre-LayerNorm
    logits    = head(token / ‖token‖)                        (B, classes of the session)

A lane begins as a copy of the last session's (selectors, W, block, class token; the head is new) and is frozen with its
session. The loss is binary cross-entropy on the session's own labels alone: nothing is ever taught about an old class,
and nothing forgotten. To answer, every lane reads the same tokens, independently of the others.

Deviations: in the paper each block of a frozen ViT has selectors, with key-value prompts in the first five, and the
ViT's own weights read out; here the lanes stand on the last feature map of any backbone, so that a projection W and a
block of the lane's own take the place of prompts and ViT blocks, and a lane has more parameters. The backbone stands
still from the start, as in the paper, whatever ``model.freeze`` says, or, with ``adapt``, after the first session; so
the tokens are detached. The loss is summed and scaled as everywhere here. Exemplars teach the session's classes where
they show them.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..machine.precision import full_precision
from ..options import MultiLaneOptions
from .base import Context
from .head import GrowingHead, OwnHead, SelfAttention, small, small_linear


class Lane(nn.Module):
    """Patch tokens (B, N, channels) → logits (B, classes of one session)."""

    def __init__(self, channels: int, dim: int, selectors: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.selectors = nn.Parameter(torch.randn(selectors, channels))  # far from one another: alike ones stay alike
        self.token = small(1, 1, dim)
        self.projection = nn.Linear(channels, dim)
        self.projection.apply(small_linear)
        self.block = SelfAttention(dim, heads, mlp_ratio)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 1)  # `Lanes.grow` makes one for the session's classes

    def forward(self, patches: Tensor) -> Tensor:
        scores = full_precision(torch.einsum("bnc,sc->bsn", patches, self.selectors)) * patches.shape[-1] ** -0.5
        summaries = torch.einsum("bsn,bnc->bsc", scores.softmax(dim=-1).to(patches.dtype), patches)
        summed = self.projection(summaries)  # (B, S, D)
        token = self.token.to(summed.dtype).expand(summed.shape[0], -1, -1)
        read = self.norm(self.block(torch.cat([token, summed], dim=1))[:, 0])  # (B, D)
        with torch.autocast(read.device.type, enabled=False):  # rounded to bfloat16, scores would tie
            return self.head(F.normalize(full_precision(read), dim=-1))


class Lanes(GrowingHead):
    """A lane for each session."""

    def __init__(self, channels: int, dim: int, selectors: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.new = functools.partial(Lane, channels, dim, selectors, heads, mlp_ratio)
        self.dim, self.lanes = dim, nn.ModuleList()

    def grow(self, classes: int) -> None:
        super().grow(classes)
        lane = copy.deepcopy(self.lanes[-1]) if len(self.lanes) else self.new()
        lane.head = nn.Linear(self.dim, classes)
        self.lanes.requires_grad_(False)
        self.lanes.append(lane)

    def forward(self, features: Tensor) -> Tensor:
        patches = self.patches(features)
        return torch.cat([lane(patches) for lane in self.lanes], dim=1)


class MultiLane(OwnHead):
    Options = MultiLaneOptions
    only_new = True
    knows_unknown = True
    hidden = -1
    paper = "De Min et al., CoLLAs 2024"
    stores = "a lane: selectors, a projection, a block and a class token"

    def make_head(self, channels: int, patches: int) -> Lanes:
        model, options = self.experiment.model, self.options
        return Lanes(channels, model.embed_dim, options.selectors, options.heads, model.mlp_ratio)

    def start_session(self, context: Context) -> None:
        super().start_session(context)
        if (context.session.index or not self.options.adapt) and not context.model.still:
            context.model.freeze_backbone()
            context.log("the lanes stand on the backbone, which learns no more; model.freeze=all keeps its maps")

    def loss(self, batch: Batch) -> dict[str, Any]:
        own = self.context.session.columns
        logits = self.head(self.context.forward(batch.images).features)
        # Without margin and focal weight this is binary cross-entropy.
        loss = self.scale * asymmetric_loss(logits[:, own], batch.labels[:, own], gamma_neg=0.0, clip=0.0)
        return {"loss": loss, "parts": {"classification": loss}, "logits": logits}
