"""THE loop. Each session runs through five stanzas: see, grow, learn, test, remember.

`train` writes a run folder and nothing else. Starting it again continues from the last finished epoch; a finished run
returns at once. Under torchrun every process runs this loop on its share of the images; only the main one writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import Experiment
from .data import open_dataset
from .data.store import ImageStore
from .errors import DataError, RunError
from .evaluate import predict, session_metrics
from .learn import Learner, set_seed
from .machine.device import Runtime, choose_runtime, environment, peak_memory_mb, reset_peak_memory
from .memory import Memory
from .methods import METHODS, Context
from .model import Network
from .model.inference import for_inference
from .model.network import build_network
from .model.norm import synchronise
from .protocol import Session, View, check_labels, make_protocol, seen_frequency, session_view
from .runs.folder import Ahead, Run, Scores
from .runs.progress import Progress
from .weights.checkpoint import load_backbone


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
        raise RunError(
            f"{run.folder}: all machines that share a run need the same folder, on a file system they share."
        )
    if run.done:
        return run
    progress = Progress(run.folder, show if main else "off", experiment.train.tensorboard)
    try:
        with run.lock() if main else contextlib.nullcontext():
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
        self.run, self.progress, self.runtime, self.max_steps = run, progress, runtime, max_steps
        self.world = runtime.world
        with self.world.main_first():
            self.train_set, self.test_set = open_dataset(e.data, "train"), open_dataset(e.data, "test")
        if self.train_set.classes != self.test_set.classes:
            raise DataError(f"{self.train_set.root}: training and test annotations name different classes.")
        self.protocol = make_protocol(
            self.train_set.classes, e.protocol.base, e.protocol.increment, e.protocol.order_seed
        )
        self.train_labels = self.protocol.reorder(self.train_set.labels)
        self.test_labels = self.protocol.reorder(self.test_set.labels)
        check_labels(self.protocol, self.train_labels, f"{self.train_set.name} train")
        check_labels(self.protocol, self.test_labels, f"{self.test_set.name} test")
        # What a later start must find unchanged: stored exemplars are row numbers, and a quick look is no training.
        # Batch statistics of each process's own images make the number of processes part of the result, as published.
        processes = self.world.size if e.train.batch_norm == "batch" else None
        inputs = self.train_set.digest() + self.test_set.digest()
        self.made_with = {"inputs": inputs, "max_steps": max_steps, "processes": processes}
        self.test_rows = np.flatnonzero(self.test_labels.any(axis=1))  # the fixed pool: images with any class
        several = f" in {self.world.size} processes" if self.world.size > 1 else ""
        progress.log(
            f"{run.folder.name}: {len(self.train_set)} training and {len(self.test_set)} test images, "
            f"{len(self.protocol.sessions)} sessions ({self.protocol.name}), "
            f"{runtime.device}{several}, {runtime.reasons['precision']}"
        )
        for note in (*self.train_set.notes, *self.test_set.notes):
            progress.log(f"data: {note}")

        store = (e.data.image_size, e.data.cache, e.data.workers, progress.decoding, e.data.cache_size)
        with self.world.main_first():
            self.train_store, self.test_store = ImageStore(self.train_set, *store), ImageStore(self.test_set, *store)

        set_seed(e.seed)
        self.method = METHODS[e.method](run.experiment.options, e)
        self.memory = Memory(e.replay)
        self.model = build_network(e)
        self.weights = load_backbone(self.model.backbone, e.model, allow_leak)
        if self.world.main:
            run.write_json("environment.json", {**environment(runtime), "weights": self.weights})
        if self.weights.get("trained_on", "").startswith("unknown"):
            progress.log(
                f"{self.weights['file']}: what it was trained on is unknown, so it may know labels to be learned"
            )
        if self.weights.get("leak"):
            progress.log(f"LEAK: {self.weights['file']} is used all the same, though {self.weights['leak']}")
        self.model.to(runtime.device, runtime.weights_dtype)
        self.model.to(memory_format=torch.channels_last)
        if e.train.batch_norm == "sync" and self.world.size > 1:
            synchronise(self.model)
        self.old_model: Network | None = None
        self.ahead: Ahead | None = None  # the last session's model on this session's images
        self.spent_before = 0.0  # seconds that earlier, interrupted starts gave to the current session

    # ---- the loop ----

    def go(self) -> None:
        first, resume = self._restore()
        steps = [self.steps_of(t) for t in range(len(self.protocol.sessions))]
        start_epoch = resume["epoch"] if resume else 0
        per_epoch = steps[first] // self.experiment.train.epochs if first < len(steps) else 0
        self.progress.plan(sum(steps), sum(steps[:first]) + per_epoch * start_epoch)
        for index in range(first, len(self.protocol.sessions)):
            self.session(index, resume)
            resume = None
        if self.world.main:
            self.finish()

    def session(self, index: int, resume: dict[str, Any] | None) -> None:
        began, best = time.perf_counter(), None
        self.spent_before = resume["seconds"] if resume else 0.0
        reset_peak_memory(self.runtime.device)

        # 1. See: the session's images, with labels of its own classes only, and the stored exemplars.
        memory = self.memory if self.method.replays else None
        view = session_view(self.protocol, self.train_labels, index, memory, self.method.sees)

        # 2. Grow: a token and a head for the new classes; the model so far stays as the old model.
        learning = self.learning_session(index)
        if learning is not None:
            self.old_model = for_inference(self.model, self.runtime.dtype) if index else None
            self._grow(learning)
            context, learner = self._prepare(learning, view, resume)

            # 3. Learn: the method turns batches into a loss; validate on the way.
            best = self.epochs(index, learner, resume)
            self.method.end_session(context)
            self.old_model = None

        # 4. Test: one pass over the fixed pool, from which every subset is scored.
        scores = self.test(index) if best is None else self._pool(best["scores"].numpy())
        metrics = session_metrics(self.protocol, index, scores.scores, scores.labels, full=True)

        # 5. Remember: choose exemplars, look at the images of the session to come, write the session down.
        self.ahead = self._remember(index, view) if learning is not None else None
        state = {
            "session": index,
            "classes": list(self.protocol.classes),
            "new_classes": list(self.protocol.class_names(index)),
            "train_images": view.own,
            "replayed_images": len(view.rows) - view.own,
            "test_images": len(scores.ids),
            "reported_epoch": self.experiment.train.epochs - 1 if best is None else best["epoch"],
            "seconds": round(self.spent_before + time.perf_counter() - began, 2),
            "peak_memory_mb": round(peak_memory_mb(self.runtime.device), 1),
            "metrics": metrics,
            "method": self.method.state(),
            "memory": self.memory.state(),
            "exemplar_ids": [self.train_set.ids[ranking].tolist() for ranking in self.memory.ranked],
            "weights": self.weights,
            "made_with": self.made_with,
        }
        if self.world.main:
            self.run.write_session(index, self.model.state_dict(), scores, state, self.ahead)
            self.run.clear_resume()
        self.progress.log(
            f"session {index + 1}/{len(self.protocol.sessions)} ({', '.join(self.protocol.class_names(index))}): "
            f"mAP seen {metrics['mAP_seen']:.2f}, base {metrics['mAP_base']:.2f}, new {metrics['mAP_new']:.2f}"
        )

    def finish(self) -> None:
        summary = self.run.final_summary()
        if self.max_steps is None:
            self.run.write_json("DONE", summary)
        self.progress.write(force=True, state="done")
        self.progress.log(
            f"done: average mAP {summary['average_mAP']:.2f}, last {summary['last_mAP']:.2f}, "
            f"forgetting {summary['forgetting']:.2f} (max − last per class, whole test set), {summary['seconds']:.0f} s"
        )

    # ---- see ----

    def learning_session(self, index: int) -> Session | None:
        """The session as the method learns it; None when it learns nothing new (joint training after its only one)."""
        if self.method.sees == "session":
            return self.protocol.sessions[index]
        return Session(0, 0, len(self.protocol.classes)) if index == 0 else None

    def steps_of(self, index: int) -> int:
        """Training steps of a session (replayed images of sessions to come are estimated)."""
        if self.learning_session(index) is None:
            return 0
        if self.method.sees == "all":
            images = int(self.train_labels.any(axis=1).sum())
        else:
            replay, old = self.experiment.replay, self.protocol.sessions[index].start
            stored = (replay.budget or replay.per_class * old) if self.method.replays and index else 0
            images = len(self.protocol.train_images(self.train_labels, index)) + stored
        steps = math.ceil(images / self.experiment.train.batch_size)
        return self.experiment.train.epochs * min(steps, self.max_steps or steps)

    # ---- grow ----

    def _grow(self, session: Session) -> None:
        set_seed(self.experiment.seed, session.index)
        self.model.add_session(session.stop - session.start)

    def _prepare(self, session: Session, view: View, resume: dict[str, Any] | None) -> tuple[Context, Learner]:
        """What the session learns with. The model is wrapped anew, so that its new parameters are synchronised too."""

        def old_scores() -> np.ndarray:
            if self.ahead is None or self.ahead.ids.tolist() != self.train_set.ids[view.rows].tolist():
                raise RunError(
                    f"{self.run.folder}: no scores of the images of session {session.index + 1}. "
                    f"Delete {self.run.session_folder(session.index - 1)} to make that session again."
                )
            return self.ahead.scores

        context = Context(
            experiment=self.experiment, protocol=self.protocol, session=session, model=self.model,
            old_model=self.old_model, forward=self.world.wrap(self.model), old_scores=old_scores,
            class_frequency=seen_frequency(self.protocol, self.train_labels, session.index), log=self.progress.log,
        )  # fmt: skip
        if resume:
            self.method.load_state(resume["method"])
        self.method.start_session(context)
        self.method.load_state(self.world.decide(_plain(self.method.state())))  # one threshold for all processes
        config = self.experiment.train
        learner = Learner(self.model, self.method, config, session.index == 0, view, self.runtime)
        if resume:
            self.model.load_state_dict(resume["model"])
            learner.load_state(resume["learner"])
        return context, learner

    # ---- learn ----

    def epochs(self, index: int, learner: Learner, resume: dict[str, Any] | None) -> dict[str, Any] | None:
        """Train the session; returns epoch, mAP and scores of its best epoch where that is what is to be reported."""
        t, began = self.experiment.train, time.perf_counter()
        first, best = (resume["epoch"], resume["best"]) if resume else (0, None)

        def on_step() -> None:
            self.progress.step(session=index, sessions=len(self.protocol.sessions), epoch=epoch, epochs=t.epochs)

        for epoch in range(first, t.epochs):
            seed = (self.experiment.seed, index, epoch)
            made = learner.epoch(self.train_store, seed, on_step, self.max_steps)
            if not math.isfinite(made["loss"]):
                raise RunError(
                    f"{self.run.folder.name}: the loss became {made['loss']} in session {index + 1}, "
                    f"epoch {epoch + 1}. Lower train.base_lr or train.lr, or set train.precision=float32."
                )
            self.world.share_buffers(self.model)
            record, last = {"session": index, "epoch": epoch, **made}, epoch + 1 == t.epochs
            if t.evaluate_every and (epoch + 1) % t.evaluate_every == 0 and not last:  # the last is the session's own
                record.update(self.validate(index))
            if t.report == "best" and (last or "mAP_seen" in record):
                best = self._better(best, index, epoch)
            if not self.world.main:
                continue
            self.run.append_epoch(record)
            self.progress.epoch(record)
            if not last:
                self.run.save_resume(
                    {
                        "session": index,
                        "epoch": epoch + 1,
                        "made_with": self.made_with,
                        "seconds": self.spent_before + time.perf_counter() - began,
                        "model": self.model.state_dict(),
                        "learner": learner.state(),
                        "method": _plain(self.method.state()),
                        "best": best,
                    }
                )
        return best

    def validate(self, index: int) -> dict[str, float]:
        """mAP base, seen and new inside a session, from one pass over the images with a seen class."""
        stop = self.protocol.sessions[index].stop
        rows = np.flatnonzero(self.test_labels[:, :stop].any(axis=1))
        scores = self._predict_test(rows)[:, :stop]
        metrics = session_metrics(self.protocol, index, scores, self.test_labels[rows], full=False)
        return {key: round(value, 4) for key, value in metrics.items()}

    def _better(self, best: dict[str, Any] | None, index: int, epoch: int) -> dict[str, Any]:
        """The better of the best epoch so far and this one, by mAP on the images with a seen class."""
        pool = self.test(index)
        value = session_metrics(self.protocol, index, pool.scores, pool.labels, full=False)["mAP_seen"]
        if best is not None and best["mAP_seen"] >= value:
            return best
        return {"epoch": epoch, "mAP_seen": value, "scores": torch.from_numpy(np.ascontiguousarray(pool.scores))}

    # ---- test and remember ----

    def _predict_test(self, rows: np.ndarray) -> np.ndarray:
        return predict(self.model, self.test_store, rows, self.runtime, self.experiment.train.eval_batch_size)[0]

    def test(self, index: int) -> Scores:
        return self._pool(self._predict_test(self.test_rows)[:, : self.protocol.sessions[index].stop])

    def _pool(self, scores: np.ndarray) -> Scores:
        return Scores(self.test_set.ids[self.test_rows], scores, self.test_labels[self.test_rows])

    def _remember(self, index: int, view: View) -> Ahead | None:
        """Choose exemplars for the classes just learned; score the next session's images if the method asks for it.

        Both want the model as it is now, so they share one pass over their images.
        """
        replay, own = self.experiment.replay, view.rows[: view.own]
        stores = self.method.replays and self.memory.quota(self.protocol.sessions[index].stop) > 0
        herds = stores and replay.selection == "herding"
        looks_ahead = self.method.asks_old_scores and index + 1 < len(self.protocol.sessions)
        if stores and not herds:
            self._choose_exemplars(index, own, None)
        wanted = [own] if herds else []
        if looks_ahead:
            wanted += [self.protocol.train_images(self.train_labels, index + 1), self.memory.images]
        if not wanted:
            return None
        rows = np.unique(np.concatenate(wanted))
        size = self.experiment.train.eval_batch_size
        scores, features = predict(self.model, self.train_store, rows, self.runtime, size, features=herds)
        if herds:
            self._choose_exemplars(index, own, features[np.searchsorted(rows, own)])
        if not looks_ahead:
            return None
        memory = self.memory if self.method.replays else None
        coming = session_view(self.protocol, self.train_labels, index + 1, memory, self.method.sees).rows
        return Ahead(self.train_set.ids[coming], scores[np.searchsorted(rows, coming)])

    def _choose_exemplars(self, index: int, own: np.ndarray, features: np.ndarray | None) -> None:
        session = self.protocol.sessions[index]
        self.memory.update(index, own, self.train_labels[own][:, session.columns], features, self.experiment.seed)
        self.memory.load_state(self.world.decide(self.memory.state()))  # one set of exemplars for all processes
        quota = self.memory.quota(session.stop)
        short = [
            f"{name} ({len(ranking)})"
            for name, ranking in zip(self.protocol.classes, self.memory.ranked, strict=False)
            if len(ranking) < quota
        ]
        if short:
            self.progress.log(f"fewer images than exemplars asked for: {', '.join(short)}")

    # ---- resume ----

    def _restore(self) -> tuple[int, dict[str, Any] | None]:
        """Bring model, method and memory to the first unfinished session; returns it and its interrupted part."""
        finished = self.run.finished_sessions
        for index in range(finished):
            learning = self.learning_session(index)
            if learning is not None:
                self._grow(learning)
        if finished:
            state = self.run.session_state(finished - 1)
            self.run.check_made_with(state["made_with"], self.made_with)
            self.model.load_state_dict(self.run.model_state(finished - 1))
            self.method.load_state(state["method"])
            self.memory.load_state(state["memory"])
            self.ahead = self.run.ahead(finished - 1)
        resume = self.run.load_resume()
        if resume and resume["session"] != finished:
            resume = None  # left over from a session that was finished after all
        if resume:
            self.run.check_made_with(resume["made_with"], self.made_with)
        if self.world.main:
            self.run.drop_epochs_after(finished, resume["epoch"] if resume else 0)
        if resume or (finished and finished < len(self.protocol.sessions)):
            self.progress.log(f"continuing at session {finished + 1}, epoch {resume['epoch'] + 1 if resume else 1}")
        return finished, resume


def _plain(state: dict) -> dict:
    """A method's state as plain JSON values, whatever the method gave."""
    return json.loads(json.dumps(state))
