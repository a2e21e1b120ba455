"""THE loop. Each session runs through five stanzas: see, grow, learn, test, remember.

`train` writes a run folder and nothing else. Starting it again continues from the last finished epoch; a finished run
returns at once.
"""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import Experiment
from .data import open_dataset
from .data.pipeline import ImageStore, batches
from .device import Runtime, choose_runtime, environment
from .errors import DataError, RunError
from .evaluate import predict, session_metrics
from .memory import Memory
from .methods import METHODS, Context
from .model import Network
from .model.checkpoint import load_backbone
from .model.network import build_network
from .optim import make_optimiser, make_schedule, set_seed
from .progress import Progress
from .protocol import Session, check_labels, make_protocol
from .run import Run, Scores
from .view import View, session_view


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
    run = Run.create(experiment, folder)
    if run.done:
        return run
    progress = Progress(run.folder, show)
    try:
        with run.lock():
            _Training(run, progress, choose_runtime(experiment.train.precision, device), allow_leak, max_steps).go()
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
        run.write_json("environment.json", environment(runtime))
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
        self.made_with = {"inputs": self.train_set.digest() + self.test_set.digest(), "max_steps": max_steps}
        self.test_rows = np.flatnonzero(self.test_labels.any(axis=1))  # the fixed pool: images with any class
        progress.log(
            f"{run.folder.name}: {len(self.train_set)} training and {len(self.test_set)} test images, "
            f"{len(self.protocol.sessions)} sessions ({self.protocol.name}), "
            f"{runtime.device}, {runtime.reasons['precision']}"
        )
        for note in (*self.train_set.notes, *self.test_set.notes):
            progress.log(f"data: {note}")

        store = (e.data.image_size, e.data.cache, e.data.workers, progress.decoding)
        self.train_store, self.test_store = ImageStore(self.train_set, *store), ImageStore(self.test_set, *store)

        set_seed(e.seed)
        self.method = METHODS[e.method](run.experiment.options, e)
        self.memory = Memory(e.replay)
        self.model = build_network(e)
        self.weights = load_backbone(self.model.backbone, e.model, self.protocol.classes, allow_leak)
        self.model.to(runtime.device, runtime.weights_dtype)
        self.model.to(memory_format=torch.channels_last)
        self.old_model: Network | None = None

    # ---- the loop ----

    def go(self) -> None:
        first, resume = self._restore()
        done = [self.steps_of(t) for t in range(len(self.protocol.sessions))]
        start_epoch = resume["epoch"] if resume else 0
        per_epoch = done[first] // self.experiment.train.epochs if first < len(done) else 0
        self.progress.plan(sum(done), sum(done[:first]) + per_epoch * start_epoch)
        for index in range(first, len(self.protocol.sessions)):
            self.session(index, resume)
            resume = None
        self.finish()

    def session(self, index: int, resume: dict[str, Any] | None) -> None:
        began, spent = time.perf_counter(), 0.0

        # 1. See: the session's images, with labels of its own classes only, and the stored exemplars.
        memory = self.memory if self.method.replays else None
        view = session_view(self.protocol, self.train_labels, index, memory, self.method.sees)

        # 2. Grow: a token and a head for the new classes; the model so far stays as the old model.
        learning = self.learning_session(index)
        if learning is not None:
            self.old_model = self._frozen_copy() if index else None
            self._grow(learning)
            context = self._context(learning, view)
            if resume:
                self.method.load_state(resume["method"])
            self.method.start_session(context)

            # 3. Learn: the method turns batches into a loss; validate on the way.
            spent = self.epochs(index, view, resume)
            self.method.end_session(context)
            self.old_model = None

        # 4. Test: one pass over the fixed pool, from which every subset is scored.
        scores = self.test(index)
        metrics = session_metrics(self.protocol, index, scores.scores, scores.labels, full=True)

        # 5. Remember: choose exemplars, then write the session down.
        if self.method.replays and learning is not None:
            self._choose_exemplars(index, view)
        state = {
            "session": index,
            "classes": list(self.protocol.classes),
            "new_classes": list(self.protocol.class_names(index)),
            "train_images": view.own,
            "replayed_images": len(view.rows) - view.own,
            "test_images": len(scores.ids),
            "seconds": round(spent + time.perf_counter() - began, 2),
            "metrics": metrics,
            "method": self.method.state(),
            "memory": self.memory.state(),
            "exemplar_ids": [self.train_set.ids[ranking].tolist() for ranking in self.memory.ranked],
            "weights": self.weights,
            "made_with": self.made_with,
        }
        self.run.write_session(index, self.model.state_dict(), scores, state)
        self.run.clear_resume()
        self.progress.log(
            f"session {index + 1}/{len(self.protocol.sessions)} ({', '.join(self.protocol.class_names(index))}): "
            f"mAP seen {metrics['mAP_seen']:.2f}, base {metrics['mAP_base']:.2f}, new {metrics['mAP_new']:.2f}"
        )

    def finish(self) -> None:
        run, curve = self.run, self.run.curve()
        states = [run.session_state(t) for t in range(len(self.protocol.sessions))]
        lost = run.forgetting()
        last = states[-1]["metrics"]
        summary = {
            "method": self.experiment.method,
            "dataset": self.experiment.data.dataset,
            "protocol": self.protocol.name,
            "seed": self.experiment.seed,
            "average_mAP": round(float(curve.mean()), 4),
            "last_mAP": round(float(curve[-1]), 4),
            "forgetting": round(lost.get("max_class_fixed", 0.0), 4),
            "forgetting_definitions": {key: round(value, 4) for key, value in lost.items()},
            "mAP_per_session": curve.round(4).tolist(),
            **{key: round(last[key], 4) for key in ("CP", "CR", "CF1", "OP", "OR", "OF1")},
            "seconds": round(sum(s["seconds"] for s in states), 1),
            "exemplars": len(self.memory.images),
            "weights": self.weights,
            "config_hash": self.experiment.hash(),
            "commit": run.environment.get("commit"),
        }
        if self.max_steps is None:
            run.write_json("DONE", summary)
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

    def _frozen_copy(self) -> Network:
        old = copy.deepcopy(self.model).eval()
        return old.requires_grad_(False)

    def _context(self, session: Session, view: View) -> Context:
        def score(model: Network) -> np.ndarray:
            size = self.experiment.train.eval_batch_size
            return predict(model, self.train_store, view.rows, self.runtime, size)[0]

        return Context(
            self.experiment, self.protocol, session, self.model, self.old_model, self.model, score, self.progress.log
        )

    # ---- learn ----

    def epochs(self, index: int, view: View, resume: dict[str, Any] | None) -> float:
        """Train the session; returns the seconds that an earlier, interrupted start had already spent on it."""
        t = self.experiment.train
        steps = math.ceil(len(view.rows) / t.batch_size)
        optimiser = make_optimiser(self.model, t.weight_decay)
        schedule = make_schedule(optimiser, t, index == 0, steps)
        scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.dtype == torch.float16)
        start, spent, began = 0, 0.0, time.perf_counter()
        if resume:
            start, spent = resume["epoch"], resume["seconds"]
            self.model.load_state_dict(resume["model"])
            optimiser.load_state_dict(resume["optimiser"])
            schedule.load_state_dict(resume["schedule"])
            scaler.load_state_dict(resume["scaler"])
        board = self._tensorboard()
        for epoch in range(start, t.epochs):
            # Everything random in an epoch follows from these numbers, so a repeated epoch is the same epoch.
            set_seed(self.experiment.seed, index, epoch)
            seed = (self.experiment.seed, index, epoch)
            self.model.train()
            tick, sums, images, made = time.perf_counter(), {}, 0, 0
            for batch in batches(
                self.train_store, view.rows, view.labels, t.batch_size, self.runtime, t.augment, seed, shuffle=True
            ):
                with self.runtime.autocast():
                    result = self.method.loss(batch)
                scaler.scale(result["loss"]).backward()
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                schedule.step()
                for name, part in {"loss": result["loss"], **result["parts"]}.items():
                    sums[name] = sums.get(name, 0.0) + part.detach()
                images += len(batch.rows)
                made += 1
                self.progress.step(session=index, sessions=len(self.protocol.sessions), epoch=epoch, epochs=t.epochs)
                if made == self.max_steps:
                    break
            seconds = time.perf_counter() - tick
            means = {name: float(value) / made for name, value in sums.items()}
            if not math.isfinite(means["loss"]):
                raise RunError(
                    f"{self.run.folder.name}: the loss became {means['loss']} in session {index + 1}, "
                    f"epoch {epoch + 1}. "
                    "Lower train.base_lr or train.lr, or set train.precision=float32."
                )
            record = {
                "session": index, "epoch": epoch, **{k: round(v, 5) for k, v in means.items()},
                "lr": schedule.get_last_lr()[0], "images": images, "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1),
            }  # fmt: skip
            if t.evaluate_every and (epoch + 1) % t.evaluate_every == 0 and epoch + 1 < t.epochs:
                record.update(self.validate(index))
            self.run.append_epoch(record)
            if board:
                for key, value in record.items():
                    if key not in ("session", "epoch"):
                        board.add_scalar(f"session_{index:02d}/{key}", value, epoch)
            self._report_epoch(record)
            if epoch + 1 < t.epochs:  # after the last one the session itself is written
                self.run.save_resume(
                    {
                        "session": index,
                        "epoch": epoch + 1,
                        "made_with": self.made_with,
                        "seconds": spent + time.perf_counter() - began,
                        "model": self.model.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "schedule": schedule.state_dict(),
                        "scaler": scaler.state_dict(),
                        "method": json.loads(json.dumps(self.method.state())),  # plain values, whatever the method gave
                    }
                )
        if board:
            board.close()
        return spent

    def validate(self, index: int) -> dict[str, float]:
        """mAP base, seen and new inside a session, from one pass over the images with a seen class."""
        stop = self.protocol.sessions[index].stop
        rows = np.flatnonzero(self.test_labels[:, :stop].any(axis=1))
        scores = self._predict_test(rows)[:, :stop]
        metrics = session_metrics(self.protocol, index, scores, self.test_labels[rows], full=False)
        return {key: round(value, 4) for key, value in metrics.items()}

    def _report_epoch(self, record: dict) -> None:
        self.progress.write(force=True, loss=record["loss"], images_per_second=record["images_per_second"])
        parts = f"loss {record['loss']:.2f}, {record['images_per_second']:.0f} images/s"
        if "mAP_seen" in record:
            parts += f", mAP seen {record['mAP_seen']:.2f}"
        self.progress.log(f"  session {record['session'] + 1} epoch {record['epoch'] + 1}: {parts}")

    def _tensorboard(self):
        if not self.experiment.train.tensorboard:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError("train.tensorboard needs its package: pip install tensorboard") from None
        return SummaryWriter(self.run.folder / "tensorboard")

    # ---- test and remember ----

    def _predict_test(self, rows: np.ndarray) -> np.ndarray:
        return predict(self.model, self.test_store, rows, self.runtime, self.experiment.train.eval_batch_size)[0]

    def test(self, index: int) -> Scores:
        scores = self._predict_test(self.test_rows)[:, : self.protocol.sessions[index].stop]
        return Scores(self.test_set.ids[self.test_rows], scores, self.test_labels[self.test_rows])

    def _choose_exemplars(self, index: int, view: View) -> None:
        replay, columns = self.experiment.replay, self.protocol.sessions[index].columns
        if not self.memory.quota(self.protocol.sessions[index].stop):
            return
        rows = view.rows[: view.own]
        features = None
        if replay.selection == "herding":
            size = self.experiment.train.eval_batch_size
            features = predict(self.model, self.train_store, rows, self.runtime, size, features=True)[1]
        self.memory.update(index, rows, self.train_labels[rows][:, columns], features, self.experiment.seed)
        short = [
            f"{name} ({len(ranking)})"
            for name, ranking in zip(self.protocol.classes, self.memory.ranked, strict=False)
            if len(ranking) < self.memory.quota(self.protocol.sessions[index].stop)
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
            self._check_made_with(state["made_with"])
            self.model.load_state_dict(self.run.model_state(finished - 1))
            self.method.load_state(state["method"])
            self.memory.load_state(state["memory"])
        resume = self.run.load_resume()
        if resume and resume["session"] != finished:
            resume = None  # left over from a session that was finished after all
        if resume:
            self._check_made_with(resume["made_with"])
        self.run.drop_epochs_after(finished, resume["epoch"] if resume else 0)
        if resume or (finished and finished < len(self.protocol.sessions)):
            self.progress.log(f"continuing at session {finished + 1}, epoch {resume['epoch'] + 1 if resume else 1}")
        return finished, resume

    def _check_made_with(self, stored: dict[str, Any]) -> None:
        if stored["inputs"] != self.made_with["inputs"]:
            raise RunError(
                f"{self.run.folder}: the data set has changed since this run began. Start it in a new folder."
            )
        if stored["max_steps"] != self.made_with["max_steps"]:
            raise RunError(
                f"{self.run.folder} was begun with --max-steps {stored['max_steps']}, which is not this training. "
                "Delete it or choose another --folder."
            )
