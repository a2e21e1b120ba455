"""Where runs run: a GPU or a share of the cores each, taken by one run at a time on the whole machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..errors import ConfigError


@dataclass(frozen=True)
class Slots:
    """The slots of this machine. kind "gpu": names are what CUDA_VISIBLE_DEVICES takes; "cpu": numbered shares."""

    kind: str
    names: tuple[str, ...]
    threads: int  # per slot
    locks: dict[str, str] = field(default_factory=dict)  # what the lock of a slot is called, where not by its name

    def environment(self, taken: tuple[str, ...]) -> dict[str, str]:
        """What a run in these slots must see."""
        threads = str(self.threads if self.kind == "cpu" else self.threads * len(taken))
        gpus = ",".join(taken) if self.kind == "gpu" else ""
        return {"CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": threads}


def find_slots(workers: int = 0, at_most: int | None = None) -> Slots:
    """The GPUs this process may see, else ``workers`` shares of the cores (0: one per core).

    at_most: no more shares than there are jobs. Their number decides the threads of a run and with them the last digits
    of its results, so it must not depend on what is already done.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = tuple(visible.split(",")) if visible else tuple(str(i) for i in range(torch.cuda.device_count()))
        return Slots("gpu", names, max(1, cores // len(names)), _gpu_locks(names))
    count = max(1, min(workers or cores, at_most or cores))
    return Slots("cpu", tuple(str(i) for i in range(count)), max(1, cores // count))


def _gpu_locks(names: tuple[str, ...]) -> dict[str, str]:
    """What each GPU is called whatever name it was asked for by: its UUID, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    uuids = dict(line.split(", ", 1) for line in listed.strip().splitlines())
    return {name: uuids.get(name, name) for name in names}


class SlotLock:
    """Some slots held for one run, by open files that its process inherits: they are free again when it has ended, even
    if this one was killed before."""

    def __init__(self, kind: str, names: tuple[str, ...], files: list[IO]):
        self.kind, self.names, self.files = kind, names, files

    def __str__(self) -> str:
        return f"{self.kind} {','.join(self.names)}"

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(file.fileno() for file in self.files)

    def close(self) -> None:
        """Let go of it here; a process that inherited it still holds it."""
        for file in self.files:
            file.close()


def _open(path: Path) -> IO:
    """A lock file that any user of the machine may have made."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT, 0o444), "rb")


def take(slots: Slots, count: int) -> SlotLock | None:
    """Take ``count`` free slots, all or none. Raises ConfigError where the machine does not have so many."""
    if count > len(slots.names):
        raise ConfigError(
            f"A run asks for {count} {slots.kind} slots, this machine has {len(slots.names)}: lower gpus_per_run."
        )
    folder = Path(tempfile.gettempdir()) / "krt-slots"
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)  # shared by all users of the machine
    taken: list[tuple[str, IO]] = []
    for name in slots.names:
        file = _open(folder / f"{slots.kind}-{slots.locks.get(name, name)}")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        taken.append((name, file))
        if len(taken) == count:
            names, files = zip(*taken, strict=True)
            return SlotLock(slots.kind, names, list(files))
    for _, file in taken:
        file.close()
    return None
