"""A method whose classifier is a module of its own on the patches of the last feature map.

The network gives the feature maps; its own linear head stands idle. What the module learns is in the method's state, so
that resume, several processes, tests and the best epoch take it along.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Experiment
from ..errors import ConfigError, RunError
from ..machine.precision import full_precision
from ..model import Network
from ..model.ica import TokenMLP
from .base import Context, Method


class GrowingHead(nn.Module):
    """Feature maps (B, channels, h, w) → logits (B, C). ``sizes``: classes of each session it has grown by."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def grow(self, classes: int) -> None:
        """Freeze what belongs to earlier sessions and add what ``classes`` new classes need."""
        self.sizes.append(classes)

    def patches(self, features: Tensor) -> Tensor:
        """(B, N, channels) of maps (B, channels, h, w), in the type of the head's weights: kept maps may be halved."""
        return features.flatten(2).transpose(1, 2).to(next(self.parameters()).dtype)


class OwnHead(Method):
    """Base of methods with a `GrowingHead`: it grows with each session, and its frozen copy from the end of the last
    one is ``old_head``. A subclass says which head (`make_head`), what is learned (`loss`) and, with `state` and
    `load_state` extended, what else is kept."""

    needs_maps = True
    head: GrowingHead
    old_head: GrowingHead | None = None

    def __init__(self, options: Any, experiment: Experiment):
        super().__init__(options, experiment)
        self.experiment = experiment
        self._stored: dict[int, dict[str, Any]] = {}  # sessions grown by → what a run folder had of such a head
        name = experiment.method
        if experiment.train.head_start != "random":
            raise ConfigError(f"train.head_start=ridge is for linear heads, and {name} has a head of its own: random.")
        if experiment.model.expand:
            raise ConfigError(f"model.expand is of the linear head, and {name} has a head of its own: set it to 0.")
        if experiment.model.embed_dim % getattr(options, "heads", 1):
            raise ConfigError(f"model.embed_dim must be a multiple of {name}.heads ({options.heads}).")

    def make_head(self, channels: int, patches: int) -> GrowingHead:
        """The head before its first session, for maps of so many channels and patches."""
        raise NotImplementedError

    def start_session(self, context: Context) -> None:
        super().start_session(context)
        model, index = context.model, context.session.index
        model.heads.requires_grad_(False)  # idle: processes would wait for gradients of theirs
        like = next(model.backbone.parameters())
        if not hasattr(self, "head"):
            # Drawn anew in a resumed run, and replaced: the session's own classes must draw what they would have drawn.
            with torch.random.fork_rng(devices=(), enabled=index > 0):
                self._make(model, [s.stop - s.start for s in context.protocol.sessions[:index]])
        self.head.to(like)
        self._take_stored()
        self.old_head = copy.deepcopy(self.head).eval().requires_grad_(False) if index else None
        self.head.grow(context.session.stop - context.session.start)
        self.head.to(like)
        self._take_stored()

    def _make(self, model: Network, sizes: Sequence[int]) -> None:
        """The head as it was after sessions of so many classes, with other numbers."""
        height, width = model.backbone.grid
        self.head = self.make_head(model.backbone.channels, height * width)
        for classes in sizes:
            self.head.grow(classes)

    def _take_stored(self) -> None:
        if stored := self._stored.pop(len(self.head.sizes), None):
            self.head.load_state_dict(stored)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.head.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def ask_old_head(self, images: Tensor) -> Tensor:
        """Logits (B, C old) of the old head on what the old backbone makes of the images."""
        assert self.old_head is not None, "the first session has no old head"  # a slip of a method's own  # nosec B101
        return full_precision(self.old_head(self.context.ask_old(images).features))

    def scores(self, model: Network, images: Tensor) -> Tensor:
        return torch.sigmoid(full_precision(self.head(model.features(images))))

    def before(self) -> OwnHead:
        made = copy.copy(self)
        made.head = self.old_head or self.head
        return made

    def state(self) -> dict[str, Any]:
        if not hasattr(self, "head"):
            return {}
        return {"sessions": len(self.head.sizes), "head": dict(self.head.state_dict())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Of a resumed run the head is not there yet: its tensors wait until it has grown as far."""
        if "head" in state:
            self._stored[state["sessions"]] = state["head"]
        if hasattr(self, "head"):
            self._take_stored()

    def reopen(self, model: Network, state: dict[str, Any]) -> None:
        with torch.random.fork_rng(devices=()):  # what is drawn is replaced
            self._make(model, model.session_sizes)
        self.head.to(next(model.backbone.parameters())).eval().requires_grad_(False)
        super().reopen(model, state)
        if self._stored or not state:
            raise RunError("The method's state holds no head of the model's classes.")


def soft_distillation(logits: Tensor, old_logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the old classes, summed, against the old model's probabilities; 1 where a label says so.

    logits and labels (B, C), old_logits (B, C old)."""
    old = old_logits.shape[1]
    soft = torch.sigmoid(old_logits).to(logits.dtype)
    targets = torch.where(labels[:, :old] > 0, 1.0, soft)
    return F.binary_cross_entropy_with_logits(logits[:, :old], targets, reduction="sum")


class SelfAttention(nn.Module):
    """A transformer block with LayerNorm before each half: tokens (B, N, D) → (B, N, D)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = TokenMLP(dim, int(dim * mlp_ratio))
        self.apply(small_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, D / H)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


def small(*shape: int) -> nn.Parameter:
    """Truncated normal, std 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def small_linear(module: nn.Module) -> None:
    """Such weights and no bias, for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
