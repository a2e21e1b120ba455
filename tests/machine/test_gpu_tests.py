"""The tests that need a GPU are there for the machine that has one: they import, and say why they are skipped."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUBJECTS = (
    "pixels_and_labels", "busy", "scores_are_those", "a_small_training", "resumed_run", "no_step_waits",
    "float32_is_not", "compiled", "peak_memory", "batch_norm_is_folded", "fused", "overflows",
    "statistics_over_processes", "inplace_abn", "two_gpus_equal_one", "two_runs_at_once",
)  # fmt: skip


def pytest_of(*arguments):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "tests/gpu",
        *arguments,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_they_are_collected():
    done = pytest_of("--collect-only", "-m", "gpu")
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert done.returncode == 0 and len(found) >= 40, done.stdout + done.stderr
    assert not [subject for subject in SUBJECTS if not any(subject in line for line in found)]


def test_where_there_is_no_gpu_they_are_skipped_with_the_reason():
    import torch

    done = pytest_of("-m", "gpu", "-rs", "-k", "two_gpus or float32_is_not")
    reasons = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert done.returncode == 0, done.stdout
    if not torch.cuda.is_available():
        assert any("needs a GPU: there is none" in line for line in reasons), done.stdout
        assert any("needs 2 GPUs: there is none" in line for line in reasons)
