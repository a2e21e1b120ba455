"""The label inspector: what the pseudo labels of a session restored, and where they were wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from ...errors import RunError
from ...runs.folder import Run
from .. import figures
from ..analysis.pseudo_labels import (
    KINDS,
    KINDS_OF_ONE,
    NOBODY,
    PseudoLabels,
    averages,
    gives_pseudo_labels,
    pseudo_labels,
    quality,
)
from ..report import finished_runs
from .explorer import Explorer, Result, menu, slider
from .gallery import named

ALL = 0  # instead of the name of a class, which is text
ANY = ("all old classes", ALL)
ABOUT_ALL = (
    "Old labels per image. expected: what the search aimed at; found: what it counted above its threshold, all old "
    "classes together; hidden: what is to be restored; given: what was added. The last two leave out the labels that "
    "exemplars show anyway, found has them. converged: did the search come close enough to expected? If not, its "
    "threshold is the closest one that it met."
)
ABOUT_ONE = (
    "Labels of {name} per image. hidden: what is to be restored; given: what was added, both without the labels that "
    "exemplars show anyway. converged: did the search come close enough to what it expected? If not, its threshold is "
    "the closest one that it met; – where each class has a search of its own and it is not known which failed."
)


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
        controls = {
            "run": menu("run", list(self.runs)),
            "session": slider("session", 2, 2),
            "name": menu("class", [ANY]),
            "kind": menu("images", _kinds(KINDS), value="wrong"),
            "count": slider("at most", 6, 48, 6, 12),
        }
        follow = {"run": self._new_run, "session": self._new_session, "name": self._new_class}
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
        self.to_last("session", self.runs[self.controls["run"].value].finished_sessions)
        self._new_session()

    def _new_session(self) -> None:
        """Only classes that are old in the session can be chosen."""
        try:
            protocol = self.runs[self.controls["run"].value].protocol
        except RunError:  # which the view will say
            return
        old = protocol.sessions[self.controls["session"].value - 1].start
        self.offer("name", [ANY, *((name, name) for name in protocol.classes[:old])])

    def _new_class(self) -> None:
        """For one class the labels of the others do not matter."""
        self.offer("kind", _kinds(KINDS if self.controls["name"].value == ALL else KINDS_OF_ONE))

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
        shown = table.round({key: 3 if key == "threshold" else 2 for key in table})
        shown["converged"] = shown["converged"].map({1: "yes", 0: "no"})
        about = ABOUT_ALL if name is None else ABOUT_ONE.format(name=name)
        notes = [about, *self._notes(found)]
        return [figures.pseudo_label_threshold(found, table, column, name=self.value("run")), *notes, shown]

    def classes(self) -> Result:
        """Precision and recall of each old class in the session."""
        found = self.found
        if notes := self._notes(found):
            return notes
        table = found.per_class().set_index("class")
        mean = averages(table[["hidden", "given", "right"]].to_numpy().T)
        words = ", ".join(f"{key} {value:.1f} %" for key, value in mean.items())
        return [figures.pseudo_label_classes(found, self.column, name=self.value("run")), words, table.round(3)]

    def sessions(self) -> Result:
        """Precision and recall in every session, of each class and of all together or of the chosen one."""
        run, column, name = self.run, self.column, self.value("run")
        of = None if column is None else run.protocol.classes[column]
        return [
            figures.pseudo_label_heatmap(run, name=name),
            figures.pseudo_label_quality(run, class_name=of, name=name),
        ]

    def per_image(self) -> Result:
        """How many old labels an image hides and how many it gets."""
        found = self.found
        return self._notes(found) or figures.pseudo_labels_per_image(found, name=self.value("run"))

    def images(self) -> Result:
        """Training images on which the pseudo labels were right, wrong or missing."""
        found, kind = self.found, self.value("kind")
        figure = figures.pseudo_label_images(found, kind, self.column, self.value("count"), name=self.value("run"))
        return figure if kind == "unknown" else [*self._notes(found), figure]

    def _notes(self, found: PseudoLabels) -> list[str]:
        """What is to be said where no pseudo label can be judged."""
        return [] if found.judged.any() else [f"{NOBODY} Look at them: images of kind unknown."]


def _kinds(kinds: dict[str, str]) -> list[tuple[str, str]]:
    return [(f"{kind}: {words}", kind) for kind, words in kinds.items()]
