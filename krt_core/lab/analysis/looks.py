"""Test images as the models of a run see them, session by session."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data import MultiLabelDataset
from ...data.store import load_image
from ...errors import RunError
from ...presets.said import listed
from ...runs.folder import Run
from ...weights.convert import load_model
from ..report import finished_runs
from .datasets import opened_once
from .explain import Evidence, Look, choose_images, evidence, look
from .inputs import Inputs

SMALLEST = 96  # pixels: smaller images are shown enlarged


class Recent:
    """What was made last, by key."""

    def __init__(self, size: int):
        self.size, self.made = size, OrderedDict[Hashable, Any]()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
            while len(self.made) > self.size:
                self.made.popitem(last=False)
        self.made.move_to_end(key)
        return self.made[key]


class Models:
    """The models of some runs and what they see, loaded when asked for; the least used are let go."""

    def __init__(self, models: int = 16, looks: int = 512):
        self._models, self._looks, self._inputs = Recent(models), Recent(looks), Recent(models)
        self._one_at_a_time = threading.Lock()  # a look ahead must not load a model a second time

    def look(self, run: Run, session: int, dataset: MultiLabelDataset, row: int) -> Look:
        def see() -> Look:
            inputs = self._inputs.get((run.folder, dataset.split), lambda: Inputs(run, dataset))
            model = self._models.get((run.folder, session), lambda: load_model(run, session))
            return look(model, inputs.of(np.array([row])))

        key = run.folder, session, row
        if key in self._looks.made:  # without waiting for a look ahead
            return self._looks.made[key]
        with self._one_at_a_time:
            return self._looks.get(key, see)


@dataclass(frozen=True)
class LookedAt:
    """One test image, and what the model saw in it after each session."""

    image: str  # id
    pixels: np.ndarray  # (S, S, 3) uint8
    looks: list[Look]  # of this image alone, one per session
    present: dict[str, int]  # the classes it shows, and their columns

    def evidence(self) -> dict[str, list[Evidence | None]]:
        """For each class that the image shows: the evidence after each session, None where it was not yet learned."""
        return {name: [evidence_of(seen, column) for seen in self.looks] for name, column in self.present.items()}


def look_at(run: Run, images: Sequence[str] = (), count: int = 3) -> list[LookedAt]:
    """Some test images by id, or ``count`` that show old and new classes (`explain.choose_images`), as a run saw them.

    Raises DataError for an unknown id, RunError where the run has a linear head.
    """
    dataset, protocol, models = opened_once(run.experiment.data, "test"), run.protocol, Models()
    side, looked = max(run.experiment.data.image_size, SMALLEST), []
    labels = protocol.on(dataset).reorder(dataset.labels)
    for row in choose_images(dataset, protocol, listed("images", images, str), count):
        looks = [models.look(run, session, dataset, row) for session in range(run.finished_sessions)]
        present = {protocol.classes[column]: int(column) for column in np.flatnonzero(labels[row])}
        looked.append(LookedAt(str(dataset.ids[row]), load_image(dataset.path(row), side), looks, present))
    return looked


def evidence_of(seen: Look, column: int) -> Evidence | None:
    """The evidence for a class; None where it was not yet learned."""
    return evidence(seen, column) if seen.knows(column) else None


def has_attention(run: Run) -> bool:
    """Does its model have incremental cross-attention to look at?"""
    return run.experiment.head == "ica"


def attentive_run(folder: str | Path, method: str = "krt") -> Run:
    """The first finished run of a method whose model has attention to look at; RunError where there is none."""
    for run in finished_runs(folder, method=method):
        if has_attention(run):
            return run
    raise RunError(f"No finished {method} run in {folder} has attention to look at: choose a method with head=ica.")
