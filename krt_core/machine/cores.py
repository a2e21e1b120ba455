"""How many cores this process may use; no torch here."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that the scheduler gave to this process (Slurm, taskset, a container's set), not those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
