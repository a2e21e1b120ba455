"""Incremental cross-attention (ICA) and the heads that grow with the sessions.

One knowledge-transfer (KT) token is shared by all sessions, one knowledge-retention (KR) token belongs to each. For
session t the keys and values are [KT, KR_t, patches]. As published the query is KT alone, so of N + 2 keys only one
differs between sessions, and `IncrementalCrossAttention` computes everything else once for all of them. With the query
"retention", KR_t asks instead (as in DyTox), and the sessions share the keys only. `looped` states the same thing
plainly, session by session, and is what the tests compare with. Source: Dong et al., ICCV 2023, section 3.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine.precision import full_precision


class Attention(NamedTuple):
    """Attention of the query, per session and head. Masses of one row sum to 1: transfer + retention + patches."""

    transfer: Tensor  # (B, T, H) mass on the KT token itself
    retention: Tensor  # (B, T, H) mass on the session's KR token
    patches: Tensor  # (B, T, H, N) mass on each patch

    def full(self) -> Tensor:
        """(B, T, H, 2 + N) in the order KT, KR_t, patches."""
        return torch.cat([self.transfer.unsqueeze(-1), self.retention.unsqueeze(-1), self.patches], dim=-1)


class CrossAttention(nn.Module):
    """Weights of one multi-head cross-attention without query, key and value biases."""

    def __init__(self, dim: int):
        super().__init__()
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)


class TokenMLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class IncrementalCrossAttention(nn.Module):
    """Patch tokens (B, N, D) → session embeddings (B, T, D). query: "transfer" (published) or "retention"."""

    def __init__(self, dim: int, heads: int = 8, mlp_ratio: float = 4.0, query: str = "transfer"):
        super().__init__()
        if query not in ("transfer", "retention"):
            raise ValueError(f"query must be 'transfer' or 'retention', not {query!r}")
        self.dim, self.heads, self.query = dim, heads, query
        self.transfer_token = nn.Parameter(_truncated_normal(1, 1, dim))
        self.retention_tokens = nn.ParameterList()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TokenMLP(dim, int(dim * mlp_ratio))
        self.apply(_init_linear)

    def add_session(self) -> None:
        """Freeze the KR tokens so far and append a new one."""
        for token in self.retention_tokens:
            token.requires_grad_(False)
        device, dtype = self.transfer_token.device, self.transfer_token.dtype
        self.retention_tokens.append(nn.Parameter(_truncated_normal(1, 1, self.dim).to(device, dtype)))

    def forward(self, patches: Tensor, with_attention: bool = False) -> tuple[Tensor, Attention | None]:
        """Session embeddings (B, T, D) and, on request, the attention that made them."""
        tokens, attention = self.attend(patches, with_attention)
        return tokens + self.mlp(self.norm2(tokens)), attention

    def attend(self, patches: Tensor, with_attention: bool = False) -> tuple[Tensor, Attention | None]:
        """The attention half of the block, query token + attention output, (B, T, D)."""
        if self.query == "retention":
            return self._attend_with_retention(patches, with_attention)
        return self._attend_with_transfer(patches, with_attention)

    def _attend_with_transfer(self, patches: Tensor, with_attention: bool) -> tuple[Tensor, Attention | None]:
        """The published query, in closed form over all sessions.

        With a fixed query the score of a key x under head h is ⟨Wk_hᵀ q_h, x⟩, so keys are never formed. KT and patches
        are pooled once; session t only mixes its own token in with weight w_t = sigmoid(score_t − logsumexp(others)).
        Values are projected after pooling, which is linear, and so happens once per head instead of once per key.
        """
        att, heads, head_dim = self.attention, self.heads, self.dim // self.heads
        transfer = self.norm1(self.transfer_token[0])  # (1, D)
        retention = self.norm1(torch.cat([token[0] for token in self.retention_tokens]))  # (T, D)
        keys = self.norm1(patches)  # (B, N, D)

        query = att.q(transfer).view(heads, head_dim) * head_dim**-0.5
        folded = torch.einsum("hk,hkd->hd", query, att.k.weight.view(heads, head_dim, self.dim))  # Wk_hᵀ q_h: (H, D)
        patch_scores = full_precision(torch.einsum("bnd,hd->bhn", keys, folded.to(keys.dtype)))  # (B, H, N)
        transfer_score = full_precision(transfer @ folded.T)  # (1, H)
        retention_scores = full_precision(retention @ folded.T)  # (T, H)

        shared = torch.cat([transfer_score.T.expand(patches.shape[0], heads, 1), patch_scores], dim=-1)  # (B, H, 1 + N)
        weights = shared.softmax(dim=-1)
        pooled = torch.einsum("bhn,bnd->bhd", weights[..., 1:].to(keys.dtype), keys)
        pooled = pooled + weights[..., :1].to(keys.dtype) * transfer.to(keys.dtype)  # (B, H, D)
        own = torch.sigmoid(retention_scores - shared.logsumexp(dim=-1).unsqueeze(1))  # w_t: (B, T, H)

        value = att.v.weight.view(heads, head_dim, self.dim)
        pooled_value = torch.einsum("bhd,hkd->bhk", pooled, value)  # (B, H, hd)
        retention_value = torch.einsum("td,hkd->thk", retention, value)  # (T, H, hd)
        mix = own.to(pooled_value.dtype).unsqueeze(-1)  # (B, T, H, 1)
        mixed = (1 - mix) * pooled_value.unsqueeze(1) + mix * retention_value  # (B, T, H, hd)
        tokens = self.transfer_token + att.proj(mixed.flatten(2))  # (B, T, D)
        if not with_attention:
            return tokens, None
        rest = (1 - own).unsqueeze(-1) * weights.unsqueeze(1)  # (B, T, H, 1 + N)
        return tokens, Attention(rest[..., 0], own, rest[..., 1:])

    def _attend_with_retention(self, patches: Tensor, with_attention: bool) -> tuple[Tensor, Attention | None]:
        """Every session asks with its own KR token: one batched product over sessions and heads."""
        att, heads, head_dim = self.attention, self.heads, self.dim // self.heads
        retention = torch.cat([token[0] for token in self.retention_tokens])  # (T, D)
        asking, transfer = self.norm1(retention), self.norm1(self.transfer_token[0])
        keys = self.norm1(patches)  # (B, N, D)

        query = att.q(asking).unflatten(-1, (heads, head_dim)) * head_dim**-0.5  # (T, H, hd)
        folded = torch.einsum("thk,hkd->thd", query, att.k.weight.view(heads, head_dim, self.dim))  # (T, H, D)
        patch_scores = torch.einsum("bnd,thd->bthn", keys, folded.to(keys.dtype))  # (B, T, H, N)
        token_scores = torch.stack(
            [torch.einsum("d,thd->th", transfer[0], folded), torch.einsum("td,thd->th", asking, folded)], dim=-1
        )  # (T, H, 2): on KT and on the session's own KR
        scores = torch.cat([full_precision(token_scores).expand(patches.shape[0], -1, -1, -1),
                            full_precision(patch_scores)], dim=-1)  # fmt: skip
        weights = scores.softmax(dim=-1)  # (B, T, H, 2 + N)
        mass = weights.to(keys.dtype)
        pooled = torch.einsum("bthn,bnd->bthd", mass[..., 2:], keys)
        pooled = pooled + mass[..., :1] * transfer.to(keys.dtype) + mass[..., 1:2] * asking.to(keys.dtype)[:, None]
        value = torch.einsum("bthd,hkd->bthk", pooled, att.v.weight.view(heads, head_dim, self.dim))
        tokens = retention + att.proj(value.flatten(2))  # (B, T, D)
        return tokens, Attention(weights[..., 0], weights[..., 1], weights[..., 2:]) if with_attention else None


def looped(ica: IncrementalCrossAttention, patches: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, one session at a time: tokens (B, T, D) and attention (B, T, H, 2 + N)."""
    att, heads, batch = ica.attention, ica.heads, patches.shape[0]
    transfer = ica.transfer_token.expand(batch, -1, -1)
    tokens, maps = [], []
    for retention in ica.retention_tokens:
        sequence = torch.cat([transfer, retention.expand(batch, -1, -1), patches], dim=1)  # (B, 2 + N, D)
        x = ica.norm1(sequence)

        def split(y: Tensor) -> Tensor:
            return y.view(batch, -1, heads, ica.dim // heads).transpose(1, 2)  # (B, H, ., hd)

        asks = 0 if ica.query == "transfer" else 1
        q, k, v = split(att.q(x[:, asks : asks + 1])), split(att.k(x)), split(att.v(x))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(ica.dim // heads)).softmax(dim=-1)  # (B, H, 1, 2 + N)
        token = sequence[:, asks : asks + 1] + att.proj((weights @ v).transpose(1, 2).flatten(2))  # (B, 1, D)
        tokens.append(token + ica.mlp(ica.norm2(token)))
        maps.append(weights.transpose(1, 2))
    return torch.cat(tokens, dim=1), torch.cat(maps, dim=1)


class SessionHead(nn.Module):
    """LayerNorm and a linear classifier on one session's embedding: (B, D) → (B, classes of the session)."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self.apply(_init_linear)

    def forward(self, token: Tensor) -> Tensor:
        return self.head(self.norm(token))


def _truncated_normal(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=0.02)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
