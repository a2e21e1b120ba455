"""The leaderboard: methods of one setting beside one another, by what they store and what their backbone does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from ...errors import RunError
from ...runs.folder import Run
from .. import figures
from ..report import finished_runs
from ..report.definitions import DIFFERENCES
from ..report.leaderboard import ALL, backbones_of, buffers_of, chosen_lines, leaderboard
from ..report.paper_table import HIGHER_IS_BETTER, Line, Setting, settings_of
from ..report.recorded import recorded
from ..report.significance import judged
from .explorer import Explorer, Result, menu


class Leaderboard(Explorer):
    """Choose a setting, a metric, what may be stored and what the backbone does.

    folder: holds run folders, and takes what is saved. runs: these instead of the finished ones under it. headless: see
    `Explorer`. beside: tables of earlier runs, such as docs/results/photos_frozen.csv, whose rows of the same settings
    are shown as recorded. Only complete runs count. Raises RunError where there is none.
    """

    def __init__(
        self,
        folder: str | Path = "outputs/demo",
        runs: Sequence[Run] | None = None,
        headless: Sequence[str] | None = None,
        beside: Sequence[str | Path] = (),
    ):
        found = [run for run in (finished_runs(folder) if runs is None else runs) if run.complete]
        if not found:
            raise RunError("There is no complete run to compare: notebook 02, `krt train` or `krt bench` makes some.")
        self.settings = {setting.name: setting for setting in settings_of(found, recorded(beside, found))}
        controls = {
            "setting": menu("setting", list(self.settings)),
            "metric": menu("by", [(key.replace("_", " "), key) for key in HIGHER_IS_BETTER]),
            "buffer": menu("exemplars", [ALL]),
            "backbone": menu("backbone", [ALL]),
            "published": widgets.Checkbox(value=True, description="published lines, too"),
        }
        views = {
            "Table": self.table, "Differences": self.differences, "Kept and learned": self.stability, "Cost": self.cost,
        }  # fmt: skip
        follow = {"setting": self._new_setting}
        super().__init__(controls, views, folder, "leaderboard", follow=follow, headless=headless)
        self.begin("setting")

    @property
    def setting(self) -> Setting:
        return self.settings[self.value("setting")]

    @property
    def lines(self) -> list[Line]:
        """The chosen ones. RunError where there is none."""
        lines = chosen_lines(self.setting, self.value("buffer"), self.value("backbone"))
        if not lines:
            raise RunError("No method here has such a buffer and such a backbone: choose others.")
        return lines

    def _new_setting(self) -> None:
        setting = self.settings[self.controls["setting"].value]
        self.offer("buffer", [ALL, *buffers_of(setting)])
        self.offer("backbone", [ALL, *backbones_of(setting)])

    # ---- views ----

    def table(self) -> Result:
        """Mean ± standard deviation of each method, best first."""
        found = leaderboard(self.setting, self.lines, self.value("metric"), self.value("published"))
        return found.set_index("method")

    def differences(self) -> Result:
        """Which of them hold."""
        key = self.value("metric")
        if not (found := judged(self.lines, key)):
            return "Two methods with two seeds or class orders in common are needed to tell differences from chance."
        chart = figures.rank_chart(found.ranks, found.stretches, len(found.values), key.replace("_", " "))
        return [chart, DIFFERENCES, _shown(found.tests)]

    def stability(self) -> Result:
        """Forgetting against plasticity."""
        if len(self.setting.classes.sessions) < 2:
            return "Of one session nothing is forgotten."
        return figures.stability_chart(self.lines)

    def cost(self) -> Result:
        """Average mAP against time."""
        return figures.cost_chart(self.lines, len(self.setting.classes.sessions))


def _shown(tests: pd.DataFrame) -> pd.DataFrame:
    numbers = {key: tests[key].map(lambda value: f"{value:.2f}") for key in ("difference", "std")}
    values = {key: tests[key].map(lambda value: f"{value:.2g}" if value == value else "–") for key in ("p", "p_holm")}
    return tests.assign(**numbers, **values).set_index("better")
