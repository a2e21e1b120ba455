"""The forgetting explorer: which classes fell, when, by which method, and on which images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from matplotlib.axes import Axes

from .. import plots
from ..errors import RunError
from ..forgetting import confusions, falls, lost_images
from ..metrics import F1_THRESHOLD
from ..plots.figure import by_label
from ..reference import author_ap, author_curves
from ..report import finished_runs, label_of, replicate_of, setting_of
from ..run import Run
from .explorer import Explorer, Result
from .gallery import opened_test_set

METRICS = ("mAP_seen", "mAP_base", "mAP_new", "CF1", "OF1")
FALLEN = 8  # classes in the picture of confusions
IMAGES = 9  # lost ones shown


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
        self.settings: dict[str, list[Run]] = {}
        for run in found:
            self.settings.setdefault(_setting(run), []).append(run)
        wide, tall = widgets.Layout(width="360px"), widgets.Layout(width="360px", height="110px")
        slider = dict(continuous_update=False, layout=wide)
        hidden = widgets.Layout(width="360px", display="none" if len(self.settings) == 1 else None)
        controls = {
            "setting": widgets.Dropdown(options=list(self.settings), description="setting", layout=hidden),
            "methods": widgets.SelectMultiple(description="methods", layout=tall),
            "classes": widgets.SelectMultiple(description="classes", layout=tall),
            "authors": widgets.SelectMultiple(description="authors' runs", layout=tall),
            "metric": widgets.Dropdown(options=METRICS, description="curve of", layout=wide),
            "kind": widgets.Dropdown(
                options=[("best earlier AP − last", "max"), ("AP after own session − last", "first")],
                description="forgetting", layout=wide,
            ),
            "pool": widgets.Dropdown(
                options=[(words, pool) for pool, words in plots.POOLS.items()], description="images", layout=wide
            ),
            "run": widgets.Dropdown(description="one run", layout=wide),
            "session": widgets.IntSlider(2, 2, 2, description="session", **slider),
            "column": widgets.Dropdown(description="class", layout=wide),
            "threshold": widgets.FloatSlider(F1_THRESHOLD, min=0.05, max=0.95, step=0.05, description="said above",
                                             **slider),
        }  # fmt: skip
        views = {
            "Curves": self.curves, "Heat map": self.heat_map, "Changes": self.changes, "Classes": self.class_curves,
            "Forgetting": self.forgetting, "One session": self.one_session, "Lost images": self.lost_images,
        }  # fmt: skip
        picks = {
            "Heat map": self._pick_row, "Changes": self._pick_row, "Classes": self._pick_place,
            "Forgetting": self._pick_bar, "One session": self._pick_fallen,
        }  # fmt: skip
        super().__init__(
            controls, views, folder, "forgetting", picks, {"setting": self._new_setting}, headless=headless
        )
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
        runs = self.settings[self.value("setting")]
        self._groups, protocol = by_label(runs), runs[0].protocol
        self._one = {f"{label_of(run, runs)}, {replicate_of(run)}": run for run in runs}
        data = runs[0].experiment.data.dataset
        self._curves = lambda key: author_curves(data, protocol.base, protocol.increment, key)
        self._ap = author_ap(data, protocol.base, protocol.increment, protocol.classes)
        self.controls["methods"].options = list(self._groups)
        self.controls["methods"].value = list(self._groups)
        classes = [(name, column) for column, name in enumerate(protocol.classes)]
        self.controls["classes"].options = classes
        self.controls["authors"].options = list(self._curves("seen"))
        self.controls["authors"].layout.display = None if self._ap else "none"
        self.offer("run", list(self._one))
        self.offer("column", classes)
        self.controls["session"].max = self.controls["session"].value = max(2, len(protocol.sessions))

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
        metric = self.value("metric")
        key = metric.removeprefix("mAP_")
        reference = self._curves(key) if metric.startswith("mAP_") else {}
        return plots.session_curves(
            self.runs, metric, {n: c for n, c in reference.items() if n in self.value("authors")}
        )

    def heat_map(self) -> Result:
        """AP of every class after every session."""
        return plots.class_session_heatmap(self.runs, self.value("pool"), self.columns)

    def changes(self) -> Result:
        """By how much the AP of every class changed in every session."""
        return plots.class_session_heatmap(self.runs, self.value("pool"), self.columns, change=True)

    def class_curves(self) -> Result:
        """A small picture per class. The authors' AP is on the pool of seen images, whatever is chosen here."""
        chosen = {name: table for name, table in self._ap.items() if name in self.value("authors")}
        figure = plots.class_curves(self.runs, self.value("pool"), self.columns, chosen)
        note = (
            "The authors' AP is on the test images with a seen class."
            if chosen and self.value("pool") != "seen"
            else ""
        )
        return [figure, note] if note else figure

    def forgetting(self) -> Result:
        """Points lost per class, and every definition of forgetting."""
        figure = plots.forgetting_bars(self.runs, self.value("kind"), self.value("pool"), self.columns)
        table = pd.DataFrame({name: _mean_and_spread(group) for name, group in by_label(self.runs).items()})
        return [figure, table.rename_axis("definition")]

    def one_session(self) -> Result:
        """Which classes fell in the chosen session of one run, and with which new classes they are confused."""
        session = self.value("session") - 1
        table = falls([self.run], session, self.value("pool"))
        table = table[table.column.isin(self.columns)]
        shown = [plots.falls_in_session(table, session)]
        fallen = table[table.change < 0].head(FALLEN)
        if len(fallen):
            rows = {name: confusions(self.run, column, session)
                    for name, column in zip(fallen["class"], fallen.column, strict=True)}  # fmt: skip
            shown.append(plots.said_instead(rows, session))
        if self.value("column") < self.run.protocol.sessions[session].start:
            name = self.run.protocol.classes[self.value("column")]
            details = confusions(self.run, self.value("column"), session).drop(columns="column").round(1)
            words = (
                f"{name} against the classes of session {session + 1}, in points of probability: what is said instead; "
                "the share of its images that show both; how its own score changed on its images with the new class, "
                "on those without, and on images of the new class alone."
            )
            shown += [words, details.set_index("new class")]
        return shown

    def lost_images(self) -> Result:
        """The images on which the class was named right after its own session and is not now."""
        column, run, threshold = self.value("column"), self.run, self.value("threshold")
        session, name = self.value("session") - 1, run.protocol.classes[column]
        own = int(run.first_session[column])
        if session <= own:
            session = run.finished_sessions - 1
        table = lost_images(run, column, session, threshold)
        total = int(run.scores(session).labels[:, column].sum())
        words = (
            f"{name}, learned in session {own + 1}: {len(table)} of {total} images were above {threshold:.2f} then "
            f"and are not after session {session + 1}."
        )
        if not len(table):
            return [words]
        dataset, problem = opened_test_set(run)
        shown = table.head(IMAGES)
        figure = plots.lost_images(run, dataset, shown, column, own, session, threshold)
        return [words, *([problem] if problem else []), figure, shown.set_index("image").drop(columns="row").round(3)]


def _setting(run: Run) -> str:
    order = run.experiment.protocol.order_seed
    return " ".join(setting_of(run)) + ("" if order is None else f", class order {order}")


def _mean_and_spread(runs: Sequence[Run]) -> dict[str, str]:
    values = pd.DataFrame([run.forgetting() for run in runs])
    spread = values.std() if len(values) > 1 else None
    return {key: f"{values[key].mean():.2f}" + ("" if spread is None else f" ± {spread[key]:.2f}") for key in values}
