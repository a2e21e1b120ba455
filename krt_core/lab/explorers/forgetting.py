"""The forgetting explorer: which classes fell, when, by which method, and on which images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import RunError
from ...metrics import F1_THRESHOLD
from ...runs.folder import Run
from .. import figures
from ..analysis.compare import authors_curves
from ..analysis.datasets import opened_test_set
from ..analysis.forgetting import confusions, falls, lost_images
from ..figures.figure import by_label
from ..report import finished_runs, setting_of
from ..report.published import author_ap, tested_as
from .explorer import WIDTH, Explorer, Result, menu, slider
from .gallery import named

METRICS = ("mAP_seen", "mAP_base", "mAP_new", "CF1", "OF1")
FALLEN = 8  # classes in the picture of confusions
IMAGES = 9  # lost ones shown
NO_BOTH = (
    "No test image is annotated both with a class that fell and with the new ones of session {session}: what is said "
    "in their place cannot be told."
)


class ForgettingExplorer(Explorer):
    """Choose methods, classes and a definition of forgetting; click a class to see the images on which it was lost.

    folder: holds run folders, and takes what is saved. runs: these instead of the finished ones under it. headless: see
    `Explorer`. Runs of one data set, protocol and class order are looked at together; where there are several, choose
    the setting. Runs that differ in the seed alone are replicates, drawn as mean and band. Raises RunError where there
    is no finished run.
    """

    def __init__(
        self,
        folder: str | Path = "outputs/demo",
        runs: Sequence[Run] | None = None,
        headless: Sequence[str] | None = None,
    ):
        found = finished_runs(folder) if runs is None else list(runs)
        if not found:
            raise RunError("There is no run to look at: give at least one that has finished a session.")
        self.settings: dict[str, list[Run]] = {}
        copies, seen = [], set()
        for run in found:
            # Made by the same configuration and seed, a run is a copy and no replicate.
            about = _setting(run), run.experiment.hash(), run.experiment.seed
            if about in seen:
                copies.append(str(run.folder))
            else:
                seen.add(about)
                self.settings.setdefault(about[0], []).append(run)
        controls = {
            "setting": menu("setting", list(self.settings)),
            "methods": _several("methods"),
            "classes": _several("classes"),
            "authors": _several("authors' runs"),
            "metric": menu("curve of", METRICS),
            "kind": menu("forgetting", [("best earlier AP − last", "max"), ("AP after own session − last", "first")]),
            "pool": menu("images", [(words, pool) for pool, words in figures.POOLS.items()]),
            "run": menu("one run"),
            "session": slider("session", 2, 2),
            "column": menu("class"),
            "threshold": slider("said above", 0.05, 0.95, 0.05, F1_THRESHOLD),
        }
        controls["setting"].layout.display = "none" if len(self.settings) == 1 else None
        views = {
            "Curves": self.curves, "Heat map": self.heat_map, "Changes": self.changes, "Classes": self.class_curves,
            "Forgetting": self.forgetting, "One session": self.one_session, "Lost images": self.lost_images,
        }  # fmt: skip
        picks = {
            "Heat map": self._pick_row, "Changes": self._pick_row, "Classes": self._pick_place,
            "Forgetting": self._pick_bar, "One session": self._pick_fallen,
        }  # fmt: skip
        follow = {"setting": self._new_setting}
        super().__init__(controls, views, folder, "forgetting", picks, follow, headless=headless)
        if copies:
            self.notice = f"Left out, as a run of the same configuration and seed is there: {', '.join(copies)}."
        self.begin("setting")

    # ---- what is chosen ----

    @property
    def runs(self) -> list[Run]:
        """The runs of the chosen methods. Raises RunError if none is chosen."""
        chosen = [run for name in self.value("methods") for run in self._groups[name]]
        if not chosen:
            raise RunError("Choose one method or several.")
        return chosen

    @property
    def run(self) -> Run:
        return self._one[self.value("run")]

    @property
    def columns(self) -> list[int]:
        """Chosen classes in learning order; all of them where none is chosen."""
        return sorted(self.value("classes")) or list(range(len(self.run.protocol.classes)))

    def _new_setting(self) -> None:
        self._all = self.settings[self.value("setting")]
        self._groups, self._one, protocol = by_label(self._all), named(self._all), self._all[0].protocol
        self._ap = author_ap(tested_as(self._all[0].experiment), *protocol.as_published, protocol.classes)
        self.controls["methods"].options = list(self._groups)
        self.controls["methods"].value = list(self._groups)
        classes = [(name, column) for column, name in enumerate(protocol.classes)]
        self.controls["classes"].options = classes
        self.controls["authors"].options = list(self._ap)
        self.controls["authors"].layout.display = None if self._ap else "none"
        self.offer("run", list(self._one))
        self.offer("column", classes)
        self.to_last("session", len(protocol.sessions))

    def _show_class(self, column: int) -> None:
        self.set(column=column)
        self.tabs.selected_index = list(self.views).index("Lost images")

    def _pick_row(self, axis: Axes, x: float, y: float) -> None:
        columns = self.columns
        if 0 <= round(y) < len(columns) and axis.images and len(axis.images[0].get_array()) == len(columns):
            self._show_class(columns[round(y)])

    def _pick_place(self, axis: Axes, x: float, y: float) -> None:
        if (place := (int(x // 1), int(y // 1))) in axis.places:
            self._show_class(axis.places[place])

    def _pick_bar(self, axis: Axes, x: float, y: float) -> None:
        columns = [c for c in self.columns if c < self.run.protocol.sessions[-1].start]
        if 0 <= round(x) < len(columns):
            self._show_class(columns[round(x)])

    def _pick_fallen(self, axis: Axes, x: float, y: float) -> None:
        columns = getattr(axis, "columns", [])
        if 0 <= round(y) < len(columns):
            self._show_class(columns[round(y)])

    # ---- views ----

    def curves(self) -> Result:
        """One metric after each session, with the authors' curves where some are chosen."""
        metric, authors = self.value("metric"), self.value("authors")
        if not metric.startswith("mAP_"):
            figure = figures.session_curves(self.runs, metric, among=self._all)
            return [figure, f"The authors' logs have no {metric} per session."] if authors else figure
        curves = authors_curves(self._all[0], metric.removeprefix("mAP_"))
        reference = {name: curve for name, curve in curves.items() if name in authors}
        return figures.session_curves(self.runs, metric, reference, self._all)

    def heat_map(self) -> Result:
        """AP of every class after every session, and that of the one run in numbers."""
        figure = figures.class_session_heatmap(self.runs, self.value("pool"), self.columns, among=self._all)
        table = pd.DataFrame(self.run.ap_tables[self.value("pool")].T[self.columns]).round(1)
        table.index = pd.Index([self.run.protocol.classes[c] for c in self.columns], name="class")
        table.columns = [f"session {t + 1}" for t in table.columns]
        return [figure, f"{self.value('run')}, AP (%). Click a class above, or choose it, for its lost images.", table]

    def changes(self) -> Result:
        """By how much the AP of every class changed in every session."""
        return figures.class_session_heatmap(self.runs, self.value("pool"), self.columns, True, self._all)

    def class_curves(self) -> Result:
        """A small picture per class. The authors' AP is on the pool of seen images, whatever is chosen here."""
        chosen = {name: table for name, table in self._ap.items() if name in self.value("authors")}
        figure = figures.class_curves(self.runs, self.value("pool"), self.columns, chosen, self._all)
        if chosen and self.value("pool") != "seen":
            return [figure, "The authors' AP is on the test images with a seen class."]
        return figure

    def forgetting(self) -> Result:
        """Points lost per class, and every definition of forgetting."""
        figure = figures.forgetting_bars(self.runs, self.value("kind"), self.value("pool"), self.columns, self._all)
        groups = by_label(self.runs, among=self._all)
        table = pd.DataFrame({name: _mean_and_spread(group) for name, group in groups.items()})
        words = "Every definition, over all classes: mean ± standard deviation over the runs of a method."
        return [figure, words, table.rename_axis("definition")]

    def one_session(self) -> Result:
        """Which classes fell in the chosen session of one run, and with which new classes they are confused."""
        session, run = self.value("session") - 1, self.run
        name = self.value("run") + (" (LEAK)" if run.leak and "LEAK" not in self.value("run") else "")
        table = falls([run], session, self.value("pool"))
        table = table[table.column.isin(self.columns)]
        shown = [figures.falls_in_session(table, session, name)]
        if not run.protocol.class_names(session):
            return [
                *shown,
                f"Session {session + 1} brought more images of old classes, and no class to confuse them with.",
            ]
        fallen = table[table.change < 0].head(FALLEN)
        if len(fallen):
            rows = {old: confusions(run, column, session)
                    for old, column in zip(fallen["class"], fallen.column, strict=True)}  # fmt: skip
            known = any(table["said instead"].notna().any() for table in rows.values())
            shown.append(figures.said_instead(rows, session) if known else NO_BOTH.format(session=session + 1))
        if self.value("column") < run.protocol.sessions[session].start:
            old = run.protocol.classes[self.value("column")]
            details = confusions(run, self.value("column"), session).drop(columns="column").round(1)
            words = (
                f"{old} against the classes of session {session + 1}, in points of probability: what is said instead, "
                "above what is said on other images; the share of its images that show both; how its own score changed "
                "on its images with the new class, on those without, and on images of the new class alone."
            )
            shown += [words, details.set_index("new class")]
        return shown

    def lost_images(self) -> Result:
        """The images on which the class was named right after its own session and is not now."""
        column, run, threshold = self.value("column"), self.run, self.value("threshold")
        session, name, own = self.value("session") - 1, run.protocol.classes[column], int(run.first_session[column])
        if session <= own or session >= run.finished_sessions:
            session = run.finished_sessions - 1
        if session == own:
            return f"{name} was learned in the last session: it has had no time to be lost."
        table = lost_images(run, column, session, threshold)
        now = run.scores(session)
        tested = np.isin(now.ids, run.scores(own).ids)[now.labels[:, column] > 0]
        words = (
            f"{name}, learned in session {own + 1}: {len(table)} of {tested.sum()} images were above {threshold:.2f} "
            f"then and are not after session {session + 1}."
            + (f" {(~tested).sum()} more came later." if not tested.all() else "")
        )
        if not len(table):
            return words
        dataset, problem = opened_test_set(run)
        shown = table.head(IMAGES)
        figure = figures.lost_images(run, dataset, shown, column, own, session, threshold, name=self.value("run"))
        numbers = shown.set_index("image").drop(columns="row").round(3)
        return [words, *([problem] if problem else []), figure, numbers]


def _several(words: str) -> widgets.SelectMultiple:
    return widgets.SelectMultiple(description=words, layout=widgets.Layout(width=WIDTH, height="110px"))


def _setting(run: Run) -> str:
    order = run.experiment.protocol.order_name
    return " ".join(setting_of(run)) + (
        "" if order == "alphabetical" else f", class order {order.removeprefix('seed ')}"
    )


def _mean_and_spread(runs: Sequence[Run]) -> dict[str, str]:
    values = pd.DataFrame([run.forgetting() for run in runs])
    spread = values.std() if len(values) > 1 else None
    return {key: f"{values[key].mean():.2f}" + ("" if spread is None else f" ± {spread[key]:.2f}") for key in values}
