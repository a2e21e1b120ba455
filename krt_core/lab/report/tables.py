"""Finished runs as plain tables: one line per run, per run and session, per method."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...runs.folder import Run
from ...runs.summary import STORED
from .f1 import Chosen, f1_of
from .naming import (
    RECORDED,
    backbone_of,
    bound_of,
    buffer_of,
    epoch_chosen_on,
    labels_of,
    replicate_of,
    setting_of,
    stored_words,
)

METRICS = ("average_mAP", "last_mAP", "forgetting", "CF1", "OF1")  # what every DONE file holds, as CSV files have it


def runs_table(runs: Sequence[Run], thresholds: Chosen | None = None) -> pd.DataFrame:
    """One line per finished run, with what its DONE file says, and F1 at other thresholds (see `f1_of`)."""
    lines = []
    for run, name in zip(runs, labels_of(runs), strict=True):
        s, (dataset, protocol) = run.summary, setting_of(run)
        lines.append(
            {"run": run.folder.name, "name": name, "dataset": dataset, "protocol": protocol,
             "seed": s["seed"], "class_order": run.experiment.protocol.order_name,
             **{key: s[key] for key in METRICS}, **f1_of(run, thresholds or {}),
             "exemplars": s["exemplars"], **{key: s.get(key) for key in STORED},
             "buffer": buffer_of(run), "bound": bound_of(run), "backbone": backbone_of(run), "oracle": run.oracle,
             "seconds": s["seconds"],
             "peak_memory_mb": s.get("peak_memory_mb"), "leak": s["weights"].get("leak") or "", "commit": s["commit"],
             "mixed": "; ".join(run.mixed), "epoch_chosen_on": epoch_chosen_on(run)}
        )  # fmt: skip
    return pd.DataFrame(lines)


def sessions_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per run and session: mAP of base, seen and new, F1 and its parts, what is stored after it, seconds and
    peak memory (MiB)."""
    lines = []
    metrics = ("mAP_base", "mAP_seen", "mAP_new", "CP", "CR", "CF1", "OP", "OR", "OF1")
    for run, name in zip(runs, labels_of(runs), strict=True):
        dataset, protocol = setting_of(run)
        about = {"run": run.folder.name, "name": name, "dataset": dataset, "protocol": protocol}
        about |= {"replicate": replicate_of(run), "leak": run.leak or "", "oracle": run.oracle}
        for session in run.protocol.sessions:
            state = run.session_state(session.index)
            lines.append(
                {**about, "session": session.index + 1, "classes": session.stop,
                 **{key: state["metrics"].get(key) for key in metrics},
                 "exemplars": sum(map(len, state["exemplar_ids"])), **{key: state.get(key) for key in STORED},
                 "seconds": state["seconds"], "peak_memory_mb": state.get("peak_memory_mb")}
            )  # fmt: skip
    return pd.DataFrame(lines)


def summary_table(table: pd.DataFrame, earlier: pd.DataFrame | None = None) -> pd.DataFrame:
    """One line per method: mean ± standard deviation (n − 1) over its runs, best average mAP first. table: see
    `runs_table`; earlier: recorded rows, marked as such."""
    lines = []
    if earlier is not None and len(earlier):
        table = pd.concat([table, earlier.assign(name=earlier["name"] + RECORDED)])
    for (dataset, protocol, name), group in table.groupby(["dataset", "protocol", "name"], sort=False):
        line = {"dataset": dataset, "protocol": protocol, "method": name}
        line["runs"] = len(group)
        for key in METRICS:
            spread = f" ± {group[key].std():.2f}" if len(group) > 1 else ""
            line[key] = f"{group[key].mean():.2f}{spread}"
        line["backbone"] = group.backbone.iloc[0]
        line["stored"] = stored_words(*(group[key].astype(float).median() for key in ("exemplars", *STORED)))
        line["seconds"] = f"{group.seconds.mean():.0f}"
        lines.append((group.average_mAP.mean(), line))
    lines.sort(key=lambda pair: (pair[1]["dataset"], pair[1]["protocol"], -pair[0]))
    return pd.DataFrame([line for _, line in lines])
