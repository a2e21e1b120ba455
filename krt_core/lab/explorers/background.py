"""Trainings in child processes that outlive the notebook which starts them.

`start` runs ``krt train`` in a session of its own, so that neither a closed tab nor a restarted kernel ends it. Beside
what every training writes, its run folder then holds::

    output.txt     everything the child printed since it was last started
    asked.yaml     the configuration, where one that may differ was asked for when it was continued
    process.json   pid, create_time, host, device; removed when the training is stopped

Where the process of process.json is gone and the run is not done, the training has failed or the machine went down.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ...config import Experiment
from ...errors import RunError
from ...machine.home import atomic_write, resolve, sweep
from ...machine.locks import holder, only_one
from ...machine.processes import TRAINING, Minder, lives
from ...runs.folder import Run

OUTPUT, PROCESS, ASKED = "output.txt", "process.json", "asked.yaml"
SILENT = 600.0  # seconds without a sign after which a training on another machine counts as ended


@dataclass(frozen=True)
class Training:
    """A process that trains a run folder now."""

    folder: Path
    pid: int
    host: str
    created: float  # when the process began, seconds since the epoch
    device: str | None = None  # that it was asked to use; None: whatever it chose
    own: bool = True  # started by `start` on this machine, so that `stop` can end it

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.created))
        return f"process {self.pid} on {self.host}, since {since}"


def start(
    experiment: Experiment,
    folder: str | Path | None = None,
    processes: int = 1,
    device: str | None = None,
    threads: int = 0,
) -> Training | None:
    """Train (or continue) an experiment in the background; returns at once, None if the run is done already.

    folder: default ``outputs/<run name>``. processes: that share every batch. threads: of PyTorch on the CPU, 0 for its
    own choice. Raises RunError if something trains this folder already or if it holds another experiment. What goes
    wrong later is told by `last_words`.
    """
    run = Run.create(experiment, folder)
    with only_one(run.folder / ".start.lock"):
        if training := find(run.folder):
            raise RunError(f"{run.folder} is being trained already ({training}): wait for it or stop it.")
        if run.complete:
            return None
        preset = run.folder / "experiment.yaml"  # by now the same experiment, and a preset like any other
        if run.taken:  # what is asked for differently is the training's to take, if it may go on at all
            preset = atomic_write(run.folder / ASKED, run.experiment.to_yaml())
        options = ["--folder", str(run.folder), "--processes", str(processes)]
        options += ["--device", device] if device else []
        environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ, "PYTHONUNBUFFERED": "1"}
        with (run.folder / OUTPUT).open("wb") as output:
            child = Minder(run.folder, TRAINING).start(
                "krt_core.cli", "train", str(preset), *options,
                output=output, environment=environment, record=run.folder / PROCESS,
            )  # fmt: skip
        training = Training(
            run.folder, child.pid, socket.gethostname(), psutil.Process(child.pid).create_time(), device
        )
        threading.Thread(target=child.wait, daemon=True).start()  # or it would stay as a zombie
        record = {"pid": child.pid, "create_time": training.created, "host": training.host, "device": device}
        run.write_json(PROCESS, record)
    return training


def find(folder: str | Path) -> Training | None:
    """The process that trains a run folder now, whoever started it.

    One that `start` began is told by process.json, as long as a process with this pid and this start lives. Any other
    one on this machine is told by the lock it holds (Linux). One on another machine, with a shared file system, counts
    until it has given no sign for ten minutes.
    """
    path = resolve(folder)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((path / PROCESS).read_text(encoding="utf-8"))
        training = Training(path, int(record["pid"]), record["host"], float(record["create_time"]), record["device"])
        if training.host != socket.gethostname():
            if time.time() - _last_sign(path) < SILENT:
                return Training(path, training.pid, training.host, training.created, training.device, own=False)
        elif lives(training.pid, training.created):
            return training
    return _holder(path)


def stop(folder: str | Path, grace: float = 10.0) -> bool:
    """End the training of a run folder with every process it has started; False if none was running.

    They are asked first (SIGTERM), killed after ``grace`` seconds, and gone when this returns. The run folder stays as
    after Ctrl-C: `start` continues, at most a minute or an epoch before. Raises RunError for a training that was not
    begun by `start` on this machine, since its process may be a terminal or a notebook that does other things too.
    """
    path = resolve(folder)
    training = find(path)
    if training and not training.own:
        raise RunError(f"{path.name} is trained by {training}, not started from here: stop it where it was started.")
    ended = Minder(path, TRAINING).end(grace)
    if ended.left:
        raise RunError(f"{path.name}: process {ended.left[0].pid} does not end. Its output is in {path / OUTPUT}.")
    if ended.asked:
        (path / PROCESS).unlink(missing_ok=True)
    if ended.killed:
        sweep(path, deep=True)  # what they have left half written
    return bool(ended.asked)


def failed(folder: str | Path) -> bool:
    """Has a training that `start` began ended without being done or stopped? To be asked once `find` finds none."""
    return (resolve(folder) / PROCESS).is_file()


def last_words(folder: str | Path, lines: int = 12) -> str:
    """The last lines that the training of a run folder printed since `start`; empty if there are none."""
    try:
        with (resolve(folder) / OUTPUT).open("rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _last_sign(folder: Path) -> float:
    """When a training last wrote something, seconds since the epoch."""
    times = [0.0]
    for name in (PROCESS, OUTPUT, "progress.json", "metrics.jsonl"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def _holder(folder: Path) -> Training | None:
    """The process that holds the lock of a run folder."""
    if pid := holder(folder / ".lock"):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            own = process.environ().get(TRAINING) == str(folder)
            return Training(folder, pid, socket.gethostname(), process.create_time(), own=own)
    return None
