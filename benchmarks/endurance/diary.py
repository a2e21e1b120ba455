"""A line for each session of a training: where its seconds went, and what the process used after it.

Parts are in seconds of a processor, which another program on the machine lengthens least.
"""

from __future__ import annotations

import functools
import importlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .usage import size_of, usage, walk

# What is timed, and as part of what; a call inside another one counts for its own part alone.
TIMED = {
    "krt_core.session:session_view": "see", "krt_core.session:_Training._grow": "grow",
    "krt_core.session:_Training._prepare": "prepare", "krt_core.session:_Training.epochs": "learn",
    "krt_core.session:_Training.fit": "learn", "krt_core.evaluate:Tester.reported": "test",
    "krt_core.session:session_metrics": "metrics", "krt_core.runs.folder:ap_of_session": "forgetting",
    "krt_core.calibrate.sessions:Calibrating.before": "calibrate",
    "krt_core.calibrate.sessions:Calibrating.after": "calibrate", "krt_core.remember:Remembering.after": "remember",
    "krt_core.runs.continuing:Continuing.shown": "count", "krt_core.runs.continuing:Continuing.frequency": "count",
    "krt_core.runs.folder:Run.write_session": "write", "krt_core.runs.callbacks:Callbacks.session": "tell",
    "krt_core.runs.reader:Reader.session_state": "tell", "krt_core.runs.progress:Progress.log": "tell",
    "krt_core.runs.progress:Progress.write": "tell", "krt_core.runs.folder:Run.append_epoch": "tell",
}  # fmt: skip
SESSION = "krt_core.session:_Training.session"
PARTS = tuple(dict.fromkeys((*TIMED.values(), "else")))


class Stopwatch:
    """Seconds by part. Of calls inside one another each second counts once, for the innermost."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []  # seconds of calls inside the ones that are going on

    def timing(self, work: Callable, part: str) -> Callable:
        @functools.wraps(work)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            self._inside.append(0.0)
            try:
                return work(*arguments, **options)
            finally:
                took = time.process_time() - began
                self.seconds[part] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return timed


@contextmanager
def diary(path: Path, run: Path, temporary: Path, others: tuple[Path, ...] = ()) -> Iterator[None]:
    """Trainings inside write a line of JSON for each session. run: the run folder, of which the bytes are counted;
    temporary, others: see `usage`."""
    watch, before = Stopwatch(), []

    def replace(place: str, made: Callable[[Callable], Callable]) -> None:
        module, _, names = place.partition(":")
        *owners, name = names.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        before.append((owner, name, vars(owner)[name]))
        setattr(owner, name, made(vars(owner)[name]))

    def session(work: Callable) -> Callable:
        timed = watch.timing(work, "else")

        def told(training: Any, index: int, resume: Any) -> None:
            watch.seconds.clear()
            began = time.perf_counter()
            timed(training, index, resume)
            state = json.loads((training.run.session_folder(index) / "state.json").read_text(encoding="utf-8"))
            line = {
                "session": index, "classes": training.protocol.sessions[index].stop,
                "images": state["train_images"] + state["replayed_images"], **usage(temporary, (run, *others)),
                "seconds": time.perf_counter() - began, "processor": sum(watch.seconds.values()),
                "parts": {part: watch.seconds[part] for part in PARTS},
                "bytes": {name.rpartition("/")[2]: size_of(name) for name in walk(training.run.session_folder(index))},
                "log_bytes": size_of(f"{run}/log.txt"),
            }  # fmt: skip
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

        return told

    try:
        for place, part in TIMED.items():
            replace(place, functools.partial(watch.timing, part=part))
        replace(SESSION, session)
        yield
    finally:
        for owner, name, work in reversed(before):
            setattr(owner, name, work)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
