"""Numbers, texts and tensors of two runs: equal to the last bit, or by how much not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested dicts, lists, arrays and tensors as one dict: dotted place → tensor or plain value."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{place}.{key}".lstrip(".")).items()}
    if isinstance(value, np.ndarray):
        return {place: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
        if numbers:
            return {place: torch.tensor(value, dtype=torch.float64)}
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{place}.{i}".lstrip(".")).items()}
    return {place: value}


def largest(one: dict[str, Any], two: dict[str, Any]) -> tuple[str, float] | None:
    """In words how many of the values differ and which most, and by how much; None where all are the same."""
    found = {}
    for name in dict.fromkeys([*one, *two]):
        if name not in one or name not in two:
            found[name] = ("A has none" if name not in one else "B has none", math.nan)
        elif not equal(one[name], two[name]):
            size = apart(one[name], two[name])
            found[name] = _told(one[name], two[name], size), size
    if not found:
        return None
    sizes = [size for _, size in found.values() if not math.isnan(size)]
    worst = max(found, key=lambda name: -1.0 if math.isnan(found[name][1]) else found[name][1])
    words = f"{worst}: {found[worst][0]}" if worst else found[worst][0]
    if len(one) > 1:
        words = f"{len(found)} of {len(one.keys() | two.keys())} differ, most {words}"
    return words, max(sizes, default=math.nan)


def _told(one: Any, two: Any, size: float) -> str:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape:
            return f"{tuple(one.shape)} and {tuple(two.shape)} numbers"
        if one.numel() == 1:
            return f"{number(one.item())} and {number(two.item())}"
        by = "" if math.isnan(size) else f" by up to {size:.2g}"
        return f"{int((one != two).sum())} of {one.numel()} numbers{by}"
    return f"{number(one)} and {number(two)}"


def equal(one: Any, two: Any) -> bool:
    """To the last bit; what is no number is one value."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        alike = one.shape == two.shape and one.dtype == two.dtype
        return alike and torch.equal(*(each.contiguous().flatten().view(torch.uint8) for each in (one, two)))
    both = isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two)
    return both or (type(one) is type(two) and one == two) or (one == two and not isinstance(one, (bool, Tensor)))


def apart(one: Any, two: Any) -> float:
    """The largest difference; NaN of what has none."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape or not one.numel() or one.dtype == torch.bool:
            return math.nan
        return float((one.double() - two.double()).abs().max())
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (one, two))
    return abs(one - two) if numbers else math.nan


def number(value: Any) -> str:
    return "nothing" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
