"""The label inspector: what the pseudo labels of a session restored, and where they were wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
from matplotlib.axes import Axes

from ..errors import RunError
from ..plots.pseudo_labels import (
    pseudo_label_classes,
    pseudo_label_heatmap,
    pseudo_label_images,
    pseudo_label_threshold,
    pseudo_labels_per_image,
)
from ..pseudo_labels import KINDS, PseudoLabels, averages, gives_pseudo_labels, pseudo_labels, quality
from ..report import finished_runs
from ..run import Run
from .explorer import Explorer, Result
from .gallery import named

ALL = "all"


class LabelInspector(Explorer):
    """Choose a run and a session; click a class to see the images on which its pseudo labels were right or wrong.

    folder: holds run folders, and takes what is saved. runs: these instead of the finished ones under it; those that
    gave no pseudo labels are left out. headless: see `Explorer`. Where no run gave any, the views say so. Raises
    RunError where there is no finished run at all.
    """

    def __init__(
        self,
        folder: str | Path = "outputs/demo",
        runs: Sequence[Run] | None = None,
        headless: Sequence[str] | None = None,
    ):
        self.runs = named(
            [run for run in (finished_runs(folder) if runs is None else runs) if gives_pseudo_labels(run)]
        )
        wide = widgets.Layout(width="360px")
        slider = dict(continuous_update=False, layout=wide)
        kinds = [(f"{kind}: {words}", kind) for kind, words in KINDS.items()]
        controls = {
            "run": widgets.Dropdown(options=list(self.runs), description="run", layout=wide),
            "session": widgets.IntSlider(2, 2, 2, description="session", **slider),
            "name": widgets.Dropdown(options=[ALL], description="class", layout=wide),
            "kind": widgets.Dropdown(options=kinds, value="wrong", description="images", layout=wide),
            "count": widgets.IntSlider(12, 6, 48, 6, description="at most", **slider),
        }
        follow = {"run": self._new_run, "session": self._new_session}
        views = {
            "Threshold": self.threshold, "Classes": self.classes, "Sessions": self.sessions,
            "Per image": self.per_image, "Images": self.images,
        }  # fmt: skip
        if not self.runs:
            headless = ["Threshold"]  # the same words once
        picks = {"Classes": self._pick, "Sessions": self._pick_row}
        super().__init__(controls, views, folder, "pseudo_labels", picks, follow, headless=headless)
        if self.runs:
            self.begin("run")

    # ---- what is chosen ----

    @property
    def run(self) -> Run:
        if not self.runs:
            raise RunError("No run here gave pseudo labels: train one of method krt with krt.pseudo_labels=true.")
        return self.runs[self.value("run")]

    @property
    def found(self) -> PseudoLabels:
        """The pseudo labels of the chosen session."""
        return pseudo_labels(self.run, self.value("session") - 1)

    @property
    def column(self) -> int | None:
        """Of the chosen class, in learning order; None: all."""
        name = self.value("name")
        return None if name == ALL else self.run.protocol.classes.index(name)

    def _new_run(self) -> None:
        """To the last session of the run."""
        sessions = self.runs[self.controls["run"].value].finished_sessions
        self.controls["session"].max = sessions
        self.controls["session"].value = sessions
        self._new_session()

    def _new_session(self) -> None:
        """Only classes that are old in the session can be chosen."""
        protocol = self.runs[self.controls["run"].value].protocol
        old = protocol.sessions[self.controls["session"].value - 1].start
        self.offer("name", [ALL, *protocol.classes[:old]])

    def _pick(self, axis: Axes, x: float, y: float) -> None:
        if 0 <= round(y) < len(axis.columns):
            self._show(axis.columns[round(y)])

    def _pick_row(self, axis: Axes, x: float, y: float) -> None:
        if not axis.images:  # the colour bar
            return
        column, session = round(y), round(x) + 2
        if session <= self.controls["session"].max and column < self.run.protocol.sessions[session - 1].start:
            self.set(session=session)
            self._show(column)

    def _show(self, column: int) -> None:
        self.set(name=self.run.protocol.classes[column])
        self.tabs.selected_index = list(self.views).index("Images")

    # ---- views ----

    def threshold(self) -> Result:
        """The threshold and what it brought, in the chosen session and in all of them."""
        found, column = self.found, self.column
        name = None if column is None else found.classes[column]
        table = quality(self.run, class_name=name)
        return [
            pseudo_label_threshold(found, table, column),
            table.round({key: 3 if key == "threshold" else 2 for key in table}),
        ]

    def classes(self) -> Result:
        """Precision and recall of each old class in the session."""
        found = self.found
        table = found.per_class().set_index("class")
        mean = averages(table[["hidden", "given", "right"]].to_numpy().T)
        words = ", ".join(f"{key} {value:.1f} %" for key, value in mean.items())
        return [pseudo_label_classes(found, self.column), words, table.round(3)]

    def sessions(self) -> Result:
        """Precision and recall of each class in every session."""
        return pseudo_label_heatmap(self.run)

    def per_image(self) -> Result:
        """How many old labels an image hides and how many it gets."""
        return pseudo_labels_per_image(self.found)

    def images(self) -> Result:
        """Training images on which the pseudo labels were right, wrong or missing."""
        return pseudo_label_images(self.found, self.value("kind"), self.column, self.value("count"))
