"""Run by test_distributed.py under torchrun: one training after the other, some with a part broken on purpose."""

import json
import math
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from krt_core.config import load_experiment
from krt_core.data import pipeline
from krt_core.distributed import World, leave_world
from krt_core.memory import Memory
from krt_core.session import train


def wrapped_once(original):
    """The published fault: the model is wrapped at the start, what grows later is not synchronised."""
    made = []

    def wrap(self, model):
        made.append(original(self, model)) if not made else None
        return made[0]

    return wrap


def padded(self, items):
    """The published fault: test images are repeated until every process has as many."""
    each = math.ceil(len(items) / self.size)
    return items[np.arange(self.rank * each, (self.rank + 1) * each) % len(items)]


def own_choice(original):
    """DyTox's fault: every process chooses its own exemplars."""

    def update(self, session, images, labels, features, seed):
        rank = torch.distributed.get_rank()
        return original(self, session, images, labels, None if rank else features, seed + rank)

    return update


def whole_share(*arguments):
    batch = Batch(*arguments)
    batch.share = 1.0
    return batch


Batch = pipeline.Batch
BREAKS = {
    "none": [],
    "tokens": [(World, "wrap", wrapped_once(World.wrap))],
    "threshold": [(World, "gather", lambda self, part: part), (World, "decide", lambda self, value: value)],
    "exemplars": [(Memory, "update", own_choice(Memory.update)), (World, "decide", lambda self, value: value)],
    "padding": [(World, "part", padded)],
    "loss": [(pipeline, "Batch", whole_share)],
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, preset, folder, broken in json.loads(Path(sys.argv[1]).read_text()):
        with ExitStack() as stack:
            for target, attribute, value in BREAKS[broken]:
                stack.enter_context(patch.object(target, attribute, value))
            try:
                train(load_experiment(preset), folder, show="none", device="cpu")
            except Exception:
                Path(folder, f"error-{torch.distributed.get_rank()}.txt").write_text(traceback.format_exc())
    leave_world()
