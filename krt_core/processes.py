"""Processes that end together: none is left behind when the one that started it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

import psutil

MARK = "KRT_JOB"  # environment variable that every process of a job inherits


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process (SIGKILL) as soon as its parent is gone (Linux; elsewhere nothing happens).

    parent: its id as the starter knew it; where it is already another, this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


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
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError), open(path) as file:
            counts += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return counts
