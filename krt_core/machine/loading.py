"""Large packages: loading them, and leaving without taking them apart."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around ``import torch`` or ``import timm``: they make some hundred thousand objects, none of them garbage, and
    looking through these again and again is a tenth of the time that loading takes, and later of what a short run
    does. So they are left out of sight until the process ends."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or what a library still holds at the very end looks lost to it, which it says
        if was:
            gc.enable()


def leave() -> NoReturn:
    """End this process, whose work is done and on disk, with 0. Taking everything apart takes a second with PyTorch
    loaded, and its threads can abort a process then that has done its work."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more, or it is closed
            stream.flush()
    os._exit(0)
