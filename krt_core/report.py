"""Tables over finished runs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .run import Run

METRICS = ("average_mAP", "last_mAP", "forgetting", "CF1", "OF1")


def label_of(run: Run, among: Sequence[Run] = ()) -> str:
    """How a run is called in tables and legends: its method, with its exemplars if it has any, and LEAK if its first
    weights had seen the labels to be learned.

    Runs that this would name alike though their configurations differ are told apart by the keys in which they do, as
    far as those are not at their default: they are no seeds of one another.
    """
    label = _plain_label(run)
    alike = [other.experiment for other in among if _plain_label(other) == label]
    changes = []
    for key, value in run.experiment.changes().items():
        if any(other.changes().get(key, _DEFAULT) != value for other in alike):
            changes.append(f"{key}={value}")
    return ", ".join([label, *changes]) + (" (LEAK)" if run.leak else "")


_DEFAULT = object()  # stands for a key that is not changed


def _plain_label(run: Run) -> str:
    replay = run.experiment.replay
    if replay.per_class:
        return f"{run.experiment.method}, {replay.per_class} exemplars per class"
    if replay.budget:
        return f"{run.experiment.method}, {replay.budget} exemplars"
    return run.experiment.method


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per finished run, with what its DONE file says."""
    lines = []
    for run in runs:
        s = run.summary
        lines.append(
            {"run": run.folder.name, "name": label_of(run, runs), "dataset": s["dataset"], "protocol": s["protocol"],
             "seed": s["seed"],
             **{key: s[key] for key in METRICS}, "exemplars": s["exemplars"], "seconds": s["seconds"],
             "leak": s["weights"].get("leak") or "", "commit": s["commit"]}
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
