"""Processes that end together: none is left behind when the one that started it is killed.

``python -m krt_core.machine.processes MODULE ARGUMENTS`` runs a module so that it ends with the process named by
KRT_PARENT.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
import time

import psutil

MARK = "KRT_JOB"  # environment variable that every process of a job inherits
PARENT = "KRT_PARENT"  # environment variable: id of the process that the ones it starts are to end with


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


def with_parent(module: str, *arguments: str) -> list[str]:
    """Command that runs a module and dies with its parent; to be started with `parent_is_this` in its environment.

    Nothing heavy is imported before: a parent that is killed while the module still loads is noticed too.
    """
    return [sys.executable, "-m", "krt_core.machine.processes", module, *arguments]


def parent_is_this() -> dict[str, str]:
    """What the environment of the processes that this one starts is to hold."""
    return {PARENT: str(os.getpid())}


def of_job(mark: str) -> list[psutil.Process]:
    """Every process that carries this job's mark, this one left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_job(mark: str, grace: float = 3.0) -> int:
    """Ask the processes of a job to end and kill those that are there after ``grace`` seconds; returns how many there
    were."""
    first = processes = of_job(mark)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(processes, timeout=grace)
    deadline = time.monotonic() + 10
    while (processes := of_job(mark)) and time.monotonic() < deadline:  # some may have started others meanwhile
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=0.2)
    return len(first)


def out_of_memory_kills() -> int:
    """Processes that the kernel has killed for memory on this machine, or in this control group, so far."""
    counts = 0
    cgroup = "/sys/fs/cgroup"
    for path in ("/proc/vmstat", f"{cgroup}/memory.events", f"{cgroup}/memory/memory.oom_control"):
        with contextlib.suppress(OSError), open(path) as file:
            counts += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return counts


if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
