"""The pages of docs/ that build something are run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from krt_core.runs.folder import Run

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(?:^`(?P<file>[\w./]+)`\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


def run_page(name: str, folder: Path) -> list[str]:
    """Write a page's files and give its commands to a shell's rules; returns the lines of its blocks."""
    environment = {k: v for k, v in os.environ.items() if k not in ("KRT_HOME", "KRT_JOB")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(DOCS.parent)
    lines = []
    for block in BLOCK.finditer((DOCS / name).read_text()):
        text = block["text"]
        lines += text.splitlines()
        if block["file"]:
            path = folder / block["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for line in text.splitlines() if block["kind"] == "console" else ():
            command = shlex.split(line.removeprefix("$ "))
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return lines


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(1200)
def test_your_method(tmp_path):
    lines = run_page("your_method.md", tmp_path)
    page = (DOCS / "your_method.md").read_text()
    built = page[: page.index("## What else")]
    assert sum(len(m["text"].splitlines()) for m in BLOCK.finditer(built)) < 60 and lines
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.groupby("name").size().to_dict() == {"Masked": 2, "finetune": 2}
    assert "Masked" in (tmp_path / "report.html").read_text()
    run = next(Run(path) for path in (tmp_path / "outputs").glob("masked-Masked-*-s2"))
    told = (run.folder / "tracker.jsonl").read_text().splitlines()
    assert run.done and len(told) == 5 * 2 + 5  # sessions of two epochs


def test_your_data(tmp_path):
    run_page("your_data.md", tmp_path)
    runs = [Run(path) for path in (tmp_path / "outputs").iterdir()]
    assert sorted(run.experiment.method for run in runs) == ["finetune", "krt", "ridge"] and all(
        run.done for run in runs
    )
    assert all(run.protocol.classes == ("red", "blue", "green", "gold") for run in runs)
    assert {run.protocol.name for run in runs} == {"B2-C1", "B2-C1 disjoint"}
    shared, disjoint = ({r.experiment.method: r for r in runs}[method] for method in ("krt", "finetune"))
    shown = [[run.session_state(t)["train_images"] for t in range(3)] for run in (shared, disjoint)]
    assert sum(shown[1]) == 40 < sum(shown[0])
    unsure = next(run for run in runs if run.experiment.method == "ridge")
    assert "3 of 160 labels are unknown" in (unsure.folder / "log.txt").read_text()
