"""Looking into a trained model: where the retention tokens attend, and which patches speak for a class.

The published query is shared by all sessions, so the patch weights of every session have the same shape and differ only
by how much mass the session's retention token takes. What does differ is the evidence: how much each patch's value
pushes a class's logit up or down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import MultiLabelDataset
from .errors import DataError, RunError, did_you_mean
from .model import Network
from .model.network import build_network
from .protocol import Protocol
from .run import Run


@dataclass
class Explanation:
    """For B images: numpy arrays, h·w = N patches."""

    scores: np.ndarray  # (B, C) probabilities
    transfer: np.ndarray  # (B, T, H) attention mass on the transfer token
    retention: np.ndarray  # (B, T, H) attention mass on the session's retention token
    patches: np.ndarray  # (B, T, H, h, w) attention mass on each patch
    evidence: np.ndarray  # (B, C, h, w) first-order contribution of each patch to the class's logit
    leak: bool = False  # did the run start from weights that had seen the labels?


def load_model(run: Run, session: int) -> Network:
    """The network as it was after a session (0 is the first), in eval mode on the CPU; RunError if unfinished."""
    state = run.session_state(session)
    model = build_network(run.experiment)
    tensors = run.model_state(session)
    stops = [s.stop for s in run.protocol.sessions]
    sizes = np.diff([0, *stops])
    heads = len({name.split(".")[1] for name in tensors if name.startswith("heads.")})
    if heads == 1 and session > 0:  # joint training: one head holds all classes
        sizes = np.array([stops[-1]])
    for size in sizes[:heads]:
        model.add_session(int(size))
    model.load_state_dict(tensors)
    if state["classes"] != list(run.protocol.classes):
        raise RunError(f"{run.folder}: classes of session {session + 1} do not follow from the protocol.")
    model.leak = run.leak
    return model.eval()


def explain(model: Network, images: Tensor) -> Explanation:
    """Attention and evidence of an ICA model for images (B, 3, S, S) in [0, 1]. Raises RunError for a linear head.

    Evidence of patch n for class c of session t: ⟨∂logit_c / ∂o_t, o_{t,n}⟩, where o_t is the attention output and
    o_{t,n} the part of it that patch n brings in (weight × projected value). It is exact for the attention and first
    order through MLP, norm and head.
    """
    if model.kind != "ica":
        raise RunError("This model has a linear head: there is no attention to look at.")
    with torch.no_grad():
        features = model.backbone(images)
        patches = model.patch_tokens(features)
        ica, (height, width) = model.ica, features.shape[-2:]
        heads, head_dim = ica.heads, ica.dim // ica.heads
        before, attention = ica.attend(patches, with_attention=True)
        values = ica.attention.v(ica.norm1(patches)).unflatten(-1, (heads, head_dim))  # (B, N, H, hd)
        projection = ica.attention.proj.weight.unflatten(1, (heads, head_dim))  # (D, H, hd)
    before.requires_grad_(True)  # (B, T, D): KT + o_t, so its gradient is that of o_t
    after = before + ica.mlp(ica.norm2(before))
    logits = [head(after[:, t]) for t, head in enumerate(model.heads)]
    evidence = []
    for t, block in enumerate(logits):
        for column in range(block.shape[1]):
            gradient = torch.autograd.grad(block[:, column].sum(), before, retain_graph=True)[0][:, t]  # (B, D)
            pull = torch.einsum("bd,dhk->bhk", gradient, projection)  # gradient at the head outputs
            per_patch = torch.einsum("bhk,bnhk,bhn->bn", pull, values, attention.patches[:, t])
            evidence.append(per_patch)
    scores = torch.sigmoid(torch.cat(logits, dim=1))
    maps = torch.stack(evidence, dim=1).unflatten(-1, (height, width))
    shaped = attention.patches.unflatten(-1, (height, width))
    arrays = (scores, attention.transfer, attention.retention, shaped, maps)
    return Explanation(*(array.detach().float().numpy() for array in arrays), leak=bool(model.leak))


def choose_images(dataset: MultiLabelDataset, protocol: Protocol, ids: Sequence[str] = (), count: int = 3) -> list[int]:
    """Rows of the named images or, without names, of the first ``count`` that show a base class and classes of two
    later sessions (or as near to that as there is). Raises DataError for an unknown id."""
    if ids:
        known = {str(image): row for row, image in enumerate(dataset.ids)}
        for image in ids:
            if str(image) not in known:
                raise DataError(f"{dataset.name} {dataset.split} has no image {image!r}.{did_you_mean(image, known)}")
        return [known[str(image)] for image in ids]
    labels = protocol.reorder(dataset.labels)
    sessions = np.stack([labels[:, s.columns].any(axis=1) for s in protocol.sessions], axis=1)
    worth = 10 * sessions[:, 0] + sessions[:, 1:].sum(axis=1).clip(max=2)
    return np.argsort(-worth, kind="stable")[:count].tolist()
