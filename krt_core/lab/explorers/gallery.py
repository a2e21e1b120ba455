"""The gallery: test images that a model gets right and wrong, class by class, and two models on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import RunError
from ...metrics import F1_THRESHOLD
from ...runs.folder import Run
from ..analysis.datasets import opened_test_set
from ..analysis.predictions import KINDS, PAIR_KINDS, images_table, paired, scores_of, select
from ..figures.gallery import gallery, side_by_side
from ..report import finished_runs, names_of, setting_of
from .explorer import Explorer, Result, menu, slider

NONE = "–"


class Gallery(Explorer):
    """Choose a run, or two, a session, a class, and which of its test images to see.

    folder: holds run folders, and takes what is saved. runs: these instead of the finished ones under it; one not
    finished shows its sessions so far. headless: see `Explorer`. Raises RunError where there is no run. Where there are
    no images, grey cards stand in their place.
    """

    def __init__(
        self,
        folder: str | Path = "outputs/demo",
        runs: Sequence[Run] | None = None,
        headless: Sequence[str] | None = None,
    ):
        self.runs = named(finished_runs(folder) if runs is None else runs)
        if not self.runs:
            raise RunError("There is no run with a finished session to look at: notebook 02 or `krt train` makes one.")
        names = list(self.runs)
        kinds = [(f"{kind}: {words}", kind) for kind, words in (KINDS | PAIR_KINDS).items()]
        controls = {
            "run": menu("run (A)", names),
            "beside": menu("beside it (B)", [NONE, *names]),
            "session": slider("session"),
            "name": menu("class"),
            "kind": menu("images", kinds, value="misses"),
            "count": slider("at most", 3, 48, 3, 9),
            "threshold": slider("predicted above", 0.05, 0.95, 0.05, F1_THRESHOLD),
        }
        controls["beside"].value = _another(self.runs, names[0])
        follow = {"run": self._new_run, "session": self._new_session}
        views = {"One run": self.one_run, "Side by side": self.side_by_side, "Table": self.table}
        super().__init__(controls, views, folder, "gallery", follow=follow, headless=headless)
        self.begin("run")

    # ---- what is chosen ----

    @property
    def run(self) -> Run:
        return self.runs[self.value("run")]

    @property
    def other(self) -> Run | None:
        """The run beside it, if one is chosen."""
        return self.runs.get(self.value("beside"))

    @property
    def session(self) -> int:
        return self.value("session") - 1

    @property
    def column(self) -> int:
        """Of the chosen class, in the learning order of the run."""
        return self.run.protocol.classes.index(self.value("name"))

    def _new_run(self) -> None:
        """To the last session of the run, beside one of the same data set."""
        chosen, beside = self.controls["run"].value, self.controls["beside"].value
        if beside != NONE and _data_of(self.runs[beside]) != _data_of(self.runs[chosen]):
            self.controls["beside"].value = _another(self.runs, chosen)
        self.to_last("session", self.runs[chosen].finished_sessions)
        self._new_session()

    def _new_session(self) -> None:
        """Only classes learned so far can be chosen."""
        try:
            protocol = self.runs[self.controls["run"].value].protocol
        except RunError:  # which the view will say
            return
        self.offer("name", protocol.classes[: protocol.sessions[self.controls["session"].value - 1].stop])

    # ---- views ----

    def one_run(self) -> Result:
        """Images of the first run, by its own scores."""
        if self.value("kind") in PAIR_KINDS:
            return self.side_by_side()
        dataset, note = opened_test_set(self.run)
        figure = gallery(
            self.run, dataset, self.session, self.column, self.value("kind"), self.value("count"),
            self.value("threshold"), name=self.value("run"),
        )  # fmt: skip
        return [figure, note] if note else figure

    def side_by_side(self) -> Result:
        """The same images with what both runs say."""
        dataset, note = opened_test_set(self.run)
        if self.other is None:
            raise RunError(f"Choose a second run to see side by side ({self.controls['beside'].description}).")
        figure = side_by_side(
            self.run, self.other, dataset, self.session, self.column, self.value("kind"), self.value("count"),
            self.value("threshold"), names=(self.value("run"), self.value("beside")),
        )  # fmt: skip
        return [figure, note] if note else figure

    def table(self) -> Result:
        """The images of the picture with their scores."""
        run, other, session, threshold = self.run, self.other, self.session, self.value("threshold")
        a, b = scores_of(run, session), None
        if other is not None:
            a, b, _ = paired(run, other, session)
        rows = select(a, b, self.column, self.value("kind"), self.value("count"), threshold)
        shown = images_table(run, session, self.column, rows, threshold, other)
        words = f"{self.value('name')} after session {session + 1}, A: {self.value('run')}, B: {self.value('beside')}"
        return [words, shown.set_index("image").round(3)]


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs with a finished session by the name they have in menus; the folder's name tells apart those called alike."""
    runs, out = [run for run in runs if run.finished_sessions], {}
    for run, name in zip(runs, names_of(runs), strict=True):
        out[name if name not in out else f"{name} ({run.folder.name})"] = run
    return out


def _another(runs: dict[str, Run], chosen: str) -> str:
    """What one would look at beside a run: the first of another method, else another run, of the same data set."""
    one = runs[chosen]
    others = [name for name, run in runs.items() if name != chosen and _data_of(run) == _data_of(one)]
    unlike = [name for name in others if runs[name].experiment.method != one.experiment.method]
    return (unlike or others or [NONE])[0]


def _data_of(run: Run) -> str:
    return setting_of(run)[0]
