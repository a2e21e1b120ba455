"""How far evidence maps can be trusted: ``python -m benchmarks.attention FOLDER [--images N]``.

Reads the finished runs with incremental cross-attention under a folder, all of one data set whose boxes are known, and
prints two tables, mean ± standard deviation over the runs of a method: the pointing game, and by how much the maps miss
the change of the logit that they explain.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch

from krt_core.data import open_dataset
from krt_core.data.store import load_image
from krt_core.lab.analysis.explain import evidence, look
from krt_core.lab.analysis.pointing import WAYS, pointing_game
from krt_core.lab.figures.figure import by_label
from krt_core.lab.report import finished_runs
from krt_core.runs.folder import Run
from krt_core.weights.convert import load_model


def pointing(runs: list[Run], images: int) -> dict[str, str]:
    """Share of hits per way (%), by the last model."""
    tables = [pointing_game(run, _test(run), run.finished_sessions - 1, images) for run in runs]
    sure = [table[table.score > 0.5] for table in tables]
    hits = {way: _spread([100 * table[way].mean() for table in tables]) for way in WAYS}
    named = {f"{way}, named": _spread([100 * table[way].mean() for table in sure]) for way in WAYS}
    return {"pairs": f"{len(tables[0])}", **hits, **named}


def sums(runs: list[Run], images: int) -> dict[str, str]:
    """How far the maps' sums are from the change of the logit, over sessions, classes and images (in logits)."""
    change, exact, first = [], [], []
    for run in runs:
        dataset = _test(run)
        rows = range(min(images, len(dataset)))
        pixels = np.stack([load_image(dataset.path(row), run.experiment.data.image_size) for row in rows])
        for session in range(run.finished_sessions):
            seen = look(load_model(run, session), torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
            for column in range(len(seen.sessions)):
                found, plain = evidence(seen, column), evidence(seen, column, steps=0)
                change.append(np.abs(found.logits - found.baseline))
                exact.append(np.abs(found.error))
                first.append(np.abs(plain.error))
    change, exact, first = map(np.concatenate, (change, exact, first))
    return {
        "maps": f"{len(exact)}",
        "change of the logit, median": f"{np.median(change):.2f}",
        "evidence off by, median": f"{np.median(exact):.1e}",
        "evidence off by, at most": f"{exact.max():.1e}",
        "gradient × value off by, median": f"{np.median(first):.2f}",
        "gradient × value off by, at most": f"{first.max():.2f}",
    }


def _test(run: Run):
    return open_dataset(run.experiment.data, "test")


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="holds run folders")
    parser.add_argument("--images", type=int, default=0, help="only so many test images in the pointing game (0: all)")
    parser.add_argument("--sums", type=int, default=50, help="test images of the check of sums")
    options = parser.parse_args(arguments)
    runs = [run for run in finished_runs(options.folder) if run.experiment.options.head == "ica"]
    groups = by_label(runs)
    pd.set_option("display.width", 200, "display.max_columns", 20)
    print(pd.DataFrame({name: pointing(group, options.images) for name, group in groups.items()}))
    print(pd.DataFrame({name: sums(group, options.sums) for name, group in groups.items()}))


if __name__ == "__main__":
    main()
