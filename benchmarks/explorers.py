"""How quickly the explorers answer: ``python -m benchmarks.explorers``.

Forgetting: 20 made-up runs of 8 sessions with 80 classes and 5,000 test images each, in a temporary folder. Attention:
a run of 8 sessions with TResNet-M at 224 px, random weights, generated photos. Each explorer is opened as a notebook
would, then every view is drawn for one session, or one image, after the other, with two seconds to look between images.
Prints the seconds to open (files read, first picture drawn) and, per view, to its first picture and each further one.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from krt_core.weights.convert import network_of

from .made_up_runs import coco, finished
from .photos import CLASSES, write_photos

METHODS, SEEDS, IMAGES = ("krt", "pod", "finetune", "joint"), range(5), 5000
MOVES = 7


def forgetting() -> None:
    from krt_core.lab.explorers.forgetting import ForgettingExplorer

    for method in METHODS:
        for seed in SEEDS:
            coco([f"method={method}", f"seed={seed}"], images=IMAGES, folder=f"outputs/forgetting/{method}-{seed}")
    measure("ForgettingExplorer", lambda: ForgettingExplorer("outputs/forgetting"), "session", range(3, 3 + 5))


def attention(folder: Path) -> None:
    from krt_core.lab.explorers.attention import AttentionExplorer

    root = write_photos(folder / "photos", 2, 60)
    overrides = ["data.dataset=coco", f"data.root={root}", "protocol.increment=1", "model.weights="]
    run = finished("coco_b0c10", overrides, CLASSES, images=60, folder="outputs/attention")
    network = network_of(run.experiment)
    for session in run.protocol.sessions:
        network.add_session(1)
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, run.session_folder(session.index) / "model.safetensors")
    measure("AttentionExplorer", lambda: AttentionExplorer("outputs/attention"), "image", range(2, 2 + MOVES), 2.0)


def measure(name: str, make: Callable, control: str, values: range, pause: float = 0.0) -> None:
    began = time.perf_counter()
    explorer = make()
    print(f"{name} opened in {time.perf_counter() - began:.2f} s")
    lines = {}
    for index, title in enumerate(explorer.views):
        explorer.tabs.selected_index = index
        first, times = explorer.seconds, []
        for move in range(MOVES):
            time.sleep(pause)
            explorer.set(**{control: values[move % len(values)]})
            times.append(explorer.seconds)
        lines[title] = {"first (s)": first, "next, median (s)": statistics.median(times), "at most (s)": max(times)}
    print(pd.DataFrame(lines).T.round(2))


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRT_HOME"] = folder
        forgetting()
        attention(Path(folder))


if __name__ == "__main__":
    main()
