"""Published results as data: the authors' own training logs and the COCO tables of later papers."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np


def author_curves(dataset: str, base: int, increment: int, key: str = "seen") -> dict[str, np.ndarray]:
    """Curves of the authors' complete runs on one protocol: name → mAP (%) after each session, in their log's numbers.

    dataset "coco2014" or "voc2007"; base and increment as in a `Protocol`; key "base", "seen" or "new". Empty for a
    protocol they published no log of. Source: the logs in the April 2024 archive of their code.
    """
    text = (resources.files("krt_core.reference") / "author_runs.json").read_text()
    curves = {}
    for run in json.loads(text)["runs"]:
        same = (run["dataset"], run["base_classes"], run["increment"]) == (dataset, base, increment)
        if same and run["complete"]:
            stored = run.get("exemplars_per_class") or 0
            name = f"authors: {run['method']}, {stored} per class, λ {run['token_distillation_weight']}"
            curves[name] = np.array([float(value) for value in run["mAP"][key].values()])
    return curves
