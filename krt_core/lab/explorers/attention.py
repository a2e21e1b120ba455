"""The attention explorer: what a model sees in an image, session by session and class by class."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data import MultiLabelDataset
from ...data.store import load_image
from ...errors import KRTError, RunError
from ...runs.folder import Run
from .. import figures
from ..analysis.datasets import opened_once
from ..analysis.explain import Look
from ..analysis.looks import SMALLEST, Models, Recent, evidence_of, has_attention
from ..report import finished_runs
from .explorer import Explorer, Result, menu, slider
from .gallery import named

IMAGES = 100  # per class on the slider


class AttentionExplorer(Explorer):
    """Choose a run, a class and an image; the images that show the class come in the order of what was lost, from those
    whose score fell most between the class's own session and the last one.

    folder: holds run folders of models with incremental cross-attention (others are left out), and takes what is saved.
    runs: these instead of the finished ones under it. headless: see `Explorer`. Raises RunError where there is none.
    """

    def __init__(
        self,
        folder: str | Path = "outputs/demo",
        runs: Sequence[Run] | None = None,
        headless: Sequence[str] | None = None,
    ):
        found = finished_runs(folder) if runs is None else list(runs)
        self.runs = named([run for run in found if has_attention(run)])
        if not self.runs:
            raise RunError(
                f"There is no finished run with incremental cross-attention in {folder}: krt train makes one."
            )
        self.models, self._orders, self._ahead = Models(), Recent(64), 0
        names = list(self.runs)
        controls = {
            "run": menu("run", names),
            "beside": menu("beside it", ["–", *names]),
            "column": menu("class"),
            "image": slider("image, most lost first"),
            "session": slider("model after session"),
            "token": slider("token of session"),
        }
        views = {"Patches": self.patches, "Tokens": self.tokens, "Mass": self.mass, "Evidence": self.evidence}
        follow = {"run": self._new_run, "column": self._new_class}
        super().__init__(controls, views, folder, "attention", follow=follow, headless=headless)
        self.begin("run")

    # ---- what is chosen ----

    @property
    def run(self) -> Run:
        return self.runs[self.value("run")]

    @property
    def row(self) -> int:
        """Row of the image in the test set."""
        return int(self._ranked()[self.value("image") - 1])

    def dataset(self, run: Run) -> MultiLabelDataset:
        return opened_once(run.experiment.data, "test")

    def choose(self, image: str) -> None:
        """Show the test image with this id; RunError if it is not among those that the slider reaches."""
        place = np.flatnonzero(self.dataset(self.run).ids[self._ranked()] == image)
        if not len(place):
            reached = f"the {len(self._ranked())} most lost images of class {self.class_name}"
            raise RunError(f"Test image {image} is not among {reached}.")
        self.set(image=int(place[0]) + 1)

    @property
    def class_name(self) -> str:
        return self.run.protocol.classes[self.value("column")]

    def _new_run(self) -> None:
        for name in ("session", "token"):
            self.to_last(name, len(self.run.protocol.sessions))
        self.offer("column", [(name, column) for column, name in enumerate(self.run.protocol.classes)])
        self._new_class()

    def _new_class(self) -> None:
        try:
            count = len(self._ranked())
        except KRTError:  # the views will say it
            count = 1
        self.controls["image"].value = 1
        self.controls["image"].max = count
        self.controls["token"].value = self._own_session() + 1

    def _own_session(self) -> int:
        return next(s.index for s in self.run.protocol.sessions if s.start <= self.value("column") < s.stop)

    def _ranked(self) -> np.ndarray:
        """Rows of the images of the class in the test set, those first whose score fell most."""
        run, column = self.run, self.value("column")
        return self._orders.get((run.folder, column), lambda: self._rank(run, column))

    def _rank(self, run: Run, column: int) -> np.ndarray:
        now = run.scores(len(run.protocol.sessions) - 1)
        then = run.scores(self._own_session()).on(now.ids)  # NaN, of an image that came later: behind all others
        rows = np.flatnonzero(now.labels[:, column] > 0)
        rows = rows[np.argsort(now.scores[rows, column] - then.scores[rows, column], kind="stable")][:IMAGES]
        place = {image: row for row, image in enumerate(self.dataset(run).ids.tolist())}
        found = [place[image] for image in now.ids[rows].tolist() if image in place]
        if not found:
            raise RunError(
                f"{run.folder.name}: no test image of {run.protocol.classes[column]} is in the data set now."
            )
        return np.array(found)

    def _row_in(self, run: Run) -> int:
        """Row of the image in a run's own test set. Raises RunError where it is not there."""
        image = self.dataset(self.run).ids[self.row]
        rows = np.flatnonzero(self.dataset(run).ids == image)
        if not len(rows):
            raise RunError(f"Image {image} is not in the test set of {run.folder.name}.")
        return int(rows[0])

    def _look(self, run: Run, session: int) -> Look:
        return self.models.look(run, session, self.dataset(run), self._row_in(run))

    def _session_of(self, run: Run) -> int:
        """The chosen session; of a run that has fewer, its last."""
        return min(self.value("session"), len(run.protocol.sessions)) - 1

    def _looks(self, run: Run) -> list[Look]:
        return [self._look(run, t) for t in range(len(run.protocol.sessions))]

    def draw(self) -> None:
        """Draw the open view, then look in the background at what is likely to be asked for next: this image after the
        other sessions, and the next image."""
        super().draw()
        if self._drawing:
            return
        with contextlib.suppress(KRTError):  # the view has said it
            runs = [(run, self.dataset(run)) for run in self._both().values()]
            place = self.value("image")
            images = runs[0][1].ids[self._ranked()[place - 1 : place + 1]]
            self._ahead += 1
            threading.Thread(target=self._look_ahead, args=(runs, images, self._ahead), daemon=True).start()

    def _look_ahead(self, runs: list[tuple[Run, MultiLabelDataset]], images: np.ndarray, number: int) -> None:
        with contextlib.suppress(KRTError, OSError, IndexError):
            for image in images:
                for run, dataset in runs:
                    row = int(np.flatnonzero(dataset.ids == image)[0])
                    for session in range(len(run.protocol.sessions)):
                        if number != self._ahead:  # something else has been drawn since
                            return
                        self.models.look(run, session, dataset, row)
                        time.sleep(0.01)  # so that whoever waits for a look gets his turn

    def _both(self) -> dict[str, Run]:
        """The run, and the one beside it where that knows the same classes, or one of the two has grown by more."""
        chosen = {self.value("run"): self.run}
        if (other := self.value("beside")) != "–":
            mine, others = self.run.protocol.classes, self.runs[other].protocol.classes
            both, grown = (
                min(len(mine), len(others)),
                self.run.experiment.data.added or self.runs[other].experiment.data.added,
            )
            if mine[:both] != others[:both] or (len(mine) != len(others) and not grown):
                raise RunError(f"{other} learned other classes, or in another order: it cannot stand beside this run.")
            if self.value("column") >= len(others):
                raise RunError(f"{other} has not learned {self.class_name}: choose a class that both know.")
            chosen[other] = self.runs[other]
        return chosen

    def _image(self) -> np.ndarray:
        return load_image(self.dataset(self.run).path(self.row), max(self.run.experiment.data.image_size, SMALLEST))

    def _title(self) -> str:
        return f"image {self.dataset(self.run).ids[self.row]}"

    # ---- views ----

    def evidence(self) -> Result:
        """Evidence maps of the class through the sessions, of both runs."""
        column, rows = self.value("column"), {}
        for name, run in self._both().items():
            rows[_folded(name)] = [evidence_of(seen, column) for seen in self._looks(run)]
        dataset = self.dataset(self.run)
        kind = dataset.classes.index(self.class_name)
        mine = (dataset.boxes[:, 0] == self.row) & (dataset.boxes[:, 1] == kind)
        leak = any(run.leak for run in self._both().values())
        figure = figures.evidence_over_sessions(
            self._image(), rows, f"{self._title()}: {self.class_name}", dataset.boxes[mine, 2:], leak
        )
        error = max(abs(found.error[0]) for line in rows.values() for found in line if found is not None)
        words = (
            "Orange patches speak for the class, violet ones against it. Above each map: the probability; the logit = "
            f"without any patch + sum of the map (to {error:.0e})."
        )
        if any(run.experiment.train.report == "best" for run in self._both().values()):
            words += " This is the model after the last epoch; the scores of the run are those of its best epoch."
        return [figure, words]

    def patches(self) -> Result:
        """Patch attention of one token per head: the newest, where the chosen one was not there yet."""
        shown = []
        for name, run in self._both().items():
            session = self._session_of(run)
            token, seen = min(self.value("token") - 1, session), self._look(run, session)
            at = min(token, seen.patches.shape[1] - 1)
            title = f"{self._title()}\n{_folded(name)}\nsession {session + 1}, token {at + 1}"
            shown.append(figures.patch_maps(self._image(), seen, at, title))
        return [*shown, "The model after a session, the token of a session; each map to its own scale."]

    def tokens(self) -> Result:
        """The map of every session's token, side by side."""
        shown = []
        for name, run in self._both().items():
            session = self._session_of(run)
            title = f"{self._title()}\n{_folded(name)}\nafter session {session + 1}"
            shown.append(figures.maps_per_token(self._image(), self._look(run, session), title))
        return [*shown, "Mean over heads, as shares among the patches, all to one scale."]

    def mass(self) -> Result:
        """Mass on the tokens, through the sessions until the chosen one."""
        return [
            figures.token_mass(self._looks(run)[: self.value("session")], f"{name}, {self._title()}")
            for name, run in self._both().items()
        ]


def _folded(name: str) -> str:
    """A run's name on short lines, for the title of a small picture."""
    return name.replace(", ", "\n")
