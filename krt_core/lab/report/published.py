"""Published results: the authors' own training logs and the COCO tables of later papers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...config import Experiment
from ...metrics import F1_THRESHOLD, forgetting
from ...reference import text as _text


def held_out(experiment: Experiment) -> float:
    """The share of the training images that a run was tested on; 0: it was tested on the test images."""
    data, old = experiment.data, dict(experiment.retired).get("data.holdout")
    return data.validation if data.test == "validation" else float(old) if isinstance(old, (int, float)) else 0.0


def tested_as(experiment: Experiment) -> str:
    """The data set whose published numbers are of the images that a run was tested on, if there are any."""
    return "" if held_out(experiment) else experiment.data.dataset


def author_curves(
    dataset: str, base: int, increment: int, key: str = "seen", classes: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Curves of the authors' complete runs on one protocol: name → mAP (%) after each session, in their log's numbers.

    dataset "coco2014" or "voc2007"; base and increment as in a `Protocol`; key "base", "seen" or "new"; classes in
    learning order. Empty for a protocol they published no log of and if these classes are not theirs, in their order.
    Source: the logs in the April 2024 archive of their code.
    """
    runs = [run for run in _author_runs(dataset, base, increment) if classes is None or _learned(run) == list(classes)]
    return {_author_name(run): np.array([float(value) for value in run["mAP"][key].values()]) for run in runs}


def author_ap(dataset: str, base: int, increment: int, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """AP (T, C) of the same runs, on the *seen* pool alone: NaN before a class is learned. classes as in
    `author_curves`."""
    tables = {}
    for run in _author_runs(dataset, base, increment):
        if _learned(run) == list(classes):
            steps = list(run["mAP"]["seen"])  # "10", "20", ...
            ap = [[run["AP"][name].get(step, np.nan) for name in classes] for step in steps]
            tables[_author_name(run)] = np.array(ap, dtype=float)
    return tables


def _learned(run: dict) -> list[str]:
    """The classes of a run in the order in which it learned them."""
    return list(run["classes"])


def _author_name(run: dict) -> str:
    stored = run.get("exemplars_per_class") or 0
    return f"authors: {run['method']}, {stored} per class, λ {run['token_distillation_weight']}"


@dataclass(frozen=True)
class PublishedResult:
    """A result of others on one protocol, in percent or points; NaN where it was not given."""

    method: str
    buffer: str  # exemplars, as "0", "20/class" or "1000"
    average_mAP: float
    last_mAP: float
    CF1: float
    OF1: float
    source: str
    seconds: float = float("nan")
    note: str = ""  # what a reader must know before comparing
    forgetting: dict[str, float] = field(default_factory=dict)  # by definition, on the pools that were published
    mAP_per_session: tuple[float, ...] = ()


def published_results(dataset: str, base: int, increment: int) -> list[PublishedResult]:
    """What ``coco2014.csv`` and the authors' logs of complete runs hold on a protocol; empty for any other.

    dataset, base and increment as in `author_curves`. Forgetting is computed from the AP of the logs, which was taken
    on the *seen* pool alone.
    """
    name, results = f"B{base if base != increment else 0}-C{increment}", []
    for row in csv.DictReader(_text("coco2014.csv").splitlines()):
        if (row["dataset"], row["protocol"]) == (dataset, name):
            numbers = {key: float(row[key] or "nan") for key in ("average_mAP", "last_mAP", "CF1", "OF1")}
            other = float(row["f1_threshold"]) != F1_THRESHOLD
            note = f"F1 at threshold {row['f1_threshold']}, not {F1_THRESHOLD}" if other else ""
            results.append(PublishedResult(row["method"], row["buffer"], **numbers, source=row["source"], note=note))
    for run in _author_runs(dataset, base, increment):
        curve, final = tuple(run["mAP"]["seen"].values()), run["final"] or {}
        stored = run.get("exemplars_per_class")
        results.append(
            PublishedResult(
                method=f"{run['method']}, λ {run['token_distillation_weight']}",
                buffer=f"{stored}/class" if stored else "0",
                average_mAP=float(np.mean(curve)),
                last_mAP=curve[-1],
                CF1=final.get("CF1", float("nan")),
                OF1=final.get("OF1", float("nan")),
                source=f"the KRT authors' training log {run['run']}, in the April 2024 archive of their code",
                seconds=3600 * run["hours"],
                note=f"time on {run['gpus']} GPUs",
                forgetting=_forgetting_of_log(run),
                mAP_per_session=curve,
            )
        )
    return results


def published_classes(dataset: str) -> frozenset[str]:
    """The classes that the published results of a data set are about; empty where there are none."""
    return frozenset(name for run in _author_runs(dataset) for name in run["classes"])


def _author_runs(dataset: str, base: int | None = None, increment: int | None = None) -> list[dict]:
    """The authors' complete runs on a data set, or on one protocol of it."""
    runs = json.loads(_text("author_runs.json"))["runs"]
    runs = [run for run in runs if run["dataset"] == dataset and run["complete"]]
    return [run for run in runs if base is None or (run["base_classes"], run["increment"]) == (base, increment)]


def _forgetting_of_log(run: dict) -> dict[str, float]:
    """Forgetting by definition from a log's AP: class → {classes learned so far: AP}."""
    steps = list(run["mAP"]["seen"])  # "10", "20", ...
    ap = np.array([[run["AP"][name].get(step, np.nan) for name in run["classes"]] for step in steps], dtype=float)
    return forgetting({"seen": ap}, np.isnan(ap).sum(axis=0))  # a class lacks an AP in the sessions before its own
