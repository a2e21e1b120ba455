"""Finished runs found, named and put into tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ...errors import DataError, KRTError, RunError
from ...machine.home import resolve
from ...runs.folder import Run, in_order

METRICS = ("average_mAP", "last_mAP", "forgetting", "CF1", "OF1")
NOT_OF_THE_METHOD = {"protocol.order_seed"}  # runs that differ in the class order (or the seed) are replicates


# ---- finding ----


@dataclass(frozen=True)
class LeftOut:
    """A run folder that no table can use, and why."""

    name: str
    reason: str


def collect(folders: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs under some folders, `in_order` and each once, and what had to be left out.

    Raises DataError for a folder that does not exist.
    """
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
    runs, left_out = collect([folder])
    runs = [run for run in runs if all(getattr(run.experiment, key) == value for key, value in wanted.items())]
    if not runs:
        what = "".join(f" with {key}={value}" for key, value in wanted.items())
        reasons = "".join(f"\n{it.name}: {it.reason}" for it in left_out)
        raise RunError(f"There is no finished run{what} in {folder}: notebook 02 or `krt train` makes one.{reasons}")
    return runs


def _unfinished(run: Run) -> str:
    """Why a run is not finished and how far it got; empty if it is. Raises RunError where a file is broken."""
    if run.done:
        if missing := [key for key in (*METRICS, "seconds", "weights") if key not in run.summary]:
            return (
                f"{run.folder / 'DONE'} lacks {', '.join(missing)}: delete it and start the run again to write it anew"
            )
        for session in range(len(run.protocol.sessions)):
            if not {"seconds", "metrics"} <= run.session_state(session).keys():
                return f"{run.session_folder(session) / 'state.json'} lacks seconds or metrics"
        return ""
    if (run.folder / "DONE").exists():
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


# ---- naming ----


def label_of(run: Run, among: Sequence[Run] = ()) -> str:
    """How a run is called in tables and legends: its method, with its exemplars if it has any, and LEAK if its first
    weights had seen the labels to be learned.

    Runs in one setting that this would name alike though their configurations differ are told apart by the keys in
    which they do, as far as those are not at their default: they are no replicates of one another. Runs that differ
    only in seed and class order are, and have one label.
    """
    return labels_of([run, *among])[0]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """`label_of` each run among all of them."""
    return [
        ", ".join([_plain_label(run), *changes]) + (" (LEAK)" if run.leak else "")
        for run, changes in zip(runs, told_apart(runs), strict=True)
    ]


def told_apart(runs: Sequence[Run]) -> list[list[str]]:
    """For each run the ``key=value`` in which it differs from runs of its setting with the same plain label."""
    changes = [run.experiment.changes() for run in runs]
    names = [(*setting_of(run), _plain_label(run), bool(run.leak)) for run in runs]  # LEAK tells those apart already
    alike: dict[tuple, list[dict]] = {}
    for name, own in zip(names, changes, strict=True):
        alike.setdefault(name, []).append(own)
    return [
        [
            f"{key}={value}"
            for key, value in own.items()
            if key not in NOT_OF_THE_METHOD and any(other.get(key, _DEFAULT) != value for other in alike[name])
        ]
        for name, own in zip(names, changes, strict=True)
    ]


_DEFAULT = object()  # stands for a key that is not changed


def replicate_of(run: Run) -> str:
    """Which of its method's replicates a run is: "seed 0", and "order 3" if its class order is not alphabetical."""
    order = run.experiment.protocol.order_seed
    return f"seed {run.experiment.seed}" + ("" if order is None else f", order {order}")


def setting_of(run: Run) -> tuple[str, str]:
    """Data set and protocol, as in ("coco2014", "B0-C10"): only within a setting may numbers stand side by side.

    A folder of the user's own is named so that it cannot be taken for an official data set, and so are chosen classes.
    """
    data, protocol = run.experiment.data, run.experiment.protocol
    name = data.dataset
    if name in ("coco", "voc"):
        name = f"{Path(data.root or name).name} ({name} layout)"
    if data.classes:
        name += f", {len(data.classes)} classes"
    base = 0 if protocol.base == protocol.increment else protocol.base
    return name, f"B{base}-C{protocol.increment}"


def buffer_of(run: Run) -> str:
    """The exemplars of a run as tables of papers give them: "0", "20/class" or "1000"."""
    from ...methods import class_of

    replay = run.experiment.replay
    if not class_of(run.experiment.method).replays:
        return "0"
    return f"{replay.per_class}/class" if replay.per_class else str(replay.budget)


def _plain_label(run: Run) -> str:
    replay = run.experiment.replay
    if replay.per_class:
        return f"{run.experiment.method}, {replay.per_class} exemplars per class"
    if replay.budget:
        return f"{run.experiment.method}, {replay.budget} exemplars"
    return run.experiment.method


# ---- tables ----


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per finished run, with what its DONE file says."""
    lines = []
    for run, name in zip(runs, labels_of(runs), strict=True):
        s, (dataset, protocol) = run.summary, setting_of(run)
        order = run.experiment.protocol.order_seed
        lines.append(
            {"run": run.folder.name, "name": name, "dataset": dataset, "protocol": protocol,
             "seed": s["seed"], "class_order": "alphabetical" if order is None else f"seed {order}",
             **{key: s[key] for key in METRICS}, "exemplars": s["exemplars"], "seconds": s["seconds"],
             "peak_memory_mb": s.get("peak_memory_mb"), "leak": s["weights"].get("leak") or "", "commit": s["commit"]}
        )  # fmt: skip
    return pd.DataFrame(lines)


def sessions_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per run and session: mAP of base, seen and new, F1 and its parts, seconds and peak memory (MiB)."""
    lines = []
    metrics = ("mAP_base", "mAP_seen", "mAP_new", "CP", "CR", "CF1", "OP", "OR", "OF1")
    for run, name in zip(runs, labels_of(runs), strict=True):
        dataset, protocol = setting_of(run)
        about = {"run": run.folder.name, "name": name, "dataset": dataset, "protocol": protocol}
        about |= {"replicate": replicate_of(run), "leak": run.leak or ""}
        for session in run.protocol.sessions:
            state = run.session_state(session.index)
            lines.append(
                {**about, "session": session.index + 1, "classes": session.stop,
                 **{key: state["metrics"].get(key) for key in metrics},
                 "seconds": state["seconds"], "peak_memory_mb": state.get("peak_memory_mb")}
            )  # fmt: skip
    return pd.DataFrame(lines)


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """One line per method: mean ± standard deviation (n − 1) over its runs, best average mAP first."""
    lines = []
    for (dataset, protocol, name), group in table.groupby(["dataset", "protocol", "name"], sort=False):
        line = {"dataset": dataset, "protocol": protocol, "method": name}
        line["runs"] = len(group)
        for key in METRICS:
            spread = f" ± {group[key].std():.2f}" if len(group) > 1 else ""
            line[key] = f"{group[key].mean():.2f}{spread}"
        line["seconds"] = f"{group.seconds.mean():.0f}"
        lines.append((group.average_mAP.mean(), line))
    lines.sort(key=lambda pair: (pair[1]["dataset"], pair[1]["protocol"], -pair[0]))
    return pd.DataFrame([line for _, line in lines])
