"""Child processes: started with a mark that all they start inherits, found by it, asked to end, killed.

``python -m krt_core.machine.processes [--record FILE] MODULE ARGUMENTS`` is how `Minder.start` runs a module. Without a
record it ends with the process named by KRT_PARENT, however that one ends. With one it outlives it; a SIGTERM then ends
it as Ctrl-C does, which tidies up, and removes the record.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from .cluster import SHARED
from .home import home

# Environment variables that hold a mark, as SHARED does: of a job of a matrix, of a training in the background (its run
# folder).
MARK, TRAINING = "KRT_JOB", "KRT_TRAINING"
PARENT = "KRT_PARENT"  # environment variable: id of the process that the ones it starts are to end with
INTERRUPTED = 130  # exit code after Ctrl-C


class Ended(NamedTuple):
    """Processes that were there when they were asked to end, those killed, and those even that could not end."""

    asked: int
    killed: int
    left: list[psutil.Process]


class Minder:
    """Starts, finds and ends the processes that carry one mark, this one left out."""

    def __init__(self, mark: str | Path, variable: str = MARK):
        self.mark, self.variable = str(mark), variable

    def start(
        self,
        module: str,
        *arguments: str,
        output: IO | int,
        environment: Mapping[str, str] = os.environ,
        descriptors: tuple[int, ...] = (),
        record: Path | None = None,
    ) -> subprocess.Popen:
        """Run a module in a session of its own, away from the signals of this one's terminal.

        Nothing heavy is imported before it: a parent that is killed while the module still loads is noticed too.
        descriptors: open files it inherits, with their locks. record: it outlives this process and a job this one
        belongs to; the file (of the caller) that says that it runs.
        """
        command = [sys.executable, "-m", "krt_core.machine.processes"]
        environment = {**environment, "KRT_HOME": str(home())}
        if record:
            command += ["--record", str(record)]
            environment = {k: v for k, v in environment.items() if k not in (MARK, TRAINING, SHARED, PARENT)}
        else:
            environment[PARENT] = str(os.getpid())
        return subprocess.Popen(
            [*command, module, *arguments], env={**environment, self.variable: self.mark}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=descriptors,
        )  # fmt: skip

    def adopt(self) -> None:
        """Whatever this process starts from now on, by whatever means, carries the mark and can end with it."""
        os.environ[self.variable] = self.mark
        be_parent()

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(self.variable) == self.mark:
                    found.append(process)
        return found

    def end(self, grace: float = 3.0) -> Ended:
        """Ask the processes to end (SIGTERM) and kill those that are there after ``grace`` seconds."""
        asked = processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(processes, timeout=grace)
        killed, deadline = 0, time.monotonic() + 10
        while (processes := self.processes()) and time.monotonic() < deadline:  # some may have started others meanwhile
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            killed += len(processes) - len(psutil.wait_procs(processes, timeout=0.2)[1])
        return Ended(len(asked), killed, processes)


def die_with_parent() -> None:
    """Have the kernel kill this process (SIGKILL) as soon as its parent is gone (Linux; elsewhere nothing happens).

    Where KRT_PARENT names a parent that is gone already, this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)


def be_parent() -> None:
    """The processes that this one starts from now on end with it, if they call `die_with_parent`."""
    os.environ[PARENT] = str(os.getpid())


def end_child(process: subprocess.Popen, grace: float) -> None:
    """Ask one process that was started here to end, and kill it if it is there after ``grace`` seconds."""
    process.terminate()
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def lives(pid: int, created: float) -> bool:
    """Is the process of this id still the one that began at ``created`` (seconds since the epoch)?"""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 1  # another one may have the number by now
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def out_of_memory_kills() -> int:
    """Processes that the kernel has killed for memory on this machine, or in this control group, so far."""
    counts = 0
    cgroup = "/sys/fs/cgroup"
    for path in ("/proc/vmstat", f"{cgroup}/memory.events", f"{cgroup}/memory/memory.oom_control"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            counts += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return counts


def _run(arguments: list[str]) -> None:
    record = None
    if arguments[0] == "--record":
        record, arguments = Path(arguments[1]), arguments[2:]
        # The signal of Ctrl-C itself is ignored by all that an idle kernel starts.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    else:
        die_with_parent()
    sys.argv = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except (SystemExit, KeyboardInterrupt) as end:
        if record and getattr(end, "code", INTERRUPTED) == INTERRUPTED:  # stopped, by whomever
            record.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    _run(sys.argv[1:])
