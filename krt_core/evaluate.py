"""One pass over images: probabilities and, where wanted, pooled features. No image is padded or counted twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .config import Experiment
from .data import open_dataset
from .data.pipeline import batches
from .data.store import ImageStore
from .errors import CheckpointError, ConfigError, RunError
from .machine.device import Runtime, choose_runtime, environment
from .machine.distributed import World
from .metrics import average_precision, precision_recall_f1
from .model import Network
from .model.inference import for_inference
from .model.network import build_network
from .protocol import Protocol, make_protocol
from .runs.folder import Run, Scores
from .runs.progress import Progress
from .weights.checkpoint import inspect
from .weights.published import load_published, session_sizes


@torch.inference_mode()
def predict(
    model: Network, store: ImageStore, rows: np.ndarray, runtime: Runtime, batch_size: int, features: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (m, C) float32 in learning order and pooled features (m, channels) or None, with test transforms.

    The model itself is left alone. Several processes score a part of the rows each, and every one gets the whole.
    """
    model, world = for_inference(model, runtime.dtype), runtime.world
    scores, pooled = [], []
    world = world if len(rows) >= world.size else World()  # too few to share: everyone scores all of them
    rows = world.part(rows)
    alone = replace(runtime, world=World())  # the rows are already this process's own
    for batch in batches(store, rows, np.zeros((len(rows), 0), bool), batch_size, alone):
        with runtime.autocast():
            output = model(batch.images)
        scores.append(torch.sigmoid(output.logits).cpu().numpy())
        if features:
            pooled.append(output.pooled.cpu().numpy())
    return (
        world.gather(np.concatenate(scores).astype(np.float32)),
        world.gather(np.concatenate(pooled)) if features else None,
    )


def session_metrics(protocol: Protocol, session: int, scores: np.ndarray, labels: np.ndarray, full: bool) -> dict:
    """mAP of *base*, *seen* and *new*, each on its own images and classes; with ``full`` also AP, CP … OF1 on *seen*.

    scores (n, ≥ C) and labels (n, ≥ C) over the same test images in learning order.
    """
    out: dict = {}
    for subset, (rows, columns) in protocol.test_subsets(labels, session).items():
        s, y = scores[rows][:, columns], labels[rows][:, columns]
        ap = average_precision(s, y)
        out[f"mAP_{subset}"] = float(ap.mean())
        if full and subset == "seen":
            out["AP_seen"] = dict(zip(protocol.classes, ap.round(4).tolist(), strict=False))
            out.update(precision_recall_f1(s, y))
    return out


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
    p = experiment.protocol
    protocol = make_protocol(test_set.classes, p.base, p.increment, p.order_seed)
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
    run = Run.create(experiment, folder)
    progress = Progress(run.folder)
    labels = protocol.reorder(test_set.labels)
    rows = np.flatnonzero(labels.any(axis=1))
    e = experiment.data
    store = ImageStore(test_set, e.image_size, e.cache, e.workers, progress.decoding, e.cache_size)
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
            began, checkpoint = time.perf_counter(), found[index]
            network = build_network(experiment)
            load_published(network, checkpoint.tensors, str(checkpoint.path))
            network.to(runtime.device)
            scores = predict(network, store, rows, runtime, experiment.train.eval_batch_size)[0]
            pool = Scores(test_set.ids[rows], scores, labels[rows])
            metrics = session_metrics(protocol, index, scores, labels[rows], full=True)
            state = {
                "session": index,
                "classes": list(protocol.classes),
                "new_classes": list(protocol.class_names(index)),
                "test_images": len(rows),
                "seconds": round(time.perf_counter() - began, 2),
                "metrics": metrics,
                "method": {},
                "memory": {"ranked": [], "sessions": []},
                "exemplar_ids": [],
                "weights": {**about, "file": checkpoint.path.name, "sha256": checkpoint.sha256},
            }
            run.write_session(index, network.state_dict(), pool, state)
            progress.log(f"{checkpoint.path.name}: session {index + 1}, mAP seen {metrics['mAP_seen']:.2f}")
    if len(found) == len(sizes):
        run.write_json("DONE", run.final_summary())
    return run
