"""Does accuracy pay for speed? ``python -m benchmarks.accuracy [--seeds 0 1 2] [--forms plain fast] [key=value ...]``.

Trains the digits demo in two forms: plain (float32, ICA session by session) and fast (as by
default), and prints both average mAPs. Runs are kept in outputs/accuracy and are not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
from unittest.mock import patch

import numpy as np
import torch

from krt_core.config import load_experiment
from krt_core.machine.home import outputs_dir
from krt_core.model.ica import Attention, IncrementalCrossAttention, looped
from krt_core.session import train

FORMS = {"plain": {"train.precision": "float32"}, "fast": {}}


def looped_forward(ica: IncrementalCrossAttention, patches: torch.Tensor, with_attention: bool = False) -> tuple:
    tokens, maps = looped(ica, patches)
    return tokens, Attention(maps[..., 0], maps[..., 1], maps[..., 2:]) if with_attention else None


def average_map(form: str, seed: int, overrides: dict[str, object]) -> float:
    """Average mAP of the digits demo trained in a form, in percent."""
    experiment = load_experiment("digits_demo", {**FORMS[form], "seed": seed, **overrides})
    plainly = patch.object(IncrementalCrossAttention, "forward", looped_forward)
    with plainly if form == "plain" else contextlib.nullcontext():
        run = train(experiment, outputs_dir() / "accuracy" / f"{form}-{experiment.run_name()}", show="none")
    return run.summary["average_mAP"]


def compare(seeds: list[int], forms: list[str], overrides: dict[str, object]) -> dict[str, list[float]]:
    return {form: [average_map(form, seed, overrides) for seed in seeds] for form in forms}


def difference(results: dict[str, list[float]]) -> tuple[float, float]:
    """Mean of fast − plain over seeds, and its standard error, in points."""
    gaps = np.array(results["fast"]) - np.array(results["plain"])
    return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("overrides", nargs="*", help="key=value, as in train.epochs=3")
    options = parser.parse_args(arguments)
    results = compare(options.seeds, options.forms, dict(pair.split("=", 1) for pair in options.overrides))
    for form, values in results.items():
        print(f"{form}: {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} average mAP, {values}")
    if len(results) == 2:
        print("fast − plain: {:+.2f} ± {:.2f} points (standard error)".format(*difference(results)))


if __name__ == "__main__":
    main()
