"""One pass of testing: probabilities and, where wanted, pooled features. No image is padded or counted twice."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import Experiment, Train
from .data import Halves, MultiLabelDataset, open_dataset
from .data.pipeline import batches, small_work
from .data.store import ImageStore
from .errors import CheckpointError, ConfigError, RunError
from .machine.device import Runtime, choose_runtime, environment
from .machine.distributed import World
from .memory import memory_of
from .methods import Method
from .metrics import average_precision, precision_recall_f1
from .model import Network
from .model.inference import for_inference
from .protocol import Protocol, protocol_of
from .runs.folder import Run, Scores
from .runs.progress import Progress
from .weights.checkpoint import Checkpoint, inspect
from .weights.convert import network_of
from .weights.published import load_published, session_sizes


@torch.inference_mode()
def predict(
    model: Network,
    store: ImageStore,
    rows: np.ndarray,
    runtime: Runtime,
    batch_size: int,
    features: np.ndarray | None = None,
    method: Method | None = None,
    logits: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (m, C) float32 in learning order and pooled features (k, channels) or None, with test transforms.

    features (m,) bool: of which k rows features are wanted. method: asked for the scores if it has its own way to them.
    logits: the model's logits are wanted, not scores. The model itself is left alone. Several processes score a part of
    the rows each; every one gets all scores, and the main one alone the features. Raises RunError, naming an image,
    where scores are not numbers.
    """
    model, world = for_inference(model, runtime.dtype), runtime.world
    own = method is not None and method.has_own("scores") and not logits
    scores, pooled, seen = [], None, 0
    world = world if len(rows) >= world.size else World()  # too few to share: everyone scores all of them
    every, rows = rows, world.part(rows)
    wanted = None if features is None else world.part(features)
    alone = replace(runtime, world=World())  # the rows are already this process's own
    with small_work(store, runtime.device):
        for batch in batches(store, rows, np.zeros((len(rows), 0), bool), batch_size, alone):
            with runtime.autocast():
                said = method.scores(model, batch.images) if own else None
                output = model(batch.images) if features is not None or not own else None
            if said is None:
                said = output.logits if logits else torch.sigmoid(output.logits)
            scores.append(said.float().cpu().numpy())
            if wanted is not None:
                mine = wanted[seen : seen + len(batch.rows)]
                found, before = output.pooled.cpu().numpy()[mine], int(wanted[:seen].sum())
                pooled = np.empty((int(wanted.sum()), found.shape[1]), found.dtype) if pooled is None else pooled
                pooled[before : before + len(found)] = found
                seen += len(batch.rows)
    whole = world.gather(np.concatenate(scores).astype(np.float32))
    if (broken := np.isnan(whole).any(axis=1)).any():
        raise RunError(
            f"The model's scores of image {store.dataset.ids[every[broken.argmax()]]} are not numbers (NaN), as those "
            f"of {broken.sum()} of {len(whole)}. Lower train.base_lr or train.lr, or take train.precision=float32."
        )
    return whole, None if pooled is None else world.collect(pooled)


def session_metrics(protocol: Protocol, session: int, scores: np.ndarray, labels: np.ndarray, full: bool) -> dict:
    """mAP of *base*, *seen* and *new*, each on its own images and classes; with ``full`` also AP, CP … OF1 on *seen*.

    scores (n, ≥ C) and labels (n, ≥ C) over the same test images in learning order. Of a run that has grown, classes of
    which no test image is there are left out, and of *seen* those that no test image lacks.
    """
    out: dict = {}
    for subset, (rows, columns) in protocol.test_subsets(labels, session).items():
        s, y = scores[rows][:, columns], labels[rows][:, columns]
        tested = (y > 0).any(axis=0) if protocol.added else np.ones(y.shape[1], bool)
        if protocol.added and subset == "seen":
            tested &= (y == 0).any(axis=0)
        ap = np.where(tested, average_precision(s, y), np.nan)
        out[f"mAP_{subset}"] = float(ap[tested].mean()) if tested.any() else np.nan
        if full and subset == "seen":
            out["AP_seen"] = dict(zip(protocol.classes, ap.round(4).tolist(), strict=False))
            out.update(precision_recall_f1(s[:, tested], y[:, tested]))
    return out


class Tester:
    """The test images of a run, or its validation images, scored whenever it wants to know. held (n,) bool: which of
    the data set's images are its; None: all, and they are the test images."""

    __test__ = False  # by its name pytest would take it for tests

    def __init__(
        self, dataset: MultiLabelDataset, protocol: Protocol, store: ImageStore, runtime: Runtime, batch_size: int,
        held: np.ndarray | None = None,
    ):  # fmt: skip
        self.dataset, self.protocol, self.store = dataset, protocol, store
        self.runtime, self.batch_size = runtime, batch_size
        self.images = "test" if held is None else "validation"
        self.labels = protocol.reorder(dataset.truth)
        if held is not None:
            self.labels = self.labels * held[:, None]
        self.rows = np.flatnonzero((self.labels > 0).any(axis=1))  # the fixed pool: images with any class
        self.last: np.ndarray | None = None  # scores of the last pool, where the model stays

    def pool(self, model: Network, session: int, method: Method | None = None, unchanged: bool = False) -> Scores:
        """Scores of the fixed pool after a session: one pass, from which every subset is scored.

        unchanged: the model is the one of the call before, whose scores are taken again.
        """
        scores = self.last if unchanged else None
        if scores is None:
            scores = predict(model, self.store, self.rows, self.runtime, self.batch_size, method=method)[0]
        self.last = scores if method is not None and method.sees == "all" else None  # others change each session
        scores = scores[:, : self.protocol.sessions[session].stop]
        return Scores(self.dataset.ids[self.rows], scores, self.labels[self.rows])

    def validate(self, model: Network, session: int, method: Method | None = None) -> dict[str, Any]:
        """mAP base, seen and new inside a session, from one pass over the images with a seen class, and of which images
        they are ("test" or "validation")."""
        rows = np.flatnonzero((self.labels[:, : self.protocol.sessions[session].stop] > 0).any(axis=1))
        scores = self._predict(model, rows, session, method)
        metrics = session_metrics(self.protocol, session, scores, self.labels[rows], full=False)
        return {**{key: round(value, 4) for key, value in metrics.items()}, "mAP_of": self.images}

    def better(
        self, best: dict[str, Any] | None, model: Network, session: int, epoch: int, method: Method, weights: bool
    ) -> dict[str, Any]:
        """The better of the best epoch so far and this one, by mAP on the images with a seen class: its epoch, its
        mAP_seen, of which images that is, and for `reported` the scores of these images or, where others are to be
        reported, the weights of the model and the state of the method."""
        before, pool = self.last, self.pool(model, session, method)
        value = session_metrics(self.protocol, session, pool.scores, pool.labels, full=False)["mAP_seen"]
        if best is not None and best["mAP_seen"] >= value:
            self.last = before  # of what later sessions report, where the model stays
            return best
        best = {"epoch": epoch, "mAP_seen": value, "mAP_of": self.images}
        if not weights:
            return {**best, "scores": torch.from_numpy(np.ascontiguousarray(pool.scores))}
        weights_now = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        return {**best, "model": weights_now, "method": copy.deepcopy(method.state())}

    def reported(self, best: dict[str, Any] | None, model: Network, session: int, method: Method, same: bool) -> Scores:
        """The fixed pool after a session, of what its best epoch left (`better`), or else of the model; same: as
        `pool`'s ``unchanged``."""
        if best is None:
            return self.pool(model, session, method, same)
        if "scores" in best:
            return Scores(self.dataset.ids[self.rows], best["scores"].numpy(), self.labels[self.rows])
        last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        kept = copy.deepcopy(method.state())
        model.load_state_dict(best["model"])
        method.load_state(best.get("method", kept))  # a resume.pt of an older version has none
        try:
            return self.pool(model, session, method)
        finally:
            model.load_state_dict(last)  # training goes on from there
            method.load_state(kept)

    def _predict(self, model: Network, rows: np.ndarray, session: int, method: Method | None) -> np.ndarray:
        scores = predict(model, self.store, rows, self.runtime, self.batch_size, method=method)[0]
        return scores[:, : self.protocol.sessions[session].stop]


def testers(
    config: Train, halves: Halves, protocol: Protocol, stores: tuple[ImageStore, ImageStore], runtime: Runtime
) -> tuple[Tester, Tester]:  # fmt: skip
    """Who tests a run after each session, and who validates it inside one: the same where no images are held out for
    that, or where it is tested on them. stores: of the training and of the test images."""
    train, held, test = halves
    how = runtime, config.eval_batch_size
    on_held = Tester(train, protocol, stores[0], *how, held) if held.any() or test is None else None
    on_test = Tester(test, protocol, stores[1], *how) if test is not None else None
    first, second = on_test or on_held, on_held or on_test
    assert first and second  # a training has one of them  # nosec B101
    return first, second


def import_published(
    experiment: Experiment, files: Sequence[str | Path], folder: str | Path | None = None, device: str | None = None
) -> Run:
    """Make a run folder of models that the published code saved, one file after each session, first session first.

    experiment: the setting they were trained in (method krt). Each model is scored on the whole test set, as if it had
    been trained here; the run is done when every session has its file. Raises CheckpointError for a file of another
    layout, session or size, DataError without the data set.
    """
    if experiment.method != "krt" or experiment.options.head != "ica":
        raise ConfigError("Published models are KRT with the ICA head: import them with method=krt.")
    runtime = choose_runtime(experiment.train.precision, device)
    test_set = open_dataset(experiment.data, "test")
    protocol = protocol_of(experiment.protocol, test_set.classes)
    found = _of_sessions(files, protocol)
    run = Run.create(experiment, folder)
    progress = Progress(run.folder)
    e = experiment.data
    store = ImageStore(test_set, e.image_size, e.cache, e.workers, progress.decoding, e.cache_size)
    tester = Tester(test_set, protocol, store, runtime, experiment.train.eval_batch_size)
    about = {
        "weights": "published model",
        # The published code's README links to weights that know all 80 COCO classes, so a leak can't be excluded.
        "trained_on": "unknown first weights, then by the published code",
        "leak": None,
    }
    run.write_json("environment.json", {**environment(runtime), "weights": about})
    progress.log("what these models' first weights had seen is unknown: their numbers may hold leaked labels")
    with run.lock():
        for index in range(min(run.finished_sessions, len(found))):
            before = run.session_state(index)["weights"].get("sha256")
            if before != found[index].sha256:
                raise RunError(
                    f"{run.folder} already holds session {index + 1} from another file than {found[index].path}: "
                    "choose another folder."
                )
        for index in range(run.finished_sessions, len(found)):
            metrics = _test_published(run, found[index], index, tester, about)
            progress.log(f"{found[index].path.name}: session {index + 1}, mAP seen {metrics['mAP_seen']:.2f}")
    if len(found) == len(protocol.sessions):
        run.write_done(run.final_summary())
    return run


def _of_sessions(files: Sequence[str | Path], protocol: Protocol) -> list[Checkpoint]:
    """The files, read; CheckpointError unless each is a published model after the session of its place."""
    sizes = [session.stop - session.start for session in protocol.sessions]
    found = [inspect(file) for file in files]
    for index, checkpoint in enumerate(found):
        if checkpoint.layout != "krt-published":
            raise CheckpointError(f"{checkpoint.path} is no model of the published code ({checkpoint.layout} layout).")
        if session_sizes(checkpoint.tensors) != sizes[: index + 1]:
            raise CheckpointError(
                f"{checkpoint.path} has sessions of {session_sizes(checkpoint.tensors)} classes; after session "
                f"{index + 1} of {protocol.name} it should have {sizes[: index + 1]}. Give the files in their order."
            )
    return found


def _test_published(run: Run, checkpoint: Checkpoint, index: int, tester: Tester, about: dict) -> dict[str, Any]:
    """Score one model and write its session; returns the metrics."""
    began, protocol = time.perf_counter(), tester.protocol
    network = network_of(run.experiment)
    load_published(network, checkpoint.tensors, str(checkpoint.path))
    pool = tester.pool(network.to(tester.runtime.device), index)
    metrics = session_metrics(protocol, index, pool.scores, pool.labels, full=True)
    state = {
        "session": index,
        "classes": list(protocol.classes),
        "new_classes": list(protocol.class_names(index)),
        "test_images": len(pool.ids),
        "seconds": round(time.perf_counter() - began, 2),
        "metrics": metrics,
        "method": {},
        "memory": memory_of(run.experiment.replay).state(),
        "exemplar_ids": [],
        "weights": {**about, "file": checkpoint.path.name, "sha256": checkpoint.sha256},
    }
    run.write_session(index, network.state_dict(), pool, state)
    return metrics
