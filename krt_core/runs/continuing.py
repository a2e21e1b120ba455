"""How a start goes on with a run folder: from where, whether it may, and by which starts a session is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import Experiment
from ..errors import RunError
from ..machine.cpu import give_back_memory
from ..machine.device import Runtime
from ..memory import Memory
from ..methods import Method
from ..model import Network
from ..protocol import Protocol
from .folder import Ahead, Run
from .shown import Shown, Tally
from .starts import about_start, check_made_with, facts, mixed_of, precision_of


class Continuing:
    """``finished`` sessions are there; ``resume`` is what an interrupted one left (see `Run.load_resume`), or None.

    A damaged resume.pt counts as none, which is logged: its session starts anew. Raises RunError, with the way out,
    where a file that is needed is damaged.
    """

    def __init__(self, run: Run, log: Callable[[str], None]):
        self.run, self.log = run, log
        self.finished = run.finished_sessions
        if self.grown and self.finished + 1 < len(run.experiment.protocol.sizes):
            raise RunError(
                f"{run.folder}: data.added is of a run that has grown, and the sessions are not there that it grew "
                "from. Grow one with krt extend RUN DATA."
            )
        self.resume: dict[str, Any] | None = None
        try:
            resume = run.load_resume()
        except RunError as error:
            log(str(error))
        else:
            if resume and resume["session"] == self.finished:  # else left over from a session that was finished
                self.resume = resume
        for fault in run.check_sessions():
            log(fault)
        self.tally: Tally | None = None  # of the labels that it was asked for last
        self.made_with: dict[str, Any] = {}
        # Numbers in `Run.starts` of those that make the session in work; alike ones go by the number of the first.
        self.starts: list[int] = []

    # ---- of a run that `krt extend` has grown ----

    @property
    def grown(self) -> bool:
        return bool(self.run.experiment.data.added)

    @property
    def exemplars(self) -> list[str]:
        """Ids of what the sessions before the last have stored and the last is to replay."""
        experiment = self.run.experiment
        replay, before = experiment.replay, len(experiment.protocol.sizes) - 2  # also once the last is finished
        if not self.grown or not self.finished or not (replay.per_class or replay.budget):
            return []
        return [one for ids in self.run.session_state(before)["exemplar_ids"] for one in ids]

    @property
    def weights(self) -> dict[str, Any] | None:
        """What its first weights were: they are not needed again."""
        return self.run.session_state(0)["weights"] if self.grown else None

    def shown(self, protocol: Protocol, labels: np.ndarray, index: int) -> Shown:
        """What the sessions up to this one have shown, see `Tally`; of a run that has grown earlier ones have said so
        themselves: NaN where a folder of an older version does not."""
        if not self.grown:
            return self._tally(protocol, labels).shown(index)
        if index + 1 == len(protocol.sessions):
            return self.shown(protocol, labels, index - 1).then(protocol, labels, index)
        nothing = [np.nan] * protocol.sessions[index].stop
        said = self.run.session_state(index).get("shown") or {"counts": nothing, "images": nothing}
        return Shown(np.array(said["counts"], float), np.array(said["images"], float))

    def frequency(self, protocol: Protocol, labels: np.ndarray, index: int) -> np.ndarray:
        """(C_old,) how often each old class was shown before a session, as a share of images."""
        if protocol.arrival(index):
            return self.shown(protocol, labels, index - 1).frequency
        return self._tally(protocol, labels).frequency(index)

    def _tally(self, protocol: Protocol, labels: np.ndarray) -> Tally:
        if self.tally is None or self.tally.protocol is not protocol or self.tally.labels is not labels:
            self.tally = Tally(protocol, labels)
        return self.tally

    # ---- of any ----

    def check(self, now: dict[str, Any]) -> None:
        """RunError if what the run was begun with is not what this start has (see `made_with_of`)."""
        self.now = self.made_with = now
        if not (self.finished or self.resume):
            return
        state, newest = self.resume or self.run.session_state(self.finished - 1), self.run.starts[-1:]
        begun = state.get("made_with") or {}
        newest = [start for start in newest if not start.get("inherited")]
        recorded = [start.get("made_with") or {} for start in newest]
        if precision := precision_of(newest):  # which folders of older versions tell, too
            recorded.append({"precision": precision})
        for stored in (*recorded, begun):
            check_made_with(self.run.folder, stored, now)
        if begun:  # sessions of a folder of an older version go on saying what its first ones did
            self.made_with = {key: value for key, value in now.items() if key in begun}

    def restore(
        self, model: Network, method: Method, memory: Memory, protocol: Protocol, ids: np.ndarray
    ) -> Ahead | None:
        """Bring a model that was grown as far, method and memory to where the run was left off; returns what the model
        had said to the images of the session to come. ids (n,) of the training images."""
        run, finished, resume = self.run, self.finished, self.resume
        ahead = None
        if finished:
            run.fill(model, finished - 1)
            method.load_state(run.method_state(finished - 1))
            self._remember(memory, method, ids)
            with contextlib.suppress(RunError):  # a damaged one is made again
                ahead = run.ahead(finished - 1)
        learned = protocol.sessions[finished - 1].stop if finished else 0
        if method.replays and memory.keeps(learned) and memory.learned != learned:
            if self.grown:
                raise RunError(f"{run.folder}: the run it grew from has stored no exemplars: replay.per_class=0.")
            raise RunError(
                f"{run.folder}: session {finished} came without exemplars to replay, as imported ones do. Import the "
                "sessions after it too, or train in a new folder."
            )
        epoch = resume["epoch"] if resume else 0
        if resume or (finished and finished < len(protocol.sessions)):
            where = f"epoch {epoch + 1}" if epoch < run.experiment.train.epochs else "after its last epoch"
            self.log(f"continuing at session {finished + 1}, {where}")
        return ahead

    def _remember(self, memory: Memory, method: Method, ids: np.ndarray) -> None:
        state = self.run.session_state(self.finished - 1)
        if not self.grown:
            memory.load_state(state["memory"])
        elif self.exemplars:
            row_of = {one: row for row, one in enumerate(ids.tolist())}  # rows count other images than they did
            memory.load_state(state["memory"])
            were = memory.images.tolist()
            memory.renumber([[row_of[one] for one in stored] for stored in state["exemplar_ids"]])
            method.renumber(dict(zip(were, memory.images.tolist(), strict=True)))

    def record(self, experiment: Experiment, runtime: Runtime, weights: dict[str, Any]) -> None:
        """Write down this start and what it asks for, and say in what it differs from the one before."""
        lines = self.run.folder / "metrics.jsonl"
        if lines.is_file() and (cut := len(lines.read_bytes().splitlines()) - len(self.run.epochs)) > 0:
            self.log(f"{lines} is damaged: the lines up to the damage are kept, {cut} are lost")
        self.run.drop_after(self.finished, self.resume["epoch"] if self.resume else 0)  # it will be made again
        self.run.settle(self.log)
        about, starts = about_start(experiment, runtime, weights, self.now), self.run.starts
        last = self.run.session_state(self.finished - 1).get("starts", [0]) if self.finished else []
        if self.resume:
            last = self.starts = self.resume.get("starts", [0])
        starts += [{}] * (max(last, default=-1) + 1 - len(starts))  # whose record was lost
        number = next((i for i, start in enumerate(starts) if facts(start) == facts(about)), len(starts))
        self.run.write_json("environment.json", {**about, "starts": [*starts, about]})
        self.starts = list(dict.fromkeys([*self.starts, number]))
        if last and (differing := mixed_of([starts[last[-1]], about])):
            self.log(f"this start is not as the one before, and the run is marked as mixed: {'; '.join(differing)}")

    def next_session(self) -> None:
        give_back_memory()
        self.resume, self.starts = None, self.starts[-1:]
