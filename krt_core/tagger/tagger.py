"""Tags of photos by the model of a run, in Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, DataError, RunError, shown
from ..machine.device import Runtime, choose_runtime
from ..model import explain
from ..runs.folder import Run
from .photos import Photos
from .scorer import Scorer, reopened
from .tags import Tags


class Tagger:
    """Names what photos show, by the model of a run.

    run: a run or its folder. session: 0 is the first; default: the last finished one. device: "cpu", "cuda", ...;
    default: a GPU if there is one. threshold: "calibrated" takes those of the run's calibration (one half where it has
    none), a number is that of every class. Images are decoded, resized and scored as in the run's own tests. Raises
    RunError where the run, its weights or the session are missing, ConfigError for another threshold.

    >>> tagger = Tagger("outputs/demo/runs/digits_demo-krt-a5afaa25-s0")
    >>> tagger("photo.png").named
    ('five', 'nine')
    """

    def __init__(
        self,
        run: str | Path | Run,
        session: int | None = None,
        device: str | None = None,
        threshold: str | float = "calibrated",
    ):
        self.run = run if isinstance(run, Run) else Run(run)
        self.session = which_session(self.run, session)
        self.calibration = self.run.calibration(self.session)
        stop = self.run.protocol.sessions[self.session].stop
        self.classes = self.run.protocol.classes[:stop]  # in learning order
        self.thresholds = thresholds_of(threshold, self.calibration.thresholds)  # (C,) on probabilities
        self.leak = self.run.leak
        self.scorer = Scorer(self.run, self.session, choose_runtime(self.run.experiment.train.precision, device))

    def __call__(self, images: Any, evidence: bool = False) -> Any:
        """`Tags` of an image: a path, a PIL image, an array (h, w, 3) uint8, or a tensor (3, h, w), uint8 or float in
        [0, 1]. Of a list, or an array or tensor with one axis more, a list of them; of any other iterable an iterator,
        which reads on as it is asked.

        evidence: with a map (h, w) in [0, 1] of each named class: where on the last feature map its evidence lies (ICA
        head), or Grad-CAM. Raises DataError for an image that cannot be read.
        """
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray, Tensor)):
            return next(_whole(self.stream([images], evidence)))
        if isinstance(images, Sequence):
            return list(_whole(self.stream(images, evidence)))
        if not isinstance(images, Iterable):
            raise DataError(f"An image is a path, a PIL image, an array or a tensor; found {shown(images)}.")
        return self._read_on(iter(images), evidence)

    def stream(self, images: Sequence[Any], evidence: bool = False) -> Iterator[Tags | DataError]:
        """Of each image its tags, or why it cannot be read; threads decode while the network works."""
        photos = Photos(images, self.run.experiment.data.image_size)
        for rows, pixels, scores in self.scorer.each(photos):
            probabilities = self.calibration.probabilities(scores)
            said = [
                Tags.of(self.classes, p, self.thresholds, s, self.leak)
                for p, s in zip(probabilities, scores, strict=True)
            ]
            if evidence:
                said = self._with_evidence(said, pixels)
            yield from (photos.faults.get(int(row), tags) for row, tags in zip(rows, said, strict=True))

    def _read_on(self, images: Iterator[Any], evidence: bool) -> Iterator[Tags]:
        while batch := list(islice(images, self.scorer.batch_size)):
            yield from _whole(self.stream(batch, evidence))

    def _with_evidence(self, said: list[Tags], pixels: Tensor) -> list[Tags]:
        maps = self._maps(pixels.detach().float().cpu())
        column = {name: index for index, name in enumerate(self.classes)}
        found: dict[str, np.ndarray] = {}
        for name in {name for tags in said for name in tags.named}:
            positive = maps(column[name]).clip(min=0)  # (B, h, w)
            found[name] = positive / np.maximum(positive.max(axis=(1, 2), keepdims=True), 1e-12)
        return [
            replace(tags, evidence={name: found[name][place].astype(np.float32) for name in tags.named})
            for place, tags in enumerate(said)
        ]

    def _maps(self, images: Tensor) -> Callable[[int], np.ndarray]:
        """A function of a class's column: its evidence (B, h, w) in images (B, 3, S, S), in float32 on the CPU."""
        network, method = self._plain
        with torch.no_grad():
            features = network.features(images)
        if method.has_own("scores"):
            return lambda column: explain.grad_cam(network, features, column, lambda maps: method.scores(network, maps))
        if network.kind != "ica":
            return lambda column: explain.grad_cam(network, features, column)
        seen = explain.look(network, features)
        return lambda column: explain.evidence(seen, column).maps

    @cached_property
    def _plain(self) -> tuple[Any, Any]:
        return reopened(self.run, self.session, Runtime(torch.device("cpu"), torch.float32, {}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said before any of its tags."""
        made, planned = self.run.finished_sessions, len(self.run.protocol.sessions)
        epoch = reported_before(self.run, self.session)
        return (
            *([f"LEAK: {self.leak}"] if self.leak else []),
            *(["ORACLE: the method was shown true labels of old classes"] if self.run.oracle else []),
            *([f"the run is not finished: it has {made} of {planned} sessions"] if made < planned else []),
            *([f"its numbers are of epoch {epoch}, its weights of the last one (train.report=best)"] if epoch else []),
        )

    def __repr__(self) -> str:
        after = f"{len(self.classes)} classes after session {self.session + 1} of {len(self.run.protocol.sessions)}"
        return f"<Tagger {self.run.folder.name}: {'; '.join((after, *self.notes))}>"


def which_session(run: Run, session: int | None) -> int:
    """The session asked for, else the last finished one; RunError where there is none such."""
    finished = run.finished_sessions
    if not finished:
        raise RunError(
            f"{run.folder} has not finished a session yet: start the same experiment again to go on with it."
        )
    if session is None:
        return finished - 1
    if not 0 <= session < finished:
        raise RunError(
            f"{run.folder.name} has no session {session + 1}: finished are 1 to {finished}"
            f"{'' if run.done else f' of {len(run.protocol.sessions)}'}."
        )
    return session


def reported_before(run: Run, session: int) -> int | None:
    """The epoch, 1 is the first, whose scores the run wrote down, where that is not the last, whose weights it has."""
    last, state = run.epochs_of(session) - 1, run.session_state(session)
    if "inherited" in state and "epoch_chosen_on" not in state:  # of the run it grew from: its last one
        return None
    epoch = state.get("reported_epoch", last)
    return None if epoch == last else epoch + 1


def thresholds_of(threshold: str | float, calibrated: np.ndarray) -> np.ndarray:
    """(C,) thresholds on probabilities; ConfigError for what is neither "calibrated" nor a number from 0 to 1."""
    if threshold == "calibrated":
        return calibrated.astype(np.float32)
    try:
        number = float(threshold)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 <= number <= 1:
        raise ConfigError(f'threshold must be "calibrated" or a number from 0 to 1, found {threshold!r}.')
    return np.full(len(calibrated), number, np.float32)


def _whole(stream: Iterator[Tags | DataError]) -> Iterator[Tags]:
    for tags in stream:
        if isinstance(tags, DataError):
            raise tags
        yield tags
