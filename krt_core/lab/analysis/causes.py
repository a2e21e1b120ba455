"""Why two runs may differ, as far as their folders tell: configuration, data, and what their starts were made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...config import BESIDE
from ...runs.folder import Run
from ...runs.starts import all_facts

NO_CAUSE = {"name"}  # it names the folder
MADE_WITH = {  # what a session says of its making → in words
    "inputs": "labels, ids or classes of the data",
    "held_out": "images held out",
    "max_steps": "--max-steps",
}
FIRST = ("precision", "device", "processes", "threads", "CPU capability", "variables")  # what starts tell, most telling
# first; then versions, commit and whatever else


def causes_of(runs: Sequence[Run], session: int) -> tuple[list[str], list[str]]:
    """In what two runs differ, and remarks that are no difference.

    session: the one (0 is the first) in which they part; starts that came after it have no part in that.
    """
    starts = [_starts(run, session) for run in runs]
    told = [all_facts(own) for own in starts]
    causes = [*_configuration(runs), *_data(runs), *_recorded(told)]
    counts = [len(run.starts) for run in runs]
    if max(counts) > 1:
        causes += [] if counts[0] == counts[1] else [
            f"starts: {counts[0]} and {counts[1]} (by itself no reason: a run that goes on repeats to the last bit)"
        ]  # fmt: skip
    return causes, _remarks(told, runs)


def _configuration(runs: Sequence[Run]) -> list[str]:
    one, two = (_flat(run.experiment.to_dict()) for run in runs)
    methods = runs[0].experiment.method != runs[1].experiment.method
    found = []
    for key in dict.fromkeys([*one, *two]):
        only = key not in one or key not in two
        if key in NO_CAUSE or (only and methods) or one.get(key) == two.get(key):
            continue
        beside = " (decides no result)" if key in BESIDE - {"seed"} else ""
        found.append(f"{key}: {one.get(key, 'not said')!r} and {two.get(key, 'not said')!r}{beside}")
    return found


def _data(runs: Sequence[Run]) -> list[str]:
    made = [(run.session_state(0).get("made_with") or {}) if run.finished_sessions else {} for run in runs]
    found = []
    for key, what in MADE_WITH.items():
        one, two = (own.get(key) for own in made)
        if all(key in own for own in made) and one != two:
            found.append(f"{what}: {_short(one)} and {_short(two)}")
    images = [own.get("images") or {} for own in made]
    if all(images) and any(images[0].get(key) != images[1].get(key) for key in ("sizes", "sample")):
        found.append("image files: their sizes or contents differ")
    return found


def _recorded(told: Sequence[dict[str, list[str]]]) -> list[str]:
    one, two = told
    both = [key for key in one if key in two]
    keys = [*(key for key in FIRST if key in both), *(key for key in both if key not in FIRST)]
    differing = [key for key in keys if one[key] != two[key]]
    if "commit" in differing and "code of krt_core" in differing:
        differing.remove("code of krt_core")  # says the same
    return [f"{key}: {', then '.join(one[key])} and {', then '.join(two[key])}" for key in differing]


def _remarks(told: Sequence[dict[str, list[str]]], runs: Sequence[Run]) -> list[str]:
    said = []
    for letter, own, other in zip("AB", told, reversed(told), strict=True):
        if missing := [key for key in other if key not in own]:
            said.append(f"{letter} does not record: {', '.join(missing)}.")
    for letter, run, own in zip("AB", runs, told, strict=True):
        if mixed := [f"{key} {', then '.join(values)}" for key, values in own.items() if len(values) > 1]:
            said.append(f"{letter} was made by starts that differ: {'; '.join(mixed)}.")
        if any("cuda" in value for value in own.get("device", ())):
            said.append(f"{letter} was made on a GPU, whose sums are in no fixed order: runs repeat to rounding only.")
        if run.leak:
            said.append(f"{letter} has seen the labels to be learned: {run.leak}.")
    return said


def _starts(run: Run, session: int) -> list[dict[str, Any]]:
    """Those that made the sessions up to one; all where it is not finished."""
    recorded = run.starts
    if session >= run.finished_sessions:
        return recorded
    used = sorted({index for t in range(session + 1) for index in run.session_state(t).get("starts", [0])})
    return [recorded[index] if index < len(recorded) else {} for index in used]


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) else "none" if value is None else str(value)
