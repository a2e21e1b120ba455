"""A table of many images: what a start takes, the first time and again, and what it says of one bad row."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krt_core.config import load_experiment
from krt_core.errors import DataError

from .usage import Peak
from .world import SMALL, name_of, write_rows

CLASSES, INCREMENT = 100, 10


def experiment_of(root: Path) -> Any:
    """Ten sessions of ten classes; a tenth of the images is held out, and what is for tests is chosen by their names."""
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

    experiment, found, lines = experiment_of(root), {}, []
    progress = Progress(Path(os.environ["KRT_HOME"]), show="none")

    def step(what: str, work: Callable[[], Any]) -> None:
        began, worked = time.perf_counter(), time.process_time()
        found[what] = work()
        took = {"seconds": time.perf_counter() - began, "processor": time.process_time() - worked}
        lines.append({"step": what, "start": start, **took, "memory_mb": psutil.Process().memory_info().rss / 1e6})

    for start in ("first", "again"):
        step("read the table, split", lambda: open_halves(experiment.data))
        halves = found["read the table, split"]
        step("order of classes, labels", lambda: _labels(halves, experiment, protocol_of, learned_labels))
        step("hash ids and labels", halves.inputs)
        step("ask for each image", lambda: images_of(*halves, World()))
        images = found["ask for each image"]
        step("decode", lambda: open_stores(experiment.data, halves, World(), progress, images))
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
        "a cell too many": f"{name},{tags},cat", "a path that is blank": f",{tags}", "a quotation mark": f'{name},"{tags}',
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
    call = functools.partial(_child, folder)
    result: dict[str, Any] = {"rows": rows}
    result["steps"], result["peak_mb"], _ = call("steps", root)
    if train:
        (preset := folder / "table.yaml").write_text(experiment_of(root).to_yaml(), encoding="utf-8")
        for what in ("train", "train finished", "train to be finished"):
            if what == "train to be finished":
                (folder / "outputs" / "table" / "DONE").unlink()
            _, peak, seconds = call("train", preset)
            result[what] = {"peak_mb": peak, "seconds": seconds}
    result["faults"], _, seconds = call("faults", root, rows // 2 + 1)
    result["faults_seconds"] = seconds / len(result["faults"])
    return result


def judged(result: dict[str, Any], largest_mb: float) -> list[str]:
    found = [f"table: {result['peak_mb']:.0f} MB of memory" for _ in "x" if result["peak_mb"] > largest_mb]
    row, named = result["rows"] // 2 + 1, result["faults"]
    found += [f"table: of {what} it is said: {said}" for what, said in named.items()
              if f"row {row}" not in said and "nowhere" not in said]  # fmt: skip
    return found


def _child(folder: Path, *words: Any) -> tuple[Any, float, float]:
    """What a call prints last, as JSON; the most memory it had, MB; seconds."""
    environment = {**os.environ, "KRT_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.endurance.table", *map(str, words)]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with Peak(process.pid) as peak:
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))} ended with {process.returncode}: {said[-2000:]}")
    return json.loads(said.splitlines()[-1]), peak.mb, time.perf_counter() - began


def main(what: str, *words: str) -> None:
    if what == "train":
        import torch

        from krt_core import cli

        torch.set_num_threads(1)
        code = cli.main(["train", words[0], "--folder", "outputs/table"])
        print(json.dumps(code))
        sys.exit(code)
    print(json.dumps(steps(Path(words[0])) if what == "steps" else faults(Path(words[0]), int(words[1]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
