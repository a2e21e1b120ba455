"""Gives the jobs of a matrix to the slots of this machine until all are done or have a clear reason why not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import IO

from ...machine.processes import Minder, end_child, out_of_memory_kills
from . import state as s
from .matrix import Job, Matrix, seconds_of
from .slots import SlotLock, Slots, find_slots, take
from .start import record_ending, start_worker
from .state import JobFiles, State
from .view import View


@dataclass
class Running:
    files: JobFiles
    process: subprocess.Popen
    lock: IO  # of the job, held here too until it is written down how it ended
    kills: int  # of the system for memory before it started


class Runner:
    """Runs what is not done. max_failures: start nothing more after so many runs have failed (0: go on). tried: jobs
    that are not to be tried again where they have failed, whatever ``retry_failed`` says."""

    def __init__(
        self, matrix: Matrix, jobs: list[Job], view: View, retry_failed: bool = False, max_failures: int = 0,
        tried: Collection[str] = (),
    ):  # fmt: skip
        self.matrix, self.view, self.max_failures = matrix, view, max_failures
        self.again = {job.id for job in jobs if retry_failed and job.id not in tried}
        self.files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
        self.time_limit = seconds_of(matrix.time_limit)
        self.states: dict[str, State] = {}
        self.running: dict[str, Running] = {}
        self.ended_by: defaultdict[str, Counter[str]] = defaultdict(Counter)  # job → kinds
        self.failures = 0
        self.stopped = self.told_to_wait = False

    def go(self) -> bool:
        """Work until nothing is left that can be done here; returns whether everything is done."""
        trainings = sum(files.job.trains for files in self.files.values())
        slots = find_slots(self.matrix.workers, trainings * self.matrix.gpus_per_run)
        first = take(slots, self.matrix.gpus_per_run)  # says at once where a run can never have its slots
        if first:
            first.close()
        for files in self.files.values():
            files.write_job()
            self.states[files.job.id] = self._first_state(files)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self.view.begin(
            f"{len(slots.names)} {slots.kind} slots, {self.matrix.gpus_per_run} per run", self.matrix.folder
        )
        try:
            while self.step(slots):
                time.sleep(0.5)
        finally:
            self._end_all()
            self.view.end(self.files, self.states)
            if self.stopped:
                self.view.say("stopped: the same command goes on, at most a minute or an epoch before")
            elif s.FAILED in {state.state for state in self.states.values()}:
                self.view.say(f"logs: {self.matrix.folder}/jobs/RUN/log.txt; --retry-failed starts what failed again")
            for number, handler in before.items():
                signal.signal(number, handler)
        return all(state.state == s.DONE for state in self.states.values())

    def step(self, slots: Slots) -> bool:
        """Look after what runs, start what can be started; False when nothing is left."""
        for name in [name for name, running in self.running.items() if running.process.poll() is not None]:
            self._finished(name)
        self._look_elsewhere()
        if self.stopped:
            return False
        for name in self._startable():
            if not self._ready(name) or not self._still_queued(name):
                continue
            if (slot := take(slots, self.matrix.gpus_per_run)) is None:
                if not self.running and not self.told_to_wait:
                    self.told_to_wait = True
                    self.view.say(f"waits for a free {slots.kind} slot (taken by another krt bench)")
                break
            self._start(name, slot, slots)
        self.view.show(self.files, self.states)
        return bool(self.running or self._startable() or s.RUNNING in {state.state for state in self.states.values()})

    # ---- what can be done ----

    def _first_state(self, files: JobFiles) -> State:
        state = files.current(self._inputs(files))
        minder = Minder(files.mark)
        if state.state == s.QUEUED and minder.processes() and (lock := files.lock()):
            with lock:
                minder.end()  # left over from a start that was killed
        self._note_done(files, state)
        return replace(state, state=s.QUEUED) if state.state == s.FAILED and files.job.id in self.again else state

    def _startable(self) -> list[str]:
        """Names of the jobs that wait for nothing but a slot, trainings first."""
        if self.max_failures and self.failures >= self.max_failures:
            return []
        return [name for name, state in self.states.items() if state.state == s.QUEUED and self._ready(name)]

    def _ready(self, name: str) -> bool:
        needed = [self.states[other].state for other in self.files[name].job.needs]
        return not needed or (s.DONE in needed and not {s.QUEUED, s.RUNNING} & set(needed))

    def _still_queued(self, name: str, mine: bool = False) -> bool:
        """Another start may have taken or ended it since. mine: its lock is held here."""
        files = self.files[name]
        now = files.current(self._inputs(files), mine)
        if now.state == s.FAILED and name in self.again and now.attempts == self.states[name].attempts:
            return True  # failed before this start
        if now.state != s.QUEUED:
            self.states[name] = now
            self._note_done(files, now)
        return now.state == s.QUEUED

    def _note_done(self, files: JobFiles, state: State) -> None:
        """Where a run was killed just after its last file was written."""
        if state.state == s.DONE and files.read().state != s.DONE and (lock := files.lock()):
            with lock:
                files.write(state=s.DONE, kind="", reason="")

    def _inputs(self, files: JobFiles) -> str:
        return s.inputs_of([self.files[name] for name in files.job.needs])

    def _look_elsewhere(self) -> None:
        """Jobs that another start works on, and analyses whose runs have changed."""
        for name, state in self.states.items():
            files = self.files[name]
            if name not in self.running and state.state == s.RUNNING:
                self.states[name] = files.current(self._inputs(files))
            elif not files.job.trains and state.state == s.DONE and state.inputs != self._inputs(files):
                self.states[name] = replace(state, state=s.QUEUED)

    # ---- one job ----

    def _start(self, name: str, slot: SlotLock, slots: Slots) -> None:
        files = self.files[name]
        with slot:  # the process holds it from here on
            if (lock := files.lock()) is None:
                self.states[name] = replace(self.states[name], state=s.RUNNING)  # elsewhere
                return
            if not self._still_queued(name, mine=True):
                lock.close()
                return
            environment, kills = {**os.environ, **slots.environment(slot.names)}, out_of_memory_kills()
            gpus = len(slot.names) if slots.kind == "gpu" else 0
            process = start_worker(files, lock, str(slot), self.time_limit, gpus, environment, slot.descriptors)
        self.running[name] = Running(files, process, lock, kills)
        self.states[name] = replace(self.states[name], state=s.RUNNING, slot=str(slot), reason="", kind="")
        self.view.say(f"{name}: started on {slot}")

    def _finished(self, name: str) -> None:
        running = self.running.pop(name)
        with running.lock:
            state = record_ending(running.files, running.process.returncode, running.kills, self.ended_by[name])
        self.states[name] = state
        self.failures += state.state == s.FAILED
        why = f"{state.kind} ({state.reason})"
        words = {s.DONE: "done", s.QUEUED: f"{why}, goes on", s.FAILED: f"failed: {why}"}
        self.view.say(f"{name}: {words[state.state]}")

    # ---- the end ----

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True

    def _end_all(self) -> None:
        """End what still runs: first asked, then killed."""
        for running in self.running.values():
            running.process.terminate()
        for name in list(self.running):
            end_child(self.running[name].process, grace=8)
            self._finished(name)
