"""Large packages: loading them, and leaving without taking them apart."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

_stays = False  # does what is loaded stay out of the garbage collector's sight?


def be_command() -> None:
    """This process does one thing and ends: what it loads is never garbage, and is not looked through again."""
    global _stays
    _stays = True
    atexit.register(gc.unfreeze)  # or what a library still holds at the very end looks lost to it, which it says


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around ``import torch`` or ``import timm``: they make some hundred thousand objects, none of them garbage, and
    looking through these again and again is a tenth of the time that loading takes, and later of what a short command
    does."""
    was, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if _stays and len(sys.modules) > before:
            gc.freeze()
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
