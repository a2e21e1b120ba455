"""A table of many images: what a start takes, the first time and again, and what it says of one bad row."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krt_core.config import load_experiment
from krt_core.errors import DataError

from .child import call
from .world import SMALL, name_of, write_rows

CLASSES, INCREMENT = 100, 10
THIS = "benchmarks.endurance.table"


def experiment_of(root: Path) -> Any:
    """Ten sessions of ten classes; a tenth of the images is held out, and some are for tests, chosen by their names."""
    what = {"method": "ridge", "data.root": str(root), "data.image_size": 16, "data.validation": 0.1}
    return load_experiment("digits_demo", {**SMALL, **what, "protocol.increment": INCREMENT, "model.stride": 8})


def steps(root: Path) -> list[dict[str, Any]]:
    """What a start does before it trains, step by step, twice: seconds, seconds of a processor and MB in memory."""
    import psutil

    from krt_core.data import open_halves
    from krt_core.data.stores import images_of, open_stores
    from krt_core.machine.distributed import World
    from krt_core.protocol import learned_labels, protocol_of
    from krt_core.runs.progress import Progress

    experiment, lines = experiment_of(root), []
    progress = Progress(Path(os.environ["KRT_HOME"]), show="none")

    def step(what: str, start: str, work: Callable[[], Any]) -> Any:
        began, worked = time.perf_counter(), time.process_time()
        made = work()
        took = {"seconds": time.perf_counter() - began, "processor": time.process_time() - worked}
        lines.append({"step": what, "start": start, **took, "memory_mb": psutil.Process().memory_info().rss / 1e6})
        return made

    def once(start: str) -> None:
        halves = step("read the table, split", start, lambda: open_halves(experiment.data))
        step("order of classes, labels", start, lambda: _labels(halves, experiment, protocol_of, learned_labels))
        step("hash ids and labels", start, halves.inputs)
        images = step("ask for each image", start, lambda: images_of(*halves, World()))
        step("decode", start, lambda: open_stores(experiment.data, halves, World(), progress, images))

    for start in ("first", "again"):
        once(start)
    return lines


def _labels(halves: Any, experiment: Any, protocol_of: Callable, learned_labels: Callable) -> Any:
    made = protocol_of(experiment.protocol, halves.train.classes, 0).on(halves.train, ~halves.held)
    return learned_labels(made, halves)


def faults(root: Path, row: int) -> dict[str, str]:
    """What is said of one bad row, by what is wrong with it. The table is put back as it was."""
    from krt_core.data import open_halves
    from krt_core.data.overlap import look

    table, experiment = root / "tags.csv", experiment_of(root)
    text = table.read_text(encoding="utf-8")
    lines = text.splitlines()
    name, tags = lines[row - 1].split(",")
    bad = {
        "a cell too many": f"{name},{tags},cat", "a path that is blank": f",{tags}",
        "a quotation mark": f'{name},"{tags}',
        "another line about an image": f"{lines[1].split(',')[0]},{name_of(0)}|{name_of(CLASSES - 1)}|{name_of(1)}",
        "an address": f"https://host/{name},{tags}", "an image that is not there": f"nowhere/{name}x,{tags}",
    }  # fmt: skip
    said = {}
    try:
        for what, line in bad.items():
            table.write_text("\n".join([*lines[: row - 1], line, *lines[row:]]) + "\n", encoding="utf-8")
            try:
                for half in open_halves(experiment.data)[::2]:
                    look(half)
                said[what] = ""
            except DataError as error:
                said[what] = str(error)
    finally:
        table.write_text(text, encoding="utf-8")
    return said


def measure(folder: Path, rows: int, train: bool = True) -> dict[str, Any]:
    """All of it in processes of their own; ``train``: also ``krt train``, and again."""
    root = folder / "table"
    if not (root / "tags.csv").is_file():
        write_rows(root, rows, CLASSES)
    for left in ("data", "outputs"):
        shutil.rmtree(folder / left, ignore_errors=True)
    result: dict[str, Any] = {"rows": rows}
    looked = call(THIS, "steps", root, home=folder)
    result |= {"steps": looked.result, "peak_mb": looked.peak_mb}
    if train:
        (preset := folder / "table.yaml").write_text(experiment_of(root).to_yaml(), encoding="utf-8")
        for what in ("train", "train finished", "train to be finished"):
            if what == "train to be finished":
                (folder / "outputs" / "table" / "DONE").unlink()
            result[what] = call("krt_core.cli", "train", preset, "--folder", "outputs/table", home=folder).numbers()
    told = call(THIS, "faults", root, rows // 2 + 1, home=folder)
    result |= {"faults": told.result, "faults_seconds": told.seconds / len(told.result)}
    return result


def judged(result: dict[str, Any], largest_mb: float) -> list[str]:
    found = [f"table: {result['peak_mb']:.0f} MB of memory" for _ in "x" if result["peak_mb"] > largest_mb]
    row, named = result["rows"] // 2 + 1, result["faults"]
    found += [f"table: of {what} it is said: {said}" for what, said in named.items()
              if f"row {row}" not in said and "nowhere" not in said]  # fmt: skip
    return found


def main(what: str, *words: str) -> None:
    print(json.dumps(steps(Path(words[0])) if what == "steps" else faults(Path(words[0]), int(words[1]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
