"""What the tests of `krt bench` share: a tiny matrix, a machine with slots of its own, a stand-in for workers.

PYTEST_DONT_REWRITE, since the tests also import from it.
"""

import os
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import yaml
from conftest import TINY

from krt_core.lab.bench.matrix import Job
from krt_core.lab.bench.slots import Slots
from krt_core.lab.bench.worker import CODES


def job_of(tmp_path, notebook="02_train_sessions", **parameters):
    return Job("job", "group", notebook, parameters, str(tmp_path / "run"))


@pytest.fixture
def matrix_file(tmp_path, coco_root):
    """Writes a matrix over the tiny COCO folder, with a preset beside it."""
    preset = {**{k: v for k, v in TINY.items() if "." not in k}, "extends": "digits_demo"}
    for key, value in {**TINY, "data.root": str(coco_root)}.items():
        if "." in key:
            section, name = key.split(".")
            preset.setdefault(section, {})[name] = value

    def write(**content):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset))
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump({"presets": ["tiny.yaml"], "analysis": [], "folder": "outputs/m", **content}))
        return path

    return write


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("KRT_SLOTS", str(tmp_path))
    return Slots("cpu", ("0", "1", "2"), 1)


ENDS = {kind: f"import os; os._exit({code})" for kind, code in CODES.items()}
KILLED = "import os; os.kill(os.getpid(), 9)"


class Stand(subprocess.Popen):
    """Starts a short Python process instead of a worker: it runs what ``plan`` says for the job's next attempt."""

    plan: ClassVar[dict] = {}

    def __init__(self, command, **options):
        if "krt_core.lab.bench.worker" in command:
            command = [sys.executable, "-c", self.plan[os.path.basename(command[4])].pop(0)]
        super().__init__(command, **options)


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Stand)
    Stand.plan = {}
    return Stand.plan


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found
