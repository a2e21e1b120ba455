"""The authors' parameter names, to and from ours.

Their backbone has InPlaceABN layers, y = leaky_relu((|w| + 1e-5)·x̂ + b); ours has batch norm with weight |w| + 1e-5.
Converting back gives w = weight − 1e-5, which computes the same: a negative w comes back positive, and a clearly
negative weight of ours has no counterpart there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.network import Network
from ..model.norm import ABN_EPS

PARTS = (  # (theirs, ours); whatever starts otherwise belongs to the backbone
    ("cls_token", "ica.transfer_token"),
    ("task_tokens.", "ica.retention_tokens."),
    ("pos_embed", "position"),
    ("last_proj.", "projection."),
    ("tab.attn.", "ica.attention."),
    ("tab.", "ica."),
    ("head.", "heads."),
)


def is_published(names: set[str]) -> bool:
    """Do these parameter names belong to a KRT model saved by the published code?"""
    return "cls_token" in names and any(name.startswith("task_tokens.") for name in names)


def session_sizes(tensors: Mapping[str, Tensor]) -> list[int]:
    """Classes of each session, read off the heads of a published model."""
    found = {int(m[1]): len(t) for name, t in tensors.items() if (m := re.fullmatch(r"head\.(\d+)\.head\.bias", name))}
    return [found[index] for index in sorted(found)]


def from_published(tensors: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Published tensors under our names; ``body`` is the timm TResNet they are meant for."""
    ours, rest = {}, {}
    for name, tensor in tensors.items():
        prefix = next((pair for pair in PARTS if name.startswith(pair[0])), None)
        if prefix:
            ours[prefix[1] + name.removeprefix(prefix[0])] = tensor
        else:
            rest[name] = tensor
    ours.update({f"backbone.body.{name}": tensor for name, tensor in tresnet_to_timm(rest, body).items()})
    return ours


def to_published(network: Network) -> dict[str, Tensor]:
    """Our tensors under the published names, on the CPU.

    Raises CheckpointError unless it is ICA on a TResNet, with batch-norm weights that InPlaceABN can have.
    """
    if network.kind != "ica" or "body.conv1.conv.weight" not in network.backbone.body.state_dict():
        raise CheckpointError("Only the ICA head on a TResNet backbone can be written in the published layout.")
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    blurred = {name for name, module in network.backbone.body.named_modules() if _is_blurred(module)}
    theirs = {}
    for name, tensor in state.items():
        if name.startswith("backbone.body."):
            inner = name.removeprefix("backbone.body.")
            if inner.endswith("bn.weight"):
                if tensor.min() < -1e-3:
                    raise CheckpointError(f"{inner} has negative values, which InPlaceABN cannot express.")
                tensor = (tensor - ABN_EPS).clamp(min=0)
            theirs[_published_name(inner, blurred)] = tensor
        else:
            prefix = max((pair for pair in PARTS if name.startswith(pair[1])), key=lambda pair: len(pair[1]))
            theirs[prefix[0] + name.removeprefix(prefix[1])] = tensor
    return theirs


def tresnet_to_timm(tensors: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Backbone tensors of the TResNet authors' layout (with or without the prefix ``body.``) under timm's names."""
    from timm.models.tresnet import checkpoint_filter_fn

    prefixed = {name if name.startswith("body.") else f"body.{name}": tensor for name, tensor in tensors.items()}
    return checkpoint_filter_fn(prefixed, body)


def load_published(network: Network, tensors: Mapping[str, Tensor], where: str) -> None:
    """Grow a network that has no session yet to the sessions of a published model and take its weights.

    Raises CheckpointError, with the first tensor that does not fit, if it was made for another model.
    """
    found = from_published(tensors, network.backbone.body)
    for classes in session_sizes(tensors):
        network.add_session(classes)
    wanted = {n: t for n, t in network.state_dict().items() if n in found or not n.endswith("num_batches_tracked")}
    wrong = [n for n, t in wanted.items() if n not in found or found[n].shape != t.shape]
    wrong += [n for n in found if n not in wanted]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit the configured model: {len(wrong)} of {len(wanted)} tensors differ, the first is "
            f"{wrong[0]} (file {_shape(found.get(wrong[0]))}, model {_shape(wanted.get(wrong[0]))}). "
            "Check model.backbone, model.embed_dim and data.image_size."
        )
    network.load_state_dict(found, strict=False)


def _published_name(name: str, blurred: set[str]) -> str:
    """timm's name of a backbone tensor → the published one; a convolution followed by a blur lies one level deeper."""
    match = re.fullmatch(r"(body\.(?:.+\.)?(?:conv\d+|downsample\.\d+))\.(conv|bn)\.(\w+)", name)
    if not match:
        return name.removeprefix("body.")
    block, layer, what = match.groups()
    deeper = "0." if block in blurred else ""
    return f"{block.removeprefix('body.')}.{deeper}{0 if layer == 'conv' else 1}.{what}"


def _is_blurred(module: nn.Module) -> bool:
    blur = getattr(module, "aa", None)
    return isinstance(blur, nn.Module) and not isinstance(blur, nn.Identity)


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


def save_published(network: Network, path) -> None:
    """Write a ``.pth`` file that the published code can load: {"state_dict": tensors}."""
    from ..machine.home import atomic_write

    atomic_write(path, lambda file: torch.save({"state_dict": to_published(network)}, file))
