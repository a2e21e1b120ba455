"""Loading large packages."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Around ``import torch`` or ``import timm``: they make some hundred thousand objects, none of them garbage, and
    looking through these again and again is a tenth of the time that loading takes."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
