"""Told of every epoch and session of a run: to mirror its numbers to a tracker, send a message, keep a copy.

``train.callbacks: [mylab.track:Tracker]`` names classes; one of each is made in the main process with the run folder.
What they do decides no result, so an error in one is written to the run's log and the training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..options import find
from .folder import Run


class Callback:
    """Base of a callback; what it does not need can be left out."""

    def __init__(self, run: Run):
        self.run = run

    def epoch(self, record: dict[str, Any]) -> None:
        """After every epoch, with its line of metrics.jsonl: session and epoch from 0, loss and its parts, rate, ..."""

    def session(self, state: dict[str, Any]) -> None:
        """After every session, once it is on disk, with its state.json: metrics, exemplars, thresholds, seconds, ..."""


class Callbacks:
    """Those of one run. Raises ConfigError where one cannot be imported."""

    def __init__(self, places: Iterable[str], run: Run, log: Callable[[str], None]):
        self.log = log
        self.made = [(place, find(place, "train.callbacks")(run)) for place in places]

    def epoch(self, record: dict[str, Any]) -> None:
        self._tell("epoch", record)

    def session(self, state: dict[str, Any]) -> None:
        self._tell("session", state)

    def _tell(self, what: str, content: dict[str, Any]) -> None:
        for place, callback in self.made:
            try:
                getattr(callback, what)(dict(content))
            except Exception as error:  # whatever a tracker raises when its server is away
                self.log(f"{place} failed after the {what} ({type(error).__name__}: {error}); the training goes on")
