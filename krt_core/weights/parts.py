"""From what a file holds to state dicts: nests of dictionaries and prefixes of names are seen through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .files import StandIn

# Kept beside weights by trainers, and no weights: optimisers, schedules, random states, what callbacks remember.
NO_WEIGHTS = re.compile(
    r"optim|sched|^(grad_?)?scaler|(^|_)rng|callback|^loops?$|^amp$|random_state|^loss", re.IGNORECASE
)
# The second of two networks that are kept: averages, targets, and whatever only helps to train the first.
SECOND = re.compile(
    r"(^|[._])(ema|swa|averaged?|target|momentum|student|shadow|discriminator|critic)([._]|\d|$)|encoder_k$|^ema|ema$",
    re.IGNORECASE,
)
# Put around a network by compilers and by training in several processes, also in the midst of a name.
AROUND = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# What a network is called by the module that holds it.
HELD_AS = re.compile(
    r"(module|_?model|net|network|backbone|encoder|trunk|params|state_dict|generator|extractor|cnn|visual|lightning_module|"
    r"(base|image|vision|feature|features|online|target|momentum|query|key|inner|main|wrapped|ema|swa)_?"
    r"(model|net|network|encoder|backbone|extractor|tower|module)|encoder_[qk]|student|teacher|ema|learner|(model|net|network)_?ema)$",
    re.IGNORECASE,
)  # fmt: skip
FIRST_LAYER = re.compile(
    r"(patch_embed|pos_embed|conv_proj|cls_token|class_token|stem|conv1|conv_stem|embeddings)(\.|$)"
)
OF_ONE_MODULE = {
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "kernel",
    "scale",
    "mean",
    "var",
}
DEEPEST = 12


@dataclass
class Part:
    """Tensors of one network and the keys and prefixes under which they lay, such as ``state_dict.module.``."""

    at: str
    tensors: dict[str, Tensor]

    def is_like(self, other: Part) -> bool:
        """Could one be taken for the other, by the number of their layers?"""
        return 4 * len(self.tensors) >= 3 * len(other.tensors)


def parts_of(content: Any) -> tuple[list[Part], dict[str, Any]]:
    """State dicts in what a file holds, the one to use first, and the plain values beside them by dotted key.

    Of two networks that are as large the plain one goes before its average, the teacher before its student, an
    encoder before the one that follows it.
    """
    found: list[Part] = []
    about: dict[str, Any] = {}
    _collect(content, "", found, about, ())
    parts = [inner for part in found for inner in _without_prefixes(part)]
    most = max((len(part.tensors) for part in parts), default=0)  # not by values: a queue of features has many
    parts.sort(key=lambda part: (2 * len(part.tensors) < most, _is_second(part.at), -len(part.tensors)))
    return parts, about


def _collect(content: Any, at: str, found: list[Part], about: dict[str, Any], above: tuple[int, ...]) -> None:
    """Walk dictionaries and lists; each dictionary that holds tensors itself becomes a part."""
    if id(content) in above or len(above) > DEEPEST:  # a dictionary can hold itself
        return
    above = (*above, id(content))
    items = list(_items(content))
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    own: list[Part] = []
    for key, value in items:
        name = f"{at}.{key}" if at else str(key)
        if isinstance(value, (str, int, float, bool)):
            about[name] = value
        elif isinstance(value, (dict, list, tuple, StandIn)) and not NO_WEIGHTS.search(str(key)):
            _collect(value, name, own, about, above)
    modules = [part for part in own if set(part.tensors) <= OF_ONE_MODULE]
    if len(own) > 1 or tensors:  # one dictionary a module: {"conv1": {"weight": ...}, "fc": {"weight": ...}}
        for part in modules:
            inner = part.at[len(at) + 1 :] if at else part.at
            tensors |= {f"{inner}.{name}": tensor for name, tensor in part.tensors.items()}
        own = [part for part in own if part not in modules]
    tensors = {name: tensor for name, tensor in tensors.items() if not NO_WEIGHTS.search(name.split(".")[0])}
    if tensors:
        found.append(Part(at, {AROUND.sub("", name): tensor for name, tensor in tensors.items()}))
    found.extend(_joined(own) if isinstance(content, (list, tuple)) else own)


def _items(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, StandIn):
        content = vars(content)
    if isinstance(content, dict):
        yield from content.items()
    elif isinstance(content, (list, tuple)):
        pairs = [item for item in content if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)]
        yield from pairs if pairs and len(pairs) == len(content) else enumerate(content)


def _joined(parts: list[Part]) -> list[Part]:
    """State dicts of one list, as pipelines keep them: one part where no name is there twice."""
    names = [name for part in parts for name in part.tensors]
    if len(parts) < 2 or len(set(names)) < len(names):
        return parts
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return [Part(parts[0].at.rpartition(".")[0], tensors)]


def _without_prefixes(part: Part) -> list[Part]:
    """The networks that the names of one state dict tell apart, each without its prefix, and what is left over."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in part.tensors.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first if rest else "", {})[rest or name] = tensor
    held = {first: tensors for first, tensors in groups.items() if first and HELD_AS.match(first)}
    left = {n: t for n, t in part.tensors.items() if n.partition(".")[0] not in held}
    if not held or len(left) > len(part.tensors) / 2 or any(FIRST_LAYER.match(name) for name in left):
        return [part]
    at = f"{part.at}." if part.at else ""
    inner = [p for first, tensors in held.items() for p in _without_prefixes(Part(f"{at}{first}", tensors))]
    return inner + ([Part(part.at, left)] if left else [])


def _is_second(at: str) -> bool:
    return any(SECOND.search(key) for key in at.split("."))
