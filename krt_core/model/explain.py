"""Looking into a trained model: where the retention tokens attend, and which patches speak for a class.

The published query is shared by all sessions, so the patch weights of every session have the same shape and differ only
by how much mass the session's retention token takes. What does differ is the evidence: how much each patch moves a
class's logit. docs/attention.md has the formulas and how far each of them can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import RunError
from .network import Network

STEPS = 64  # nodes of the integral: sums then hold to 1e-6 of a logit at the median (docs/attention.md)


@dataclass(frozen=True)
class Look:
    """What a model after some session sees in B images: T sessions, H heads, h·w = N patches, C classes."""

    scores: np.ndarray  # (B, C) probabilities
    logits: np.ndarray  # (B, C)
    transfer: np.ndarray  # (B, T, H) attention mass on the transfer token
    retention: np.ndarray  # (B, T, H) attention mass on the session's retention token
    patches: np.ndarray  # (B, T, H, h, w) attention mass on each patch
    tokens: Tensor  # (B, T, D) what the attention gives: query token + attention output
    parts: Tensor  # (B, T, N, D) the part of it that each patch brings in
    sessions: tuple[int, ...]  # (C,) head of each class
    rest: Callable[[Tensor, int], Tensor]  # tokens (…, D) and a column → its logit (…), through MLP, norm and head
    leak: bool = False  # did the run start from weights that had seen the labels?

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, rows: np.ndarray) -> Look:
        """The same for some of the images: rows (m,) of B."""
        numbers = {name: getattr(self, name)[rows] for name in ("scores", "logits", "transfer", "retention", "patches")}
        return replace(self, **numbers, tokens=self.tokens[rows], parts=self.parts[rows])

    def knows(self, column: int) -> bool:
        """Has the class been learned by then?"""
        return column < len(self.sessions)


@dataclass(frozen=True)
class Evidence:
    """What each patch adds to the logit of one class, for B images."""

    maps: np.ndarray  # (B, h, w) in logits
    baseline: np.ndarray  # (B,) the logit without any patch: their part of the attention output taken away
    logits: np.ndarray  # (B,)

    @property
    def error(self) -> np.ndarray:
        """(B,) how far the maps' sums are from the change of the logit that they explain."""
        return self.maps.sum(axis=(1, 2)) - (self.logits - self.baseline)


@torch.no_grad()
def look(model: Network, images: Tensor) -> Look:
    """Attention of an ICA model for images (B, 3, S, S) in [0, 1], or the maps that its backbone has made of them, and
    what its evidence is made of.

    Raises RunError for a linear head.
    """
    if model.kind != "ica":
        raise RunError("This model has a linear head: there is no attention to look at.")
    features = model.features(images)
    patches = model.patch_tokens(features)
    ica, grid = model.ica, features.shape[-2:]
    heads, head_dim = ica.heads, ica.dim // ica.heads
    tokens, attention = ica.attend(patches, with_attention=True)
    values = ica.attention.v(ica.norm1(patches)).unflatten(-1, (heads, head_dim))  # (B, N, H, hd)
    projection = ica.attention.proj.weight.unflatten(1, (heads, head_dim))  # (D, H, hd)
    projected = torch.einsum("bnhk,dhk->bnhd", values, projection)
    parts = torch.einsum("bthn,bnhd->btnd", attention.patches, projected)
    sessions = tuple(t for t, size in enumerate(model.session_sizes) for _ in range(size))
    norm, mlp, session_heads = ica.norm2, ica.mlp, list(model.heads)
    starts = np.concatenate([[0], np.cumsum(model.session_sizes)])

    def rest(tokens: Tensor, column: int) -> Tensor:
        session = sessions[column]
        return session_heads[session](tokens + mlp(norm(tokens)))[..., column - starts[session]]

    logits = torch.stack([rest(tokens[:, sessions[c]], c) for c in range(len(sessions))], dim=1)
    shaped = attention.patches.unflatten(-1, tuple(grid))
    arrays = (torch.sigmoid(logits), logits, attention.transfer, attention.retention, shaped)
    return Look(*(a.float().numpy() for a in arrays), tokens, parts, sessions, rest, bool(model.leak))


def evidence(seen: Look, column: int, steps: int = STEPS) -> Evidence:
    """How much each patch moves the logit of the class in ``column`` (learning order).

    The attention output is a sum over patches and tokens. From it, take the patches' parts away (the attention weights
    stay) for the baseline b, and bring all of them back along a straight line b + α p, p = Σ p_n. Patch n contributes
    ∫ ⟨∂logit/∂o (b + α p), p_n⟩ dα, and these contributions add up to logit(b + p) − logit(b) exactly, whatever MLP,
    norms and head do; `Evidence.error` is what the numerical integral (Gauss-Legendre) leaves. steps 0: gradient ×
    value at the image itself, the first-order map that does not add up. Source: integrated gradients (Sundararajan et
    al., ICML 2017) over the patches' values. Raises RunError if the class had not been learned.
    """
    if not seen.knows(column):
        raise RunError(f"Class {column} was not yet learned: the model has {len(seen.sessions)} classes.")
    session = seen.sessions[column]
    end, parts = seen.tokens[:, session], seen.parts[:, session]  # (B, D), (B, N, D)
    whole = parts.sum(dim=1)
    start = end - whole
    if steps:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        alphas, weights = (nodes + 1) / 2, weights / 2
    else:
        alphas, weights = np.ones(1), np.ones(1)
    along = torch.as_tensor(alphas, dtype=end.dtype)[:, None, None]
    path = (start + along * whole).requires_grad_(True)  # (K, B, D)
    with torch.enable_grad():
        gradient = torch.autograd.grad(seen.rest(path, column).sum(), path)[0]
    mean = (torch.as_tensor(weights, dtype=end.dtype)[:, None, None] * gradient).sum(dim=0)  # (B, D)
    maps = torch.einsum("bnd,bd->bn", parts, mean).unflatten(-1, seen.patches.shape[-2:])
    with torch.no_grad():
        baseline = seen.rest(start, column)
    return Evidence(maps.numpy(), baseline.numpy(), seen.logits[:, column])


def grad_cam(
    model: Network, images: Tensor, column: int, answer: Callable[[Tensor], Tensor] | None = None
) -> np.ndarray:
    """(B, h, w) Grad-CAM of a class on the last feature map: positive where channels that raise its logit are strong.

    Any head. images: or the maps that the backbone has made of them. answer: maps → (B, C), where it is not the model's
    own logits that are to be explained. Source: Selvaraju et al., ICCV 2017.
    """
    with torch.no_grad():
        features = model.features(images)
    features = features.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = (answer or model.classify)(features)
        gradient = torch.autograd.grad(logits[:, column].sum(), features)[0]
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return torch.relu((weights * features.detach()).sum(dim=1)).numpy()
