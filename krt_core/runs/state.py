"""What a method keeps between sessions, as a run folder holds it: numbers and texts in JSON, tensors in safetensors.

Where a tensor was, the JSON says ``{"tensor": "name in the file"}``.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from ..errors import RunError

MARK = "tensor"


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A method's state (dicts, lists, plain values, tensors) → what is plain of it, and its tensors by name.

    Names are the places in the state, as in ``fisher.backbone``. Keys become texts, as in JSON. Raises RunError, naming
    the place, for what is neither.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value.detach()
            return {MARK: place}
        if isinstance(value, dict):
            return {str(key): plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item, f"{place}.{index}") for index, item in enumerate(value)]
        try:
            return json.loads(json.dumps(value))
        except TypeError:
            kind = type(value).__name__
            raise RunError(f"The method's state has a {kind} at {place}: make it a tensor, or plain numbers.") from None

    return plain(state, ""), tensors


def join(state: Any, tensors: dict[str, Tensor]) -> Any:
    """`split` undone (but for tuples, which come back as lists, and keys, which are texts)."""
    if isinstance(state, dict):
        if state.keys() == {MARK}:
            return tensors[state[MARK]]
        return {key: join(value, tensors) for key, value in state.items()}
    return [join(value, tensors) for value in state] if isinstance(state, list) else state
