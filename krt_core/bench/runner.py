"""Gives the jobs of a matrix to the slots of this machine until all are done or have a clear reason why not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, replace

from ..home import home
from ..processes import MARK, end_job, of_job, out_of_memory_kills, parent_is_this, with_parent
from . import state as s
from .matrix import Job, Matrix, seconds_of
from .slots import SlotLock, Slots, find_slots, take
from .state import JobFiles, State
from .view import View
from .worker import CODES

KINDS = {code: kind for kind, code in CODES.items()}
AGAIN = {"start-up": 1, "killed": 2}  # how often a job that ended so is started again in one start of the matrix


@dataclass
class Running:
    files: JobFiles
    process: subprocess.Popen
    slot: SlotLock
    kills: int  # of the system for memory before it started


class Runner:
    """Runs what is not done. max_failures: start nothing more after so many runs have failed (0: go on)."""

    def __init__(self, matrix: Matrix, jobs: list[Job], view: View, retry_failed: bool = False, max_failures: int = 0):
        self.matrix, self.view, self.retry_failed, self.max_failures = matrix, view, retry_failed, max_failures
        self.files = {job.id: JobFiles(matrix.folder, job) for job in jobs}
        self.time_limit = seconds_of(matrix.time_limit)
        self.states: dict[str, State] = {}
        self.running: dict[str, Running] = {}
        self.ended_by: Counter[tuple[str, str]] = Counter()  # (job, kind)
        self.failures = 0
        self.stopped = False

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
                self.view.say("stopped: the same command goes on after the last finished epochs")
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
            if (slot := take(slots, self.matrix.gpus_per_run)) is None:
                break
            self._start(name, slot, slots)
        self.view.show(self.files, self.states)
        return bool(self.running or self._startable() or s.RUNNING in {state.state for state in self.states.values()})

    # ---- what can be done ----

    def _first_state(self, files: JobFiles) -> State:
        state = files.current(self._inputs(files))
        if state.state == s.QUEUED and of_job(files.mark) and not files.held():
            end_job(files.mark)  # left over from a start that was killed
        if state.state == s.DONE and files.read().state != s.DONE:  # killed just after the last file was written
            files.write(state=s.DONE, kind="", reason="")
        return replace(state, state=s.QUEUED) if state.state == s.FAILED and self.retry_failed else state

    def _startable(self) -> list[str]:
        """Names of the jobs that wait for nothing but a slot, trainings first."""
        if self.max_failures and self.failures >= self.max_failures:
            return []
        return [name for name, state in self.states.items() if state.state == s.QUEUED and self._ready(name)]

    def _ready(self, name: str) -> bool:
        needed = [self.states[other].state for other in self.files[name].job.needs]
        return not needed or (s.DONE in needed and not {s.QUEUED, s.RUNNING} & set(needed))

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
        command = with_parent("krt_core.bench.worker", str(files.folder), "--slot", str(slot))
        command += ["--time-limit", str(self.time_limit)] if self.time_limit else []
        environment = {**os.environ, **parent_is_this(), **slots.environment(slot.names)}
        environment.update({MARK: files.mark, "KRT_HOME": str(home())})
        with files.log.open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, pass_fds=slot.descriptors,
            )  # fmt: skip
        slot.close()  # the process holds it now
        self.running[name] = Running(files, process, slot, out_of_memory_kills())
        self.states[name] = replace(self.states[name], state=s.RUNNING, slot=str(slot), reason="", kind="")
        self.view.say(f"{name}: started on {slot}")

    def _finished(self, name: str) -> None:
        running = self.running.pop(name)
        files, code = running.files, running.process.returncode
        end_job(files.mark, grace=0)
        if code in KINDS:
            kind, reason = KINDS[code], files.read().reason
        else:
            memory = out_of_memory_kills() > running.kills
            kind = "out of memory" if memory else "killed"
            reason = "the system killed it for memory" if memory else f"its process was killed by signal {-code}"
            if code > 0:
                kind, reason = "start-up", f"its process ended with exit code {code}: see {files.log}"
        if kind == "elsewhere":
            self.states[name] = replace(self.states[name], state=s.RUNNING)
            return
        self.ended_by[name, kind] += 1
        again = self.ended_by[name, kind] <= AGAIN.get(kind, 0)
        ended = s.DONE if not kind else s.QUEUED if again or kind == "stopped" else s.FAILED
        stored = s.QUEUED if kind in ("killed", "stopped") else ended  # a later start goes on with what was killed
        try:
            state = files.write(state=stored, kind=kind, reason=reason, exit_code=code)
        except OSError:  # a full disk
            state = replace(files.read(), kind=kind, reason=reason, exit_code=code)
        self.states[name] = replace(state, state=ended)
        self.failures += ended == s.FAILED
        words = {s.DONE: "done", s.QUEUED: f"{kind} ({reason}), goes on", s.FAILED: f"failed: {kind} ({reason})"}
        self.view.say(f"{name}: {words[ended]}")

    # ---- the end ----

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True

    def _end_all(self) -> None:
        """End what still runs: first asked, then killed."""
        for running in self.running.values():
            running.process.terminate()
        for name in list(self.running):
            running = self.running[name]
            try:
                running.process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
            self._finished(name)
