"""Numbers that must not be rounded to half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float32 whatever the autocast; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def set_tf32(on: bool) -> None:
    """May a GPU round what goes into float32 products and convolutions to 10 bits (TF32)?

    PyTorch rounds in convolutions unless told otherwise. Set by the older of its two ways: they must not be mixed, its
    compiler reads this one, and every release from 2.6 has it.
    """
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
