"""Telling how far a run is: bars for a person, plain lines in a log, ``progress.json`` for everything else."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import RunError, printable
from ..machine.home import append_line, atomic_write
from ..machine.processes import MARK
from .files import to_json


class Progress:
    """Writes ``log.txt`` and ``progress.json`` of a run folder and, if wanted, shows a tqdm bar.

    show "auto": a bar in a terminal or a live notebook, one line per epoch when headless; "bar", "lines" or "none";
    "off" writes no file either. tensorboard: also write each epoch's numbers to ``tensorboard/``.
    """

    def __init__(self, folder: Path, show: str = "auto", tensorboard: bool = False, interval: float = 1.0):
        self.folder, self.interval = folder, interval
        self.show = _choose() if show == "auto" else show
        self.state: dict[str, Any] = {}
        self.began = time.monotonic()
        self.steps_total = self.steps_done = self.steps_at_start = 0
        self._written, self._told = 0.0, time.monotonic()
        self._bar = None
        self._board = _open_board(folder) if tensorboard and self.show != "off" else None

    def log(self, text: str) -> None:
        """One line, with the time, to log.txt and to the screen."""
        if self.show == "off":
            return
        append_line(self.folder / "log.txt", f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}")
        if self.show != "none":
            say = partial(print, flush=True) if self._bar is None else self._bar.write
            try:
                say(printable(text))
            except UnicodeEncodeError:  # a screen that knows no "−"
                say(printable(text).encode("ascii", "replace").decode())

    def plan(self, total: int, done: int) -> None:
        """Tell how many steps the whole run has and how many an earlier start has already made."""
        self.steps_total, self.steps_done, self.steps_at_start = total, done, done
        self.began = time.monotonic()
        if self.show == "bar":
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, leave=True, mininterval=0.5)

    def step(self, **state: Any) -> None:
        """After each training step: session, epoch, loss and what else is worth showing."""
        self.steps_done += 1
        self.state.update(state)
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_description_str(
                f"session {state.get('session', 0) + 1}, epoch {state.get('epoch', 0) + 1}", refresh=False
            )
        self.write()

    def write(self, force: bool = False, **state: Any) -> None:
        """Bring progress.json up to date, at most once per interval unless forced."""
        if self.show == "off":
            return
        self.state.update(state)
        now = time.monotonic()
        if not force and now - self._written < self.interval:
            return
        self._written = now
        made = self.steps_done - self.steps_at_start
        rate = made / max(now - self.began, 1e-9)
        content = {
            **self.state,
            "step": self.steps_done,
            "steps": self.steps_total,
            "eta_seconds": round((self.steps_total - self.steps_done) / rate, 1) if made else None,
            "updated_at": datetime.now().isoformat(timespec="seconds"),
        }
        atomic_write(self.folder / "progress.json", to_json(content), flush=False)

    def done(self, summary: dict[str, Any]) -> None:
        """At the end of a run, with the numbers of its ``DONE``."""
        self.write(force=True, state="done")
        self.log(
            f"done: average mAP {summary['average_mAP']:.2f}, last {summary['last_mAP']:.2f}, "
            f"forgetting {summary['forgetting']:.2f} (max − last per class, on the same test images), "
            f"{summary['seconds']:.0f} s"
        )

    def epoch(self, record: dict[str, Any]) -> None:
        """After each epoch: its line of ``metrics.jsonl`` in words, and as curves for TensorBoard."""
        about = {key: record[key] for key in ("loss", "images_per_second") if key in record}
        self.write(force=True, **about)
        loss = f"loss {record['loss']:.2f}, " if "loss" in record else ""  # none without gradients
        text = f"{loss}{record['images_per_second']:.0f} images/s"
        if "mAP_seen" in record:
            text += f", mAP seen {record['mAP_seen']:.2f}"
            text += f" ({record['mAP_of']} images)" if "mAP_of" in record else ""
        if overflowed := record.get("overflowed"):
            text += f", {overflowed} step{'s' * (overflowed != 1)} overflowed float16 and changed nothing"
        self.log(f"  session {record['session'] + 1} epoch {record['epoch'] + 1}: {text}")
        if self._board is not None:
            for key in record.keys() - {"session", "epoch", "mAP_of"}:
                self._board.add_scalar(f"session_{record['session']:02d}/{key}", record[key], record["epoch"])

    def decoding(self, what: str, done: int, total: int) -> None:
        """How far the images, or their features, are: a line at the end, and every half minute before."""
        self.write(task=f"{what} {done}/{total}")
        if done == total or time.monotonic() - self._told > 30:
            self._told = time.monotonic()
            self.log(f"{what}: {done} of {total}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RunError("train.tensorboard needs its package: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")


def _choose() -> str:
    if "ipykernel" in sys.modules:  # headless execution sets no terminal either; papermill stores every output
        return "lines" if headless_kernel() else "bar"
    return "bar" if sys.stderr.isatty() else "lines"


def headless_kernel() -> bool:
    """True under papermill and nbconvert, whose kernels are started without the session name of JupyterLab or the marks
    of VS Code; and in a job of `krt bench`, which may have been started in a terminal that has these marks."""
    return MARK in os.environ or not {"JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_IPC_HOOK"} & os.environ.keys()
