"""The process of one job: ``python -m krt_core.lab.bench.worker FOLDER``. It runs the notebook and tells how that went.

Nothing it starts outlives it: it ends the processes that carry its mark, and they are killed when it is.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import platform
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from ...machine.device import git_commit
from ...machine.processes import Minder, out_of_memory_kills
from . import state as s
from .state import JobFiles

# What a job may end by, and the exit code that says so even where the disk is full and state.json cannot. None is 1 or
# 2, which Python itself ends with.
CODES = {
    "": 0, "time limit": 4, "out of memory": 5, "disk full": 6, "killed": 7, "start-up": 8, "stopped": 9,
    "elsewhere": 10, "error": 11,
}  # fmt: skip
DISK_FULL = r"No space left on device|Disk quota exceeded"
OUT_OF_MEMORY = r"OutOfMemoryError|MemoryError|CUDA (error: )?out of memory|(can't|Cannot) allocate memory"
GOES_ON = ("killed", "stopped")  # not the job's fault: it is queued again


class Worker:
    """locked: this process has inherited the lock of the job. gpus: so many CUDA must see here."""

    def __init__(
        self, folder: str | Path, slot: str = "", time_limit: float | None = None, locked: bool = False, gpus: int = 0
    ):
        self.files, self.slot, self.time_limit = JobFiles.of(folder), slot, time_limit
        self.locked, self.gpus = locked, gpus
        self.began, self.kills = "", out_of_memory_kills()

    def go(self) -> int:
        """Run the job; returns the exit code of `CODES`."""
        lock = contextlib.nullcontext() if self.locked else self.files.lock()
        if lock is None:
            return CODES["elsewhere"]
        with lock:
            before = self.files.read()
            self.seconds_before, self.began = before.seconds, s.now()
            self.write(
                state=s.RUNNING, attempts=before.attempts + 1, reason="", kind="", exit_code=None, slot=self.slot,
                started_at=self.began, ended_at="", host=s.host(), versions=_versions(),
            )  # fmt: skip
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.leave("stopped", "stopped"))
            signal.signal(
                signal.SIGALRM, lambda *_: self.leave("time limit", f"took more than {self.time_limit:.0f} s")
            )
            if self.time_limit:
                signal.setitimer(signal.ITIMER_REAL, self.time_limit)
            try:
                # In a thread, since nbclient would take the main one's signals.
                ThreadPoolExecutor(1).submit(self.execute).result()
                kind, reason = "", ""
                if self.files.job.trains and not self.files.finished:
                    kind, reason = "error", "the notebook ended, but the run is not done: see its log"
            except Exception as error:
                kind, reason = self.explain(error)
            return self.end(kind, reason)

    def execute(self) -> None:
        import papermill

        check_gpus(self.gpus)
        job = self.files.job
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        logging.getLogger().handlers[0].addFilter(_knows_the_parameters)
        papermill.execute_notebook(
            job.notebook, str(self.files.notebook), job.parameters, kernel_name="python3", language="python",
            cwd=Path(job.notebook).parent, progress_bar=False, log_output=True, start_timeout=180,
            coalesce_streams=True,
        )  # fmt: skip

    def explain(self, error: Exception) -> tuple[str, str]:
        """Kind and reason of a failure."""
        from papermill.exceptions import PapermillExecutionError

        text = str(error).strip()
        if isinstance(error, PapermillExecutionError):
            text = f"{error.ename}: {error.evalue}"
        reason = _first_line(text)
        if re.search(DISK_FULL, text) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return "disk full", reason
        if re.search(OUT_OF_MEMORY, text):
            return "out of memory", reason
        dead = type(error).__name__ == "DeadKernelError"  # of nbclient, below papermill
        if dead or re.search(r"exit code (137|143)\b", text):
            if out_of_memory_kills() > self.kills:
                return "out of memory", "the system killed a process for memory"
            return "killed", "its kernel died" if dead else "a training process was killed"
        return ("error" if isinstance(error, PapermillExecutionError) else "start-up"), reason

    def end(self, kind: str, reason: str) -> int:
        """Leave no process behind and write down how it ended."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        Minder(self.files.mark).end(grace=1.0)
        ended = {"": s.DONE, **dict.fromkeys(GOES_ON, s.QUEUED)}.get(kind, s.FAILED)
        at = s.now()
        self.write(
            state=ended, kind=kind, reason=reason, exit_code=CODES[kind], ended_at=at, inputs=self.inputs(),
            seconds=self.seconds_before + s.seconds_between(self.began, at),
        )  # fmt: skip
        if kind:
            _say(f"{self.files.job.id}: {kind}: {reason}")
        return CODES[kind]

    def leave(self, kind: str, reason: str) -> None:
        """From a signal: end at once, whatever the notebook is doing."""
        os._exit(self.end(kind, reason))

    def inputs(self) -> str:
        folder = self.files.folder.parent
        return s.inputs_of([JobFiles.of(folder / needed) for needed in self.files.job.needs])

    def write(self, **changes: object) -> None:
        try:
            self.files.write(**changes)
        except OSError as error:  # a full disk must not hide how the job ended
            _say(f"state.json cannot be written: {error}")


def check_gpus(wanted: int) -> None:
    """A training takes the CPU where it finds no GPU: hours later someone would wonder why."""
    if wanted:
        import torch

        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if seen < wanted:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise RuntimeError(
                f"CUDA sees {seen} of {wanted} GPUs here (CUDA_VISIBLE_DEVICES={visible}): see nvidia-smi"
            )


def _knows_the_parameters(record: logging.LogRecord) -> bool:
    """Leaves out what papermill says of parameters: it cannot read all of them, and `expand` has checked them."""
    return not record.getMessage().startswith(("Unable to parse line", "Passed unknown parameter"))


def _versions() -> dict[str, str | None]:
    names = ("krt-core", "torch", "timm", "papermill")
    return {"python": platform.python_version(), **{name: version(name) for name in names}, "commit": git_commit()}


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith("Its last lines:"):  # of a training in several processes
        lines[0] = lines[-1]
    return lines[0][:300] if lines else "no message"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="jobs/<id> of a matrix, with job.json")
    parser.add_argument("--slot", default="")
    parser.add_argument("--time-limit", type=float, help="seconds")
    parser.add_argument("--locked", action="store_true", help="the lock of the job was inherited")
    parser.add_argument("--gpus", type=int, default=0, help="so many CUDA must see")
    options = parser.parse_args(arguments)
    worker = Worker(options.folder, options.slot, options.time_limit, options.locked, options.gpus)
    Minder(worker.files.mark).adopt()
    return worker.go()


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # without a last flush that a full disk would turn into another exit code
