"""Finished runs found under folders, and why others are not among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, DataError, KRTError, RunError, did_you_mean
from ...machine.home import file_digest, resolve
from ...methods import class_of
from ...options import short_name
from ...runs.folder import Run, in_order
from .naming import backbone_of, buffer_of, setting_of
from .tables import METRICS

MORE = ("seconds", "weights", "seed", "exemplars", "commit", "mAP_per_session")  # of a DONE file, beside the metrics


@dataclass(frozen=True)
class LeftOut:
    """A run folder that no table can use, and why."""

    name: str
    reason: str


def collect(folders: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs under some folders, `in_order` and each once, and what had to be left out: copies, too, which
    are no replicates.

    Raises DataError for a folder that does not exist.
    """
    runs, left_out = _collect(folders)
    for copy, first in copies_of(runs):
        what = f"a copy of {first.folder.name}: the same configuration, seed and scores"
        left_out.append(LeftOut(copy.folder.name, what))
        runs.remove(copy)
    return runs, left_out


def only(runs: Sequence[Run], wanted: Sequence[str]) -> list[Run]:
    """The runs of which all of ``wanted`` holds, as in "protocol=B0-C10": dataset, protocol, method, buffer ("0",
    "5/class"; upper bounds, which need none, stay) and backbone ("frozen"). A name may be cut before a space or comma.

    Raises ConfigError for another key, DataError, with what there is, where nothing is left.
    """
    runs = list(runs)
    for one in wanted:
        key, equals, value = one.partition("=")
        if not equals or key not in ABOUT_RUNS:
            raise ConfigError(
                f"--only {one}: write key=value with {', '.join(ABOUT_RUNS)}.{did_you_mean(key, ABOUT_RUNS)}"
            )
        told = [ABOUT_RUNS[key](run) for run in runs]
        has = [value in (name, re.split("[ ,]", name)[0]) for name in told]
        if not any(has):
            raise DataError(f"No finished run has {one}; there is {', '.join(sorted(set(told)))}.")
        runs = [run for run, name, chosen in zip(runs, told, has, strict=True) if chosen or name == ANY]
    return runs


def _buffer(run: Run) -> str:
    return ANY if run.oracle or class_of(run.experiment.method).sees != "session" else buffer_of(run)


ANY = "any"  # buffer of what is a bound
ABOUT_RUNS: dict[str, Callable[[Run], str]] = {
    "dataset": lambda run: setting_of(run)[0],
    "protocol": lambda run: setting_of(run)[1],
    "method": lambda run: short_name(run.experiment.method),
    "buffer": _buffer,
    "backbone": backbone_of,
}


def copies_of(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Of finished runs those that have configuration, seed and scores of one before them, and that one."""
    originals: dict[tuple, list[Run]] = {}
    found = []
    for run in sorted(runs, key=lambda run: run.folder):
        summary = run.summary or {}
        group = originals.setdefault((summary.get("config_hash"), summary.get("seed")), [])
        if first := next((other for other in group if _same_scores(run, other)), None):
            found.append((run, first))
        else:
            group.append(run)
    return found


def _same_scores(one: Run, two: Run) -> bool:
    last = len(one.summary["mAP_per_session"]) - 1
    files = [run.session_folder(last) / "scores.npz" for run in (one, two)]
    same = one.summary["mAP_per_session"] == two.summary["mAP_per_session"]
    return same and (not all(map(Path.is_file, files)) or len(set(map(file_digest, files))) == 1)


def _collect(folders: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    runs, left_out = {}, {}
    for folder in folders:
        if not resolve(folder).exists():
            raise DataError(f"There is no folder {folder}.")
        for path in sorted(resolve(folder).rglob("experiment.yaml")):
            try:
                run = Run(path.parent)
                reason = _unfinished(run)
            except KRTError as error:  # one broken folder must not hide the others
                reason = str(error)
            if reason:
                left_out[path.parent] = LeftOut(path.parent.name, reason)
            else:
                runs[path.parent] = run
    return in_order(list(runs.values())), list(left_out.values())


def finished_runs(folder: str | Path, **wanted: object) -> list[Run]:
    """The finished runs under a folder; ``method="krt"`` and such keep those whose experiment has it.

    Raises RunError where there is none, with the reasons.
    """
    runs, left_out = _collect([folder])  # explorers tell of copies themselves
    runs = [run for run in runs if all(getattr(run.experiment, key) == value for key, value in wanted.items())]
    if not runs:
        what = "".join(f" with {key}={value}" for key, value in wanted.items())
        reasons = "".join(f"\n{it.name}: {it.reason}" for it in left_out)
        raise RunError(f"There is no finished run{what} in {folder}: notebook 02 or `krt train` makes one.{reasons}")
    return runs


def _unfinished(run: Run) -> str:
    """Why a run is not finished and how far it got; empty if it is. Raises RunError where a file is broken."""
    if run.done:
        if missing := [key for key in (*METRICS, *MORE) if key not in run.summary]:
            return (
                f"{run.folder / 'DONE'} lacks {', '.join(missing)}: delete it and start the run again to write it anew"
            )
        run.starts  # noqa: B018  # raises where environment.json is damaged, which every table reads
        for session in range(len(run.protocol.sessions)):
            if not {"seconds", "metrics"} <= run.in_short(session).keys():
                return f"{run.session_folder(session) / 'state.json'} lacks seconds or metrics"
        ap = run.session_state(session)["metrics"].get("AP_seen", {})
        if missing := [name for name in run.protocol.classes if name not in ap]:
            state = run.session_folder(session) / "state.json"
            return f"{state} lacks the AP of {', '.join(missing[:3])}: {run.way_out(session)}"
        return ""
    if run.written_summary():
        return "its DONE file belongs to another configuration than its experiment.yaml"
    finished, progress = run.finished_sessions, run.progress
    if not finished and not progress:
        return "not finished: no session done"
    total = len(run.protocol.sessions) if finished else progress.get("sessions", "?")
    when = f", last active {progress['updated_at'].replace('T', ' ')}" if "updated_at" in progress else ""
    epoch = ""
    if isinstance(total, int) and progress.get("session") == finished < total:
        epoch = f", in epoch {progress.get('epoch', 0) + 1} of {progress.get('epochs', '?')} of the next"
    elif finished == total:
        epoch = ", but not marked done (as with --max-steps)"
    return f"not finished: {finished} of {total} sessions done{epoch}{when}"
