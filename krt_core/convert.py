"""Models of the published code as run folders, for every notebook here; and ours as files for the published code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .config import Experiment
from .data import open_dataset
from .data.pipeline import ImageStore
from .device import choose_runtime, environment
from .errors import CheckpointError, ConfigError, RunError
from .evaluate import predict, session_metrics
from .explain import load_model
from .home import resolve
from .model.checkpoint import inspect
from .model.network import build_network
from .model.published import load_published, save_published, session_sizes
from .progress import Progress
from .protocol import make_protocol
from .run import Run, Scores


def export_published(run: Run, session: int, path: str | Path) -> Path:
    """Write a session's weights as a ``.pth`` file in the published layout; session 0 is the first.

    Raises RunError if the session is not finished, CheckpointError unless the model is ICA on a TResNet.
    """
    path = resolve(path)
    save_published(load_model(run, session), path)
    return path


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
