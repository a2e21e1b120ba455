"""A thread that keeps a view up to date."""

from __future__ import annotations

import html
import threading
from typing import Any

POLL = 1.0  # seconds between two looks


class Poller(threading.Thread):
    """Calls ``view.refresh()`` once a second, and at once when ``look`` is set, until `end` or until ``view.widget`` is
    closed. A refresh may only read files and set traits: what a thread prints is lost. What goes wrong in one is shown
    in ``view.message``."""

    def __init__(self, view: Any):
        super().__init__(daemon=True, name="krt view")
        self.view, self.look, self.ended = view, threading.Event(), False

    def run(self) -> None:
        while not self.ended and self.view.widget.comm is not None:  # None once the widget is closed
            self.look.clear()
            try:
                self.view.refresh()
            except Exception as error:  # whatever it is: it must be seen, and the next look may go well
                self.view.message.value = html.escape(f"{type(error).__name__}: {error}")
            self.look.wait(POLL)

    def end(self) -> None:
        """Returns once the last refresh is over."""
        self.ended = True
        self.look.set()
        if self is not threading.current_thread():
            self.join(timeout=10)
