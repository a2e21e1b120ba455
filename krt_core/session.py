"""THE loop. Each session runs through five stanzas: see, grow, learn, test, remember.

`train` writes a run folder and nothing else. Starting it again continues where it was, or at most a minute or an epoch
before; docs/runs.md says what may differ then. A finished run returns at once. Under torchrun every process runs this
loop on its share of the images; only the main one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .calibrate import Calibrating
from .config import Experiment
from .data import open_halves
from .data.pipeline import Batch, batches
from .data.room import check_room
from .data.stores import WAYS_OUT, decoded, images_of, open_stores, planned_stores
from .errors import RunError
from .evaluate import predict, session_metrics, testers
from .learn import Learner, embedded, fit, planned_steps, set_seed
from .machine.device import Runtime, choose_runtime, peak_memory_mb, reset_peak_memory
from .machine.failures import memory_told
from .memory import memory_of
from .methods import Context, check_knows, method_class
from .methods.start import start_from_ridge
from .model import Network
from .model.inference import for_inference
from .model.still import kept_features, room_wanted
from .protocol import Session, View, learned_labels, planned_images, protocol_of, session_view
from .remember import Remembering
from .runs.callbacks import Callbacks
from .runs.continuing import Continuing
from .runs.folder import Ahead, Run
from .runs.keeping import Keeping
from .runs.progress import Progress
from .runs.starts import made_with_of
from .runs.state import join, split
from .weights.start import first_network, renewed

RESUME_EVERY = 60.0  # seconds between two resume.pt, which may be half a gigabyte; what a crash costs beside an epoch


def train(
    experiment: Experiment,
    folder: str | Path | None = None,
    show: str = "auto",
    device: str | None = None,
    allow_leak: bool = False,
    max_steps: int | None = None,
) -> Run:
    """Run (or continue) an experiment and return its run folder.

    folder: default ``outputs/<run name>``. show: see `Progress`. allow_leak: accept weights that have seen the labels.
    max_steps: end every epoch after so many steps, for a quick look at whether a setting runs (such a run is not marked
    done). Raises ConfigError, DataError, CheckpointError or RunError; what was computed before stays in the folder.
    """
    runtime = choose_runtime(experiment.train.precision, device)
    main = runtime.world.main
    with runtime.world.main_first():
        run = Run.create(experiment, folder)
    found = run.finished_sessions
    if runtime.world.decide(found) != found:
        raise RunError(f"{run.folder}: machines that share a run need the same folder, on a file system they share.")
    if run.complete:
        return run
    progress = Progress(run.folder, show if main else "off", experiment.train.tensorboard)
    try:
        with run.lock(main), memory_told("images are looked at", run.fewer_at_a_time):
            _Training(run, progress, runtime, allow_leak, max_steps).go()
            runtime.world.wait()
    except KeyboardInterrupt:
        progress.log("interrupted: start the same experiment again to continue after the last finished epoch")
        raise
    finally:
        progress.close()
    return run


class _Training:
    def __init__(self, run: Run, progress: Progress, runtime: Runtime, allow_leak: bool, max_steps: int | None):
        e = self.experiment = run.experiment
        self.run, self.progress, self.runtime, self.world = run, progress, runtime, runtime.world
        self.max_steps, self.going, self.keeping = max_steps, Continuing(run, progress.log), Keeping(run)
        self._open_data()
        self.callbacks = Callbacks(e.train.callbacks if self.world.main else (), run, progress.log)
        set_seed(e.seed)
        self.method, self.memory = method_class(e.method)(e.options, e), memory_of(e.replay)
        shown = self.protocol, self.train_labels, self.train_set.ids
        self.remembering = Remembering(self.memory, self.method, *shown, self.world, e.seed, progress.log, run)
        self.calibrating = Calibrating.of(run, self.halves, self.protocol, self.method, self.world, progress.log)
        self.model, self.weights = first_network(e, runtime, allow_leak, progress.log, self.going.weights)
        self._open_stores()
        if e.model.tune_from:
            self._keep_features()
        self.first = renewed(self.model, self.model) if self.method.sees == "seen" else None
        self.old_model: Network | None = None
        self.ahead: Ahead | None = None  # the last session's model on this session's images

    def _open_data(self) -> None:
        e, run = self.experiment, self.run
        with self.world.main_first():
            self.train_set = (halves := open_halves(e.data, self.going.exemplars)).train
        protocol = protocol_of(e.protocol, self.train_set.classes, len(e.data.added))
        self.protocol = protocol.on(self.train_set, ~halves.held)
        check_knows(e.method, self.train_set)
        self.train_labels = learned_labels(self.protocol, halves)
        self.progress.log(
            f"{run.folder.name}: {halves.said}, {len(self.protocol.sessions)} sessions ({self.protocol.name}), "
            f"{self.runtime.device}{self.world.in_words}, {self.runtime.reasons['precision']}"
        )
        for note in halves.notes:
            self.progress.log(f"data: {note}")
        self.halves, self.images = halves, images_of(*halves, self.world)
        self.going.check(made_with_of(e, self.runtime, self.max_steps, halves.inputs(), self.images.stamp))

    def _open_stores(self) -> None:
        """Decode what is not decoded yet, where there is room for that and for all that is to be kept beside it."""
        e, halves = self.experiment, self.halves
        if self.world.main:
            planned = planned_stores(e.data, halves, self.images)
            how = self.runtime, self.method, e, *planned, self.run.features, self.going.finished > 0
            check_room([*decoded(planned), *room_wanted(self.model, *how)], WAYS_OUT)
        self.train_store = (stores := open_stores(e.data, halves, self.world, self.progress, self.images))[0]
        self.tester, self.validator = testers(e.train, halves, self.protocol, stores, self.runtime)
        if e.train.report == "best" and self.validator.images == "test" and not self.method.has_own("fit"):
            self.progress.log(
                "train.report=best: no images are held out (data.validation), so epochs are chosen on the test images"
            )

    # ---- the loop ----

    def go(self) -> None:
        for index in range(self.going.finished):
            if learning := self.protocol.taught(index, self.method.sees):
                self._grow(learning)
        self.ahead = self.going.restore(self.model, self.method, self.memory, self.protocol, self.train_set.ids)
        if self.world.main:  # not before: a start that is refused leaves no trace
            self.going.record(self.experiment, self.runtime, self.weights)
        first, resume = self.going.finished, self.going.resume
        steps = [self.steps_of(t) for t in range(len(self.protocol.sessions))]
        begun = steps[first] // self.experiment.train.epochs * resume["epoch"] if resume else 0
        self.progress.plan(sum(steps), sum(steps[:first]) + begun)
        with self.keeping:
            for index in range(first, len(self.protocol.sessions)):
                self.session(index, resume)
                resume = None
                self.going.next_session()
        if self.world.main:
            self.finish()

    def session(self, index: int, resume: dict[str, Any] | None) -> None:
        best, before = None, None
        self.began = time.perf_counter() - (resume["seconds"] if resume else 0.0)  # spent by earlier starts on it
        if self._stands_from(index):
            self._stand_still()
        reset_peak_memory(self.runtime.device)

        # 1. See: the session's images, with labels of its own classes only, and the stored exemplars.
        # Nothing but an oracle, which every table marks, is shown more.
        shown = self.method.sees, self.method.hidden, (oracle := self.method.is_oracle)
        view = session_view(self.protocol, self.train_labels, index, self.memory, *shown)

        # 2. Grow: a token and a head for the new classes; the model so far stays as the old model.
        if learning := self.protocol.taught(index, self.method.sees):
            self.old_model = for_inference(self.model, self.runtime.dtype) if learning.start else None
            self._grow(learning)
            context, learner = self._prepare(learning, view, resume)
            before = self.calibrating.before(index, lambda rows: self._predict(rows, model=self.old_model)[0])

            # 3. Learn: the method turns batches into a loss, or learns in closed form; validate on the way.
            best = self.epochs(index, learner, resume) if learner else None
            if self.method.has_own("fit"):
                self._stand_still()
                best = self.fit(index, context, view)
            self.method.end_session(context)

        # 4. Test: one pass over the fixed pool, from which every subset is scored; one over what calibrates the scores.
        scores = self.tester.reported(best, self.model, index, self.method, not learning)
        metrics = session_metrics(self.protocol, index, scores.scores, scores.labels, full=True)
        calibration = self.calibrating.after(index, before, lambda rows: self._predict(rows)[0])

        # 5. Remember: choose exemplars, look at the images of the session to come, write the session down.
        self.ahead = self.remembering.after(index, view, self._predict) if learning else None
        state = {
            "session": index, "classes": list(self.protocol.classes),
            "new_classes": list(self.protocol.class_names(index)), "train_images": view.own,
            "replayed_images": len(view.rows) - view.own, "test_images": len(scores.ids),
            "reported_epoch": best["epoch"] if best else self.experiment.train.epochs - 1,
            **({"epoch_chosen_on": self.validator.images} if best else {}), **({"oracle": True} if oracle else {}),
            "seconds": round(time.perf_counter() - self.began, 2), "weights": self.weights,
            "peak_memory_mb": round(peak_memory_mb(self.runtime.device), 1), "metrics": metrics,
            "method": self.method.state(), "memory": self.memory.state(), "starts": self.going.starts,
            "shown": self.going.shown(self.protocol, self.train_labels, index).as_dict(),
            "exemplar_ids": [self.train_set.ids[rows].tolist() for rows in self.memory.lists],
            "exemplar_bytes": self.train_set.bytes_of(self.memory.images), "made_with": self.going.made_with,
        }  # fmt: skip
        if self.world.main:
            what = self.model.state_dict(), scores, state, self.ahead, self.model.still, calibration
            self.run.write_session(index, *what)
            self.keeping.begin()
            self.run.clear_resume()
            self.callbacks.session(self.run.session_state(index))
        self.progress.log(
            f"session {index + 1}/{len(self.protocol.sessions)} ({', '.join(self.protocol.class_names(index))}): "
            f"mAP seen {metrics['mAP_seen']:.2f}, base {metrics['mAP_base']:.2f}, new {metrics['mAP_new']:.2f}"
        )

    def finish(self) -> None:
        summary = self.run.final_summary()
        if self.max_steps is None:
            self.run.drop_features()
            self.run.write_done(summary)
        self.progress.done(summary)

    def steps_of(self, index: int) -> int:
        """Training steps of a session (replayed images of sessions to come are estimated)."""
        if self.method.has_own("fit") and self._stands_from(index):
            return 0
        memory = self.memory if self.method.replays else None
        images = planned_images(self.protocol, self.train_labels, index, memory, self.method.sees)
        return planned_steps(images, self.experiment.train, self.max_steps)

    # ---- grow ----

    def _grow(self, session: Session) -> None:
        set_seed(self.experiment.seed, session.index)  # also where nothing is added: a method may draw at its start
        if session.start == session.stop:
            return
        self.model = renewed(self.first, self.model) if self.first else self.model  # each session anew, or on and on
        self.model.add_session(session.stop - session.start)

    def _stands_from(self, index: int) -> bool:
        """Does the backbone learn nothing in a session? It never does where a method learns in closed form only."""
        freeze = self.experiment.model.freeze
        return index > 0 if freeze == "first" else freeze == "all" or self.method.has_own("fit")

    def _stand_still(self) -> None:
        """From here on the backbone learns no more."""
        if not self.model.still:
            self.model.freeze_backbone()
            self._keep_features()

    def _keep_features(self) -> None:
        """What stands still sees each image once; from here on what it makes of them takes their place."""
        if self.experiment.data.features:
            how = self.runtime, self.method, self.experiment, self.progress
            stores = self.train_store, self.tester.store
            self.train_store, test = kept_features(self.model, *how, *stores, self.run.features)
            for one in (self.tester, self.validator):
                one.store = test if one.images == "test" else self.train_store

    def _prepare(self, session: Session, view: View, resume: dict[str, Any] | None) -> tuple[Context, Learner | None]:
        """What the session learns with; no learner for a method that fits in closed form."""

        def old_scores() -> np.ndarray:
            said = self.remembering.before(
                session.index, view, self.ahead, lambda rows: self._predict(rows, model=self.old_model)[0]
            )
            return said.scores

        def images(places: np.ndarray | slice = slice(None)) -> Iterator[Batch]:
            return batches(self.train_store, view.rows[places], view.labels[places], t.eval_batch_size, self.runtime)

        t = self.experiment.train
        context = Context(
            experiment=self.experiment, protocol=self.protocol, session=session, model=self.model,
            old_model=self.old_model, forward=self.model, old_scores=old_scores, log=self.progress.log,
            class_frequency=self.going.frequency(self.protocol, self.train_labels, session.index),
            batches=images, embeddings=lambda: embedded(self.model, images(), self.runtime), world=self.world,
            own=view.own, ids=self.train_set.ids, logits=lambda rows: self._predict(rows, logits=True)[0],
        )  # fmt: skip
        if resume:
            self.method.load_state(resume["method"])
        with self.runtime.autocast():  # the old model's weights are as it wants them
            self.method.start_session(context)
        self._agree()
        if self.method.has_own("fit") and self.model.still:
            return context, None
        # Wrapped anew, after the method: new parameters are synchronised too, and those it has frozen are left out.
        context.forward = self.world.wrap(self.model)
        learner = Learner(self.model, self.method, t, session.start == 0, view, self.runtime)
        if resume:
            self.model.load_state_dict(resume["model"])
            learner.load_state(resume["learner"])
        elif t.head_start == "ridge":
            start_from_ridge(context)
        return context, learner

    def _agree(self) -> None:
        """Give every process the main one's method state: one threshold for all of them."""
        plain, tensors = split(self.method.state())
        self.world.share(tensors.values())
        self.method.load_state(join(self.world.decide(plain), tensors))

    # ---- learn ----

    def epochs(self, index: int, learner: Learner, resume: dict[str, Any] | None) -> dict[str, Any] | None:
        """Train the session; returns epoch, mAP and scores of its best epoch where that is what is to be reported."""
        t = self.experiment.train
        first, best = (resume["epoch"], resume["best"]) if resume else (0, None)
        same = self.validator is self.tester  # then the last epoch is tested anyway

        def on_step() -> None:
            self.progress.step(session=index, sessions=len(self.protocol.sessions), epoch=epoch, epochs=t.epochs)

        for epoch in range(first, t.epochs):
            seed = (self.experiment.seed, index, epoch)
            with self.keeping.before(index, epoch, self.world):
                made = learner.epoch(self.train_store, seed, on_step, self.max_steps)
            self.world.share_buffers(self.model)
            record, last = {"session": index, "epoch": epoch, **made}, epoch + 1 == t.epochs
            if t.evaluate_every and (epoch + 1) % t.evaluate_every == 0 and not (last and same):
                record.update(self.validator.validate(self.model, index, self.method))
            if t.report == "best" and (last or "mAP_seen" in record):
                best = self.validator.better(best, self.model, index, epoch, self.method, not same)
            if self.world.main:
                self._tell(record)
                self.keeping.epoch({
                    "session": index, "epoch": epoch + 1, "made_with": self.going.made_with,
                    "starts": self.going.starts, "best": best, "seconds": time.perf_counter() - self.began,
                    "model": self.model.state_dict(), "learner": learner.state(), "method": self.method.state(),
                }, made["seconds"], math.inf if last else RESUME_EVERY, self.model.still)  # fmt: skip
        set_seed(self.experiment.seed, index, t.epochs)  # what draws after them draws alike if they were made before
        return best

    def fit(self, index: int, context: Context, view: View) -> None:
        """Learn the session without gradients; it counts as one epoch."""
        made = fit(self.model, self.method, context, len(view.rows), (self.experiment.seed, index, 0, self.world.rank))
        self._agree()
        if self.experiment.train.evaluate_every and self.validator is not self.tester:
            made |= self.validator.validate(self.model, index, self.method)
        if self.world.main:
            self._tell({"session": index, "epoch": 0, **made})

    def _tell(self, record: dict[str, Any]) -> None:
        self.run.append_epoch(record)
        self.progress.epoch(record)
        self.callbacks.epoch(record)

    def _predict(
        self, rows: np.ndarray, features: Any = None, model: Network | None = None, logits: bool = False
    ) -> tuple:
        method, size = self.method if model is None else self.method.before(), self.experiment.train.eval_batch_size
        return predict(model or self.model, self.train_store, rows, self.runtime, size, features, method, logits)
