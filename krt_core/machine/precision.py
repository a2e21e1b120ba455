"""Numbers that must not be rounded to half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float32 whatever the autocast; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
