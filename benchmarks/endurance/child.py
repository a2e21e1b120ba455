"""A call in a process of its own: what it prints last, how long it takes, and the most memory that it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from .usage import Peak


class Ended(NamedTuple):
    said: str
    seconds: float
    processor: float  # seconds of a processor, children's too
    peak_mb: float

    @property
    def result(self) -> Any:
        """What the last line says, as JSON."""
        return json.loads(self.said.splitlines()[-1])

    def numbers(self) -> dict[str, float]:
        return {"seconds": self.seconds, "processor": self.processor, "peak_mb": self.peak_mb}


def call(module: str, *words: Any, home: Path, temporary: Path | None = None) -> Ended:
    """``python -m module words`` on one thread, with this KRT_HOME. RuntimeError where it does not end well."""
    environment = {**os.environ, "KRT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(temporary)} if temporary else {}
    command = [sys.executable, "-m", module, *map(str, words)]
    began, worked = time.perf_counter(), _worked()
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **how) as child, Peak(child.pid) as peak:
        said, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, words))} ended with {child.returncode}:\n{said[-3000:]}")
    return Ended(said, time.perf_counter() - began, _worked() - worked, peak.mb)


def _worked() -> float:
    times = os.times()
    return times.children_user + times.children_system
