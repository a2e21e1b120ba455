"""Run by test_distributed.py under torchrun: trainings, with a part broken on purpose if asked for."""

import math
import os
import sys
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import torch
from synced import synchronise
from torch.nn.parallel import DistributedDataParallel

from krt_core.config import load_experiment
from krt_core.data import pipeline
from krt_core.machine.distributed import World, leave_world
from krt_core.memory import Ranked
from krt_core.memory.online import Online
from krt_core.session import train
from krt_core.weights import start


def wrapped_once():
    """The published fault: the model is wrapped at the start, what grows later is not synchronised."""
    made = []

    def wrap(self, model):
        if not made:
            made.append(DistributedDataParallel(model, find_unused_parameters=True))
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
    "tokens": [(World, "wrap", wrapped_once())],
    "threshold": [(World, "gather", lambda self, part: part), (World, "decide", lambda self, value: value)],
    "exemplars": [
        *((kind, "update", own_choice(kind.update)) for kind in (Ranked, Online)),
        (World, "decide", lambda self, value: value),
    ],
    "padding": [(World, "part", padded)],
    "loss": [(pipeline, "Batch", whole_share)],
}

if __name__ == "__main__":
    broken, *jobs = sys.argv[1:]
    torch.set_num_threads(1)
    with ExitStack() as stack:
        stack.enter_context(patch.object(start, "synchronise", synchronise))
        for target, attribute, value in BREAKS[broken]:
            stack.enter_context(patch.object(target, attribute, value))
        for job in jobs:
            preset, folder = job.split("=")
            train(load_experiment(preset), folder, show="none", device="cpu")
    leave_world()
    sys.stdout.flush()
    os._exit(0)  # as `krt train` ends: threads that are taken apart at the end may abort
