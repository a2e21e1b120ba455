"""A run of many sessions on kept features: does a session cost more than its classes explain?"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from krt_core.config import load_experiment

from .child import call
from .diary import PARTS, diary, read
from .usage import size_of, walk
from .world import SMALL, write_world

METHODS: dict[str, dict[str, Any]] = {
    "ridge": {"data.validation": 0.2},  # calibrated, too
    "census": {},
    "finetune": {},
    "krt": {"replay.budget": 300, "replay.selection": "prs", "krt.target": "estimated"},
}
LOOKS = ("prepare", "learn", "remember")  # parts that look at the images of a session, and of the next one
LARGEST_MB = 4000
STRAIGHT = 1.3  # how far above a straight line through earlier sessions the last ones may be


def run(method: str, data: Path, folder: Path, increment: int, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train by ``krt train`` in a process of its own, whose home is ``folder``; its diary and what it came to."""
    what = {**SMALL, "method": method, "data.root": str(data), "protocol.increment": increment, **METHODS[method]}
    experiment = load_experiment("digits_demo", {**what, **(changes or {})})
    shutil.rmtree(folder / "runs" / method, ignore_errors=True)
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    (preset := folder / f"{method}.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    (lines := folder / f"{method}.jsonl").unlink(missing_ok=True)
    home, temporary = folder, folder / "temporary"
    ended = call(
        "benchmarks.endurance.sessions", preset, folder / "runs" / method, lines, home=home, temporary=temporary
    )
    done = json.loads((folder / "runs" / method / "DONE").read_text(encoding="utf-8"))
    return {
        "method": method, **ended.numbers(), "sessions": read(lines),
        "average_mAP": done["average_mAP"], "last_mAP": done["last_mAP"],
        "folder_bytes": sum(map(size_of, walk(folder / "runs" / method))),
    }  # fmt: skip


def child(preset: str, folder: str, lines: str) -> int:
    import torch

    from krt_core import cli

    torch.set_num_threads(1)
    with diary(Path(lines), Path(folder), Path(tempfile.gettempdir()), (Path(os.environ["KRT_HOME"]) / "data",)):
        return cli.main(["train", preset, "--folder", folder])


# ---- what it comes to ----


def beyond(values: Sequence[float], classes: Sequence[int]) -> float:
    """How many times as high the last tenth of the sessions is as a straight line through the first six says: 1 where
    a value grows with the classes, or stays. Medians of tenths, so that one that was held up counts little."""
    x, y = (np.array([np.median(part) for part in np.array_split(np.asarray(v, float), 10)]) for v in (classes, values))
    slope, offset = np.polyfit(x[:6], y[:6], 1)
    return float(y[-1] / max(offset + max(slope, 0) * x[-1], y[:6].mean(), 1e-9))


def costs(line: dict[str, Any]) -> float:
    """Seconds of a processor of a session, of what looks at its images those of each hundred: exemplars become more."""
    looks = sum(line["parts"][part] for part in LOOKS)
    return line["processor"] - looks + 100 * looks / max(line["images"], 1)


def judged(result: dict[str, Any], largest_mb: float = LARGEST_MB, straight: float = STRAIGHT) -> list[str]:
    """What a run has done that it may not, in words."""
    lines, method = result["sessions"], result["method"]
    classes, later = [line["classes"] for line in lines], lines[len(lines) // 4 :]
    faults = []
    if result["peak_mb"] > largest_mb:
        faults.append(f"{method}: {result['peak_mb']:.0f} MB of memory")
    for key in ("handles", "threads", "maps"):
        if (most := max(line[key] for line in later)) > (was := later[0][key]):
            faults.append(f"{method}: {key} grow from {was} to {most}")
    if left := max(line["temporary_files"] for line in lines):
        faults.append(f"{method}: {left} temporary files are left after a session")
    total = [sum(line["bytes"].values()) for line in lines]
    for what, values in {
        "processor": [costs(line) for line in lines],
        "memory_mb": [line["memory_mb"] for line in lines],
        "bytes": total,
    }.items():
        if (times := beyond(values[1:], classes[1:])) > straight:
            faults.append(f"{method}: {what} of the last sessions are {times:.2f} times what their classes explain")
    return faults


def row(result: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    lines = result["sessions"]
    tenth = max(1, len(lines) // 10)
    first, last = lines[1 : tenth + 1], lines[-tenth:]

    def median(part: list[dict], key: str) -> float:
        return statistics.median(line[key] for line in part)

    size = [[sum(line["bytes"].values()) / 1e6 for line in part] for part in (first, last)]
    return {
        "method": result["method"], "minutes": result["seconds"] / 60, "peak MB": result["peak_mb"],
        "s/session first": median(first, "processor"), "last": median(last, "processor"),
        "beyond": beyond([costs(x) for x in lines[1:]], [x["classes"] for x in lines[1:]]),
        "MB now first": median(first, "memory_mb"), "MB now last": median(last, "memory_mb"),
        "handles": f"{min(x['handles'] for x in lines)}–{max(x['handles'] for x in lines)}",
        "threads": f"{min(x['threads'] for x in lines)}–{max(x['threads'] for x in lines)}",
        "temporary": max(x["temporary_files"] for x in lines),
        "MB/session first": statistics.median(size[0]), "MB/session last": statistics.median(size[1]),
        "folder MB": result["folder_bytes"] / 1e6, "last mAP": result["last_mAP"],
    }  # fmt: skip


def parts(result: dict[str, Any]) -> dict[str, str]:
    """Of each part its seconds in the whole run, in a session of the last tenth, and how far beyond a straight line."""
    lines = result["sessions"][1:]
    last, classes = lines[-max(1, len(lines) // 10) :], [line["classes"] for line in lines]
    found = {}
    for part in PARTS:
        values = [line["parts"][part] for line in lines]
        late = statistics.median(line["parts"][part] for line in last)
        found[part] = f"{sum(values):.2f} {late:.4f} {beyond(values, classes):.2f}"
    return found


def measure(folder: Path, sessions: int, increment: int, train: int, test: int, method: str) -> dict[str, Any]:
    data = folder / "world"
    if not (data / "tags.csv").is_file():
        write_world(data, sessions * increment, train, test)
    return run(method, data, folder, increment)


if __name__ == "__main__":
    sys.exit(child(*sys.argv[1:]))
