"""Whether what a training computes is still numbers, asked without making a GPU wait at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from ..errors import RunError
from .distributed import World

LOOK_EVERY = 50  # steps after which losses are looked at, which waits for a GPU
MOST_IDS = 64  # images of a batch that are named
WAYS_OUT = (
    "If there is nothing odd about them, lower train.base_lr or train.lr, or set train.clip_norm or "
    "train.precision=float32."
)


class NotFinite(RunError):
    """Raised in all processes of a training at once."""


class Watch:
    """Over the losses of an epoch: kept where they were computed, and looked at now and then, at the same steps in all
    processes. ids: of the training set's images. where: in words, as in "in session 1, epoch 2". skips: are steps
    whose loss is none left out, as they change nothing?"""

    def __init__(self, world: World, ids: Sequence[str], where: str, skips: bool = False):
        self.world, self.ids, self.where, self.skips = world, ids, where, skips
        self.flags: list[Tensor] = []
        self.rows: list[np.ndarray] = []  # of these steps: this process's share of each batch
        self.before = 0  # steps before them
        self.first = np.zeros(0, np.int64)  # this process's share of the first batch

    def saw(self, finite: Tensor, rows: np.ndarray) -> None:
        """A step's loss, a boolean () on any device, of images of rows (B,). RunError as of `look`."""
        if len(self.flags) == LOOK_EVERY:
            self.before += LOOK_EVERY
            self.flags, self.rows = [], []
        self.first = self.first if self.before + len(self.flags) else rows
        self.flags.append(finite)
        self.rows.append(rows)
        if len(self.flags) == LOOK_EVERY and not self.skips:
            self.look()

    def look(self) -> None:
        """RunError, in all processes, if a loss is no finite number: the first step that has one in any of them."""
        odd = np.flatnonzero(~torch.stack(self.flags).cpu().numpy())
        step = int(self.world.gather(np.array([*odd, len(self.flags)])[:1]).min())
        if step < len(self.flags):
            self.tell("The loss became no finite number", step, self.rows[step])

    def end(self, mean: float) -> NoReturn:
        """RunError after an epoch whose mean loss is no finite number."""
        if self.skips:
            self.before = 0
            self.tell(f"The loss became {mean} in every step that is counted,", 0, self.first)
        self.look()
        raise NotFinite(f"The mean of the loss became {mean} {self.where}. {WAYS_OUT}")

    def check_weights(self, weights: Sequence[Tensor]) -> None:
        """RunError where the last step has made weights into no numbers: a gradient may overflow where a loss does not,
        and after a step before the last the next loss tells it."""
        if weights and not bool(torch.stack([torch.isfinite(one).all() for one in weights]).all()):
            self.tell("Weights became no finite numbers", len(self.rows) - 1, self.rows[-1])

    def tell(self, what: str, step: int, rows: np.ndarray) -> NoReturn:
        ids = [str(self.ids[row]) for row in dict.fromkeys(self.world.gather(rows).tolist())]
        more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
        raise NotFinite(
            f"{what} {self.where}, step {self.before + step + 1}, on the images {', '.join(ids[:MOST_IDS])}{more}. "
            f"{WAYS_OUT}"
        )
