"""How quickly the explorers answer: ``python -m benchmarks.explorers``.

Writes 20 made-up runs of 8 sessions with 80 classes and 5,000 test images each into a temporary folder, opens the
forgetting explorer on all of them as a notebook would, and draws every view for one session after the other. Prints the
seconds to open (files read, first picture drawn) and, per view, to its first picture and to each further one.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import pandas as pd

from .made_up_runs import coco

METHODS, SEEDS, IMAGES = ("krt", "pod", "finetune", "joint"), range(5), 5000
MOVES = 7


def main() -> None:
    began = time.perf_counter()
    from krt_core.explore.forgetting import ForgettingExplorer

    imported = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRT_HOME"] = folder
        for method in METHODS:
            for seed in SEEDS:
                coco([f"method={method}", f"seed={seed}"], images=IMAGES)
        began = time.perf_counter()
        explorer = ForgettingExplorer("outputs")
        print(f"opened in {time.perf_counter() - began:.2f} s, after {imported:.2f} s of imports")
        lines = {}
        for index, title in enumerate(explorer.views):
            explorer.tabs.selected_index = index
            first, times = explorer.seconds, []
            for move in range(MOVES):
                explorer.set(session=3 + move % 5)
                times.append(explorer.seconds)
            lines[title] = {"first (s)": first, "next, median (s)": statistics.median(times), "at most (s)": max(times)}
    print(pd.DataFrame(lines).T.round(3))


if __name__ == "__main__":
    main()
