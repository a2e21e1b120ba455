"""A command of ``krt`` in a process of its own, which ends by itself or is killed."""

from __future__ import annotations

import functools
import multiprocessing
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from .frame import Lost
from .seam import Seam

LONGEST = 600.0  # seconds after which a command that was left alone counts as hanging
# Processes are forked from one that has loaded everything and done nothing: they are there in a hundredth of a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["krt_core.cli", "krt_core.session", "krt_core.launch", "krt_core.tagger.extend", "timm"])


class Child:
    """``krt ARGUMENTS`` with a home of its own, on one thread. seam: where it stops by itself. fresh: an interpreter of
    its own, which loads everything anew, and which may start others."""

    def __init__(self, arguments: Sequence[str], home: Path, seam: Seam | None = None, fresh: bool = False):
        os.environ["OMP_NUM_THREADS"] = "1"
        self.output, self.began = b"", time.monotonic()
        self.ears, mouth = FORKS.Pipe(duplex=False)
        self.process: subprocess.Popen | multiprocessing.context.ForkServerProcess
        if fresh:
            command = [sys.executable, "-m", "krt_core.cli", *arguments]
            environment = {**os.environ, "KRT_HOME": str(home)}
            self.process = subprocess.Popen(
                command, env=environment, stdout=mouth.fileno(), stderr=subprocess.STDOUT, start_new_session=True
            )
        else:
            warm()
            self.began = time.monotonic()
            self.process = FORKS.Process(target=_work, args=(list(arguments), str(home), seam, mouth), daemon=True)
            self.process.start()
        mouth.close()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def listen(self, seconds: float) -> bool:
        """Hear what it says for so long; True once it has ended."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.ears.fileno()], [], [], left)[0]:
                return False
            if not (said := os.read(self.ears.fileno(), 65536)):
                return True
            self.output = (self.output + said)[-6000:]
        return False

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> int:
        """Wait for its end; its exit code, negative for the signal that has killed it. `Lost` where it does not end."""
        if not self.listen(LONGEST):
            self.kill()
            raise Lost(f"still there after {LONGEST:.0f} s: {self.words}")
        if isinstance(self.process, subprocess.Popen):
            code = self.process.wait()
        else:
            self.process.join()
            code = self.process.exitcode
        self.ears.close()
        self.seconds = time.monotonic() - self.began
        return code

    def well(self) -> Child:
        """`Lost`, with its last words, unless it ends well."""
        if code := self.end():
            raise Lost(f"exit code {code}: {self.words}")
        return self

    @property
    def words(self) -> str:
        return self.output.decode(errors="replace")


@functools.cache
def warm() -> None:
    """The process that others are forked from has loaded everything; else the first would seem slow."""
    first = FORKS.Process(target=int)
    first.start()
    first.join()


def _work(arguments: list[str], home: str, seam: Seam | None, mouth: Connection) -> None:
    os.setsid()
    os.environ["KRT_HOME"] = home
    for handle in (1, 2):
        os.dup2(mouth.fileno(), handle)
    mouth.close()  # which ends with this process
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115  # open as long as the process is there
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    import torch

    from krt_core import cli

    torch.set_num_threads(1)
    if seam:
        seam.install(Path(home))
    try:
        code = cli.main(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    if seam:
        seam.tell()
    sys.stdout.flush()
    os._exit(code)
