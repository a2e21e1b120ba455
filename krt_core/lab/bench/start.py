"""A worker as seen by what starts it: the runner of this machine, or a task of Slurm."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import IO

from ...machine.processes import Minder, out_of_memory_kills
from . import state as s
from .state import JobFiles, State
from .worker import CODES, GOES_ON

KINDS = {code: kind for kind, code in CODES.items()}
AGAIN = {"start-up": 1, "killed": 2}  # how often a job that ended so is started again in one start of the matrix


def start_worker(
    files: JobFiles,
    lock: IO,
    slot: str,
    time_limit: float | None = None,
    gpus: int = 0,
    environment: Mapping[str, str] = os.environ,
    descriptors: tuple[int, ...] = (),
) -> subprocess.Popen:
    """Start the process of a job whose lock is held; it inherits the lock. gpus: so many it must find, or it fails."""
    options = ["--slot", slot, "--locked", "--gpus", str(gpus)]
    options += ["--time-limit", str(time_limit)] if time_limit else []
    with files.log.open("ab") as log:
        return Minder(files.worker_mark).start(
            "krt_core.lab.bench.worker", str(files.folder), *options,
            output=log, environment=environment, descriptors=(lock.fileno(), *descriptors),
        )  # fmt: skip


def ending(files: JobFiles, code: int, kills: int) -> tuple[str, str]:
    """Kind and reason, by the exit code of a worker. kills: of the system for memory before it was started."""
    if code in KINDS:
        return KINDS[code], files.read().reason
    if code > 0:
        return "start-up", f"its process ended with exit code {code}: see {files.log}"
    if out_of_memory_kills() > kills:
        return "out of memory", "the system killed it for memory"
    return "killed", f"its process was killed by signal {-code}"


def record_ending(files: JobFiles, code: int, kills: int, ended_by: Counter[str]) -> State:
    """Leave no process of a job, its lock still held, and write down how it ended; returns its state in this start:
    queued if it is to be started again. ended_by: kinds so far, counted on here."""
    Minder(files.mark).end(grace=0)
    kind, reason = ending(files, code, kills)
    ended_by[kind] += 1
    again = ended_by[kind] <= AGAIN.get(kind, 0)
    ended = s.DONE if not kind else s.QUEUED if again or kind == "stopped" else s.FAILED
    stored = s.QUEUED if kind in GOES_ON else ended  # a later start goes on with what was killed
    try:
        state = files.write(state=stored, kind=kind, reason=reason, exit_code=code)
    except OSError:  # a full disk
        state = replace(files.read(), kind=kind, reason=reason, exit_code=code)
    return replace(state, state=ended)
