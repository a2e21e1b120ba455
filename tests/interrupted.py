"""Trainings that stop where a test wants them to."""

from contextlib import contextmanager
from unittest.mock import patch

import pytest

from krt_core.runs.progress import Progress
from krt_core.session import train


@contextmanager
def stopped_after(session, epoch):
    """Trainings are interrupted, as by Ctrl-C, once they have written the line of this epoch."""
    original = Progress.epoch

    def stop(self, record):
        original(self, record)
        if (record["session"], record["epoch"]) == (session, epoch):
            raise KeyboardInterrupt

    with patch.object(Progress, "epoch", stop), pytest.raises(KeyboardInterrupt):
        yield


def begun(experiment, folder, at=(1, 1)):
    """The folder of a training that was interrupted there."""
    with stopped_after(*at):
        train(experiment, folder, show="none", device="cpu")
    return folder


def log_of(folder):
    return (folder / "log.txt").read_text(encoding="utf-8")
