"""The state after an epoch: on disk once a minute, and at once where the training breaks off.

A process that is killed loses what it has learned since the last resume.pt. One that ends by an error, or by Ctrl-C,
has a copy of the state after its last epoch and writes that.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..machine.distributed import World
from ..machine.finite import NotFinite
from .files import is_still
from .folder import Run


class Keeping:
    """Keeps the epochs of one process, the main one. Around a training: ``with`` it."""

    def __init__(self, run: Run):
        self.run = run
        self.held: dict[str, Any] | None = None
        self.begin()

    def begin(self) -> None:
        """A session begins, or is finished: of a new one the first epoch is written at once."""
        self.saved, self.held = -math.inf, None

    def epoch(self, content: dict[str, Any], seconds: float, every: float, still: bool) -> None:
        """After an epoch of so many seconds: write what `Run.save_resume` takes where that is ``every`` seconds old, or
        will be after another such epoch; else hold a copy. still: the backbone is what it was, and needs none."""
        now = time.perf_counter()
        if now - self.saved + seconds > every:
            self.saved, self.held = now, None
            self.run.save_resume(content)
        else:
            self.held = _copied(content, still)

    def settle(self) -> None:
        """Write what is held. Where that cannot be, whatever is wrong already has been said."""
        if self.held is not None:
            with contextlib.suppress(OSError, MemoryError):
                self.run.save_resume(self.held)
            self.held = None

    @contextlib.contextmanager
    def before(self, session: int, epoch: int, world: World) -> Iterator[None]:
        """Around an epoch (0 is the first). Where its numbers are none, what is left of those before is on disk before
        any process ends, since the others would be killed with it; the error says so."""
        try:
            yield
        except NotFinite as error:
            self.settle()
            world.wait()
            if not session + epoch:
                raise
            left = f"session {session + bool(epoch)}" + (f", epoch {epoch}" if epoch else "")
            raise NotFinite(
                f"{error} That is another experiment, in a folder of its own. {self.run.folder} holds what was learned "
                f"up to {left}, and the same command goes on from there."
            ) from None

    def __enter__(self) -> Keeping:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.settle()


def _copied(value: Any, still: bool, name: str = "") -> Any:
    """With tensors on the CPU that no later step changes."""
    if isinstance(value, Tensor):
        return value if still and is_still(name) else value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one, still, str(key)) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one, still) for one in value)
    return value
