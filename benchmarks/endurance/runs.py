"""Two hundred runs in one folder: what reports, explorers and matrices take, and what they take again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krt_core.lab.bench.matrix import expand, load_matrix

from ..made_up_runs import finished
from .child import call
from .world import SMALL

METHODS = ("ridge", "census", "finetune", "masked")
IMAGES = 1000  # of each test set
REAL = 1  # runs that are left to be trained


def write_runs(folder: Path, count: int) -> Path:
    """A matrix of so many runs; all but `REAL` have made-up scores, written as a training would write them."""
    folder.mkdir(parents=True, exist_ok=True)
    network = {key: value for key, value in SMALL.items() if key.startswith(("model.", "train."))}
    content = {
        "presets": ["digits_demo"], "methods": list(METHODS), "seeds": list(range(count // len(METHODS))),
        "overrides": {**network, "data.image_size": 32}, "analysis": [], "workers": 1,
        "folder": str(folder / "outputs"),
    }  # fmt: skip
    (matrix := folder / "many.yaml").write_text(json.dumps(content), encoding="utf-8")  # which YAML is too
    for job in expand(load_matrix(matrix))[REAL:]:
        if not (Path(job.run_folder) / "DONE").is_file():
            preset = folder / "preset.yaml"
            preset.write_text(job.experiment.to_yaml(), encoding="utf-8")
            finished(preset, images=IMAGES, folder=job.run_folder)
    return matrix


def calls(outputs: Path) -> list[dict[str, Any]]:
    """What notebooks ask of all runs, twice in one process."""
    import psutil

    import krt_core as krt
    from krt_core.lab.report import finished_runs

    lines = []

    def step(what: str, start: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = work()
        took, memory = time.process_time() - began, psutil.Process().memory_info().rss / 1e6
        lines.append({"call": what, "start": start, "processor": took, "memory_mb": memory})
        return made

    for start in ("first", "again"):
        step("krt.find_runs", start, lambda: krt.find_runs(outputs))
        step("finished_runs", start, lambda: finished_runs(outputs))
        board = step("Leaderboard", start, lambda: krt.Leaderboard(outputs))
        for view in ("table", "differences", "stability", "cost"):
            step(f"Leaderboard.{view}", start, getattr(board, view))
        step("ForgettingExplorer", start, lambda: krt.ForgettingExplorer(outputs))
    return lines


def measure(folder: Path, count: int) -> dict[str, Any]:
    matrix = write_runs(folder, count)
    outputs, result = folder / "outputs", {}
    files = {"--html": "report.html", "--csv": "table.csv", "--latex": "table.tex"}
    report = ("report", outputs, *(word for key, name in files.items() for word in (key, folder / name)))
    result["count"] = count
    result["calls"] = call("benchmarks.endurance.runs", outputs, home=folder).result
    commands = {
        "krt report": report, "krt report, again": report, "krt bench --dry-run": ("bench", matrix, "--dry-run"),
        f"krt bench, {REAL} to train": ("bench", matrix), "krt bench, again": ("bench", matrix),
    }  # fmt: skip
    result["commands"] = {name: call("krt_core.cli", *words, home=folder).numbers() for name, words in commands.items()}
    return result


if __name__ == "__main__":
    print(json.dumps(calls(Path(sys.argv[1]))))
