"""Two runs side by side: are they the same to the last bit, where do they part first, and how far apart do they end?

What a session makes is compared in the order in which a training makes it: the images it is shown, thresholds of pseudo
labels, each epoch, weights, the method's statistics, scores, metrics, calibration, exemplars, and the look ahead.
Times, memory and places decide nothing and are left out. Why runs part is told by `krt_core.lab.analysis.causes`.
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ...errors import RunError
from ...runs.folder import Run
from .causes import causes_of
from .values import apart, equal, flat, largest, number

TIMES = {"session", "epoch", "seconds", "images_per_second", "peak_memory_mb"}  # of an epoch: its place and its cost
SHOWN = ("train_images", "replayed_images", "test_images")  # of a session: how many it learns from, and is tested on
COLUMNS = ("loss", "thresholds", "weights", "statistics", "scores", "calibration", "exemplars")
SAME = "="


@dataclass(frozen=True)
class Difference:
    """Of one quantity, in a session and, if it is of one, an epoch; both count from 0. size: the largest difference of
    its numbers, NaN where it has none."""

    session: int
    epoch: int | None
    quantity: str
    words: str
    size: float = math.nan

    def __str__(self) -> str:
        epoch = "" if self.epoch is None else f", epoch {self.epoch + 1}"
        return f"session {self.session + 1}{epoch}: {self.quantity}: {self.words}"


@dataclass(frozen=True)
class Comparison:
    """Of two runs. differences: in the order in which trainings make them; lacking: what could not be compared;
    sessions: how many each has finished; causes: in what configurations and records differ, see `causes_of`."""

    runs: tuple[Run, Run]
    sessions: tuple[int, int]
    differences: list[Difference]
    lacking: list[str]
    causes: list[str]
    remarks: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Are they, to the last bit, and as long?"""
        return not self.differences and not self.lacking and self.sessions[0] == self.sessions[1]

    @property
    def first(self) -> Difference | None:
        """Where they part."""
        return self.differences[0] if self.differences else None

    @property
    def table(self) -> pd.DataFrame:
        """A line for each session that both have finished: the largest difference of each quantity, 0 where it is the
        same, and the mAP (%) of both."""
        shared = range(min(self.sessions))
        lines = []
        for session in shared:
            line: dict[str, Any] = {"session": session + 1}
            for name in COLUMNS:
                sizes = [d.size for d in self.differences if (d.session, d.quantity) == (session, name)]
                line[name] = max(sizes, key=lambda size: math.inf if math.isnan(size) else size, default=0.0)
            one, two = (run.session_state(session)["metrics"]["mAP_seen"] for run in self.runs)
            lines.append(line | {"mAP A": one, "mAP B": two})
        return pd.DataFrame(lines, columns=["session", *COLUMNS, "mAP A", "mAP B"]).set_index("session")

    def words(self) -> str:
        """All of it, as `krt compare` prints it."""
        lines = [f"{letter}: {run.folder}{_reach(run)}" for letter, run in zip("AB", self.runs, strict=True)]
        lines += ["", self._verdict(), *(f"not compared: {what}" for what in self.lacking)]
        if self.differences:
            table = self.table
            if len(table):
                lines += [_at_the_end(table), "", "largest differences, session by session:", _shown(table)]
            lines += ["", "why, as far as records tell:"]
            lines += [f"  {cause}" for cause in self.causes] or ["  nothing recorded differs"]
        elif self.causes:
            lines += ["", "what is recorded differs all the same:", *(f"  {cause}" for cause in self.causes)]
        return "\n".join([*lines, *([""] if self.remarks else []), *self.remarks]) + "\n"

    def _verdict(self) -> str:
        shared, (one, two) = min(self.sessions), self.sessions
        if self.first:
            return f"They part in {self.first}"
        if one != two:
            longer, more = ("A", one - two) if one > two else ("B", two - one)
            what = f"session {shared + 1}" if more == 1 else f"sessions {shared + 1} to {shared + more}"
            common = f"They are the same to the last bit as far as both go, through session {shared}"
            return f"{common if shared else 'One of them has finished no session'}; {longer} has {what} more."
        if self.lacking:
            return "Nothing that both have differs, but not all of it is there."
        if not shared and not all(run.epochs for run in self.runs):
            return "Neither has begun."
        unfinished = "" if all(run.complete for run in self.runs) else ", as far as they have got"
        return f"They are the same to the last bit{unfinished}."


def compared(one: Run | str | Path, two: Run | str | Path) -> Comparison:
    """Compare two runs, or folders of runs. Raises RunError for a folder that is none, or whose configuration or states
    cannot be read; other files that are missing or damaged in one are named in `Comparison.lacking`.

    >>> print(compared("outputs/run", "outputs/again").words())  # doctest: +SKIP
    """
    runs = tuple(run if isinstance(run, Run) else Run(run) for run in (one, two))
    sessions = tuple(run.finished_sessions for run in runs)
    lacking: list[str] = []
    differences = list(_differences(runs, min(sessions), lacking))
    last = differences[0].session if differences else max(sessions) - 1
    causes, remarks = causes_of(runs, last)
    return Comparison(runs, sessions, differences, lacking, causes, remarks)  # type: ignore[arg-type]


def _differences(runs: Any, shared: int, lacking: list[str]) -> Iterator[Difference]:
    epochs = [_by_place(run) for run in runs]
    for session in range(shared):
        both = _Session(runs, session, lacking)
        yield from both.begun()
        yield from _epochs(epochs, session)
        yield from both.ended()
    later = {session for own in epochs for session, _ in own if session >= shared}
    for session in sorted(later):  # which one of them has not finished
        if all(any(place[0] == session for place in own) for own in epochs):
            yield from _epochs(epochs, session, running=True)


class _Session:
    """A session that both have finished."""

    def __init__(self, runs: Any, session: int, lacking: list[str]):
        self.runs, self.session, self.lacking = runs, session, lacking
        self.states = [run.session_state(session) for run in runs]
        stops = [run.protocol.sessions[session].stop for run in runs]
        self.classes = [run.protocol.classes[:stop] for run, stop in zip(runs, stops, strict=True)]

    def begun(self) -> Iterator[Difference]:
        """What it is shown, and what it makes of that before it learns."""
        if self.classes[0] != self.classes[1]:
            yield self._said("classes", " and ".join(", ".join(names) for names in self.classes))
        for key in SHOWN:
            yield from self._plain(key.replace("_", " "), [state.get(key) for state in self.states])
        thresholds = [state["method"].get("thresholds") for state in self.states]
        own = [found.get(str(self.session)) if isinstance(found, dict) else None for found in thresholds]
        if any(own):
            yield from self._numbers("thresholds", *map(flat, own))

    def ended(self) -> Iterator[Difference]:
        """What it leaves."""
        files = [
            ("model.safetensors", session) for session in {0, self.session}
        ]  # a backbone that stands still is below
        if not all(self._same_file(*file) for file in files):
            yield from self._numbers("weights", *self._read("weights", lambda run: run.model_state(self.session)))
        yield from self._numbers("statistics", *self._read("statistics", self._statistics))
        if not self._same_file("scores.npz"):
            yield from self._scores()
        yield from self._numbers("metrics", *(flat(state["metrics"]) for state in self.states))
        yield from self._numbers("AP", *self._read("AP", lambda run: flat(run.ap(self.session))))
        yield from self._numbers("calibration", *self._read("calibration", self._calibration))
        yield from self._exemplars()
        if not self._same_file("ahead.npz"):
            yield from self._numbers("scores of the images to come", *self._read("ahead.npz", self._ahead))

    # ---- one quantity ----

    def _scores(self) -> Iterator[Difference]:
        """By image and class, so that runs of other images and classes still tell of those they share."""
        found = self._read("scores", lambda run: run.scores(self.session))
        if None in found:
            return
        one, two = found
        if one.ids.tolist() != two.ids.tolist():
            both = np.intersect1d(one.ids, two.ids)
            yield self._said("test images", f"{len(one.ids)} and {len(two.ids)}, {len(both)} of them in both")
        rows = [{name: row for row, name in enumerate(scores.ids.tolist())} for scores in found]
        columns = [{name: column for column, name in enumerate(names)} for names in self.classes]
        shared = [[name for name in places[0] if name in places[1]] for places in (rows, columns)]
        cut = [np.ix_([r[name] for name in shared[0]], [c[name] for name in shared[1]])
               for r, c in zip(rows, columns, strict=True)]  # fmt: skip
        labels, scores = ([getattr(own, key)[at] for own, at in zip(found, cut, strict=True)]
                          for key in ("labels", "scores"))  # fmt: skip
        if not labels[0].size:
            yield self._said("scores", "no test image and class in common")
            return
        if other := int((labels[0].astype(np.int8) != labels[1].astype(np.int8)).sum()):
            yield self._said("labels of test images", f"{other} differ")
        yield from self._numbers("scores", *({"": torch.from_numpy(np.ascontiguousarray(own))} for own in scores))

    def _statistics(self, run: Run) -> dict[str, Any]:
        state = run.method_state(self.session)
        return flat({key: value for key, value in state.items() if key != "thresholds"})

    def _calibration(self, run: Run) -> dict[str, Any]:
        return flat({key: list(value) if key == "curves" else value
                     for key, value in vars(run.calibration(self.session)).items()})  # fmt: skip

    def _ahead(self, run: Run) -> dict[str, Any] | None:
        ahead = run.ahead(self.session)
        return (
            None if ahead is None else {"ids": " ".join(ahead.ids.tolist()), "scores": torch.from_numpy(ahead.scores)}
        )

    def _exemplars(self) -> Iterator[Difference]:
        one, two = (state.get("exemplar_ids") for state in self.states)
        if one != two and one is not None and two is not None:
            sets = [{name for ids in stored for name in ids} for stored in (one, two)]
            gone = len(sets[0] ^ sets[1])
            words = f"{len(sets[0])} and {len(sets[1])} images, {len(sets[0] & sets[1])} of them in both"
            yield self._said("exemplars", words if gone else f"the same {len(sets[0])}, in another order", float(gone))
        yield from self._numbers("memory", *(flat(state.get("memory") or {}) for state in self.states))

    # ---- how ----

    def _read(self, what: str, read: Callable[[Run], Any]) -> list[Any]:
        """Of both; None where it is not to be had, which is said."""
        found, faults = [], []
        for run, letter in zip(self.runs, "AB", strict=True):
            try:
                found.append(read(run))
            except (RunError, FileNotFoundError) as error:
                found.append(None)
                faults.append(f"{letter}: {error}")
        if not faults and found.count(None) == 1:
            faults = [f"{'AB'[found.index(None)]} has none"]
        self.lacking.extend(f"{what} of session {self.session + 1}: {fault}" for fault in faults)
        return found

    def _numbers(self, quantity: str, one: dict[str, Any] | None, two: dict[str, Any] | None) -> Iterator[Difference]:
        if one is not None and two is not None and (found := largest(one, two)):
            yield self._said(quantity, *found)

    def _plain(self, quantity: str, values: list[Any]) -> Iterator[Difference]:
        if None not in values and values[0] != values[1]:
            yield self._said(quantity, f"{values[0]} and {values[1]}", apart(*values))

    def _said(self, quantity: str, words: str, size: float = math.nan) -> Difference:
        return Difference(self.session, None, quantity, words, size)

    def _same_file(self, name: str, session: int | None = None) -> bool:
        one, two = (run.session_folder(self.session if session is None else session) / name for run in self.runs)
        return one.is_file() and two.is_file() and filecmp.cmp(one, two, shallow=False)


def _epochs(epochs: list[dict], session: int, running: bool = False) -> Iterator[Difference]:
    """Of the lines of metrics.jsonl; running: the session is not finished, and one may have got further."""
    made = [{epoch: line for (t, epoch), line in own.items() if t == session} for own in epochs]
    for epoch in sorted(made[0].keys() & made[1].keys()):
        one, two = (own[epoch] for own in made)
        for key in dict.fromkeys([*one, *two]):
            pair = one.get(key), two.get(key)
            if key not in TIMES and not equal(*pair):
                words = f"{number(pair[0])} and {number(pair[1])}"
                yield Difference(session, epoch, key, words, apart(*pair))
    if not running and made[0].keys() != made[1].keys():
        first = min(made[0].keys() ^ made[1].keys())
        yield Difference(session, first, "epochs", f"{len(made[0])} and {len(made[1])} are recorded")


def _by_place(run: Run) -> dict[tuple[int, int], dict[str, Any]]:
    return {(line["session"], line["epoch"]): line for line in run.epochs}


def _reach(run: Run) -> str:
    """How far it is, where it is not at its end, and where it comes from."""
    finished = run.finished_sessions
    planned = f" of {len(run.protocol.sessions)}" if finished else ""
    from_other = run.session_state(0).get("inherited") if finished else None
    grown = f" (grown from {from_other})" if from_other else ""
    return f"{grown}" if run.complete else f"{grown}, not finished: {finished}{planned} sessions"


def _at_the_end(table: pd.DataFrame) -> str:
    last = table.iloc[-1]
    by = "are the same" if last.scores == 0 else f"are up to {last.scores:.2g} apart"
    by = "cannot be compared" if math.isnan(last.scores) else by
    one, two = last["mAP A"], last["mAP B"]
    return f"After session {table.index[-1]}, the last that both have, scores {by}; mAP is {one:.2f} and {two:.2f} %."


def _shown(table: pd.DataFrame) -> str:
    """Empty columns left out, numbers short."""
    said = table.copy().astype(object)
    for name in COLUMNS:
        column = ["?" if math.isnan(size) else f"{size:.1e}" if size else SAME for size in table[name]]
        said[name] = [f"{size:.0f}" if name == "exemplars" and size > 0 else word
                      for size, word in zip(table[name], column, strict=True)]  # fmt: skip
    kept = [name for name in COLUMNS if set(said[name]) != {SAME}]
    said = said[[*kept, "mAP A", "mAP B"]]
    return said.reset_index().to_string(index=False, float_format=lambda value: f"{value:.2f}")
