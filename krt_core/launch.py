"""Start a training: in this process, or in several that share every batch, through torchrun."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from .config import Experiment
from .data import DEFAULT_ROOTS
from .errors import ConfigError, RunError
from .machine.cluster import SHARED, cores
from .machine.device import named_device
from .machine.failures import in_words, said_plainly
from .machine.gpus import check_processes
from .machine.home import outputs_dir, resolve
from .machine.processes import MARK, Minder, be_parent, die_with_parent
from .runs.folder import Run
from .session import train


@dataclass(frozen=True)
class Machines:
    """The machines that share one run; the command is started on each with its own rank."""

    count: int = 1
    rank: int = 0  # of this one; 0 is the main one, which writes the run folder
    rendezvous: str = ""  # host:port where they meet, on the main one

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--nnodes must be at least 1, found {self.count}.")
        port = re.fullmatch(r"[^\s/]+:(\d{1,5})", self.rendezvous)
        if self.count > 1 and not (port and 0 < int(port[1]) < 65536):
            raise ConfigError(
                f"--nnodes {self.count} needs --rendezvous HOST:PORT, an address of the machine with rank 0; "
                f"found {self.rendezvous!r}."
            )
        if not 0 <= self.rank < self.count:
            raise ConfigError(f"--node-rank must be 0 to {self.count - 1}, found {self.rank}.")

    def arguments(self) -> list[str]:
        """For torchrun."""
        if self.count == 1:
            return ["--standalone"]
        host, port = self.rendezvous.rsplit(":", 1)
        return [f"--nnodes={self.count}", f"--node-rank={self.rank}", f"--master-addr={host}", f"--master-port={port}"]


def launch(
    experiment: Experiment,
    folder: str | Path | None = None,
    processes: int = 1,
    device: str | None = None,
    allow_leak: bool = False,
    max_steps: int | None = None,
    machines: Machines | None = None,
    show: str = "auto",
) -> Run:
    """`krt_core.session.train`, in ``processes`` processes that share every batch; returns the run folder.

    One GPU each where there are GPUs, else the CPU. Their lines appear as they come. Raises ConfigError if the batch
    cannot be shared so, RunError if the training failed. Ending this process ends them too. machines: where several
    share a run, each starts ``processes`` of its processes. show: of one process, see
    `krt_core.runs.progress.Progress`.
    """
    if MARK in os.environ:  # in a notebook of a matrix, see krt_core.lab.bench
        die_with_parent()
    machines = machines or Machines()
    total = processes * machines.count
    if not 1 <= total <= experiment.train.batch_size:
        raise ConfigError(f"processes must lie between 1 and train.batch_size (on all machines), found {total}.")
    path = resolve(folder) if folder else outputs_dir() / experiment.run_name()
    asked = named_device(device)  # before any process is started
    _check_weights(experiment, path)
    if total == 1:
        with said_plainly():  # this may be one of several that torchrun has started
            return train(experiment, folder, show, device, allow_leak, max_steps)
    if odd := check_processes(processes, asked):
        print(f"krt: {odd}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="krt-") as scratch:
        preset = Path(scratch) / "experiment.yaml"
        preset.write_text(experiment.to_yaml(), encoding="utf-8")
        command = [
            "krt_core.launch", *machines.arguments(), f"--nproc-per-node={processes}",
            "-m", "krt_core.machine.processes", "krt_core.cli", "train", str(preset), "--folder", str(path),
        ]  # fmt: skip
        command += ["--device", device] if device else []
        command += ["--allow-leak"] if allow_leak else []
        command += ["--max-steps", str(max_steps)] if max_steps else []
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(cores()) // processes))
        environment = {"LOGLEVEL": "CRITICAL", **os.environ, "OMP_NUM_THREADS": threads}
        code, last = _follow(Minder(scratch, SHARED), command, environment)
    if code:
        raise RunError(f"{path.name}: the training ended with exit code {code}. Its last lines:\n" + "\n".join(last))
    return Run(path)


def _check_weights(experiment: Experiment, path: Path) -> None:
    """ConfigError where the first weights are a file that is not there: before any image is read, not hours later."""
    weights = experiment.model.weights
    data = experiment.data
    if weights in ("", "pypi", "timm") or resolve(weights).exists() or (path / "DONE").exists() or data.added:
        return
    named = data.root or (f"data/{data.dataset}" if data.dataset in DEFAULT_ROOTS else "")
    if data.dataset == "digits" or not named or resolve(named).exists():  # else data are told first
        raise ConfigError(f"model.weights={weights}: there is no file {resolve(weights)}.")


def _follow(minder: Minder, command: list[str], environment: dict[str, str]) -> tuple[int, deque[str]]:
    """Run a module with its arguments, pass its output on, and leave no process of it when this one goes on or ends.

    Returns its exit code (128 + signal where one killed it) and its last 40 lines.
    """
    last: deque[str] = deque(maxlen=40)
    try:
        process = minder.start(*command, output=subprocess.PIPE, environment=environment)
        lines = io.TextIOWrapper(
            process.stdout, encoding="utf-8", errors="replace"
        )  # open until the last of them has ended
        for line in lines:
            print(line, end="", flush=True)
            last.append(line.rstrip())
        code = process.wait()
        return (code if code >= 0 else 128 - code), last
    finally:
        minder.end(grace=10)


def _torchrun() -> int:
    """torchrun without its own traceback when a process fails: that process has already said why."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    be_parent()
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code  # as a shell says it
    except RuntimeError as error:  # the processes were never started
        if (words := in_words(str(error))) is None:
            raise
        print(f"krt: {words}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_torchrun())
