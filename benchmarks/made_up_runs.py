"""Finished runs with made-up scores, written as a training would write them, to measure and test what reads runs."""

import numpy as np

from krt_core.config import load_experiment
from krt_core.evaluate import session_metrics
from krt_core.lab.report import published as reference
from krt_core.protocol import make_protocol
from krt_core.runs.folder import Run, Scores

DIGITS = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")


def finished(preset="digits_demo", overrides=(), classes=DIGITS, skill=2.0, leak=None, memory=True, images=40, **at):
    """A finished run folder with made-up scores: written as a training would, in milliseconds."""
    experiment = load_experiment(preset, list(overrides))
    p = experiment.protocol
    protocol = make_protocol(tuple(classes), p.base, p.increment, p.order_seed)
    rng = np.random.default_rng(experiment.seed + 100 * (p.order_seed or 0) + len(str(overrides)))
    labels = rng.random((images, len(classes))) < 0.3
    labels[:: len(classes)] = True  # every class has an image
    run = Run.create(experiment, at.get("folder"))
    about = {"device": "cuda:0", "processes": "1", "precision": "bfloat16: asked for"}
    machine = {"host": "lab", "commit": "abc123", "python": "3.11", "versions": {"torch": "2"}, "reasons": about}
    run.write_json("environment.json", {**machine, "hardware": {"gpu": "GPU X"}, "weights": {"leak": leak}})
    for session in protocol.sessions:
        old = session.index - np.repeat(
            [s.index for s in protocol.sessions], [s.stop - s.start for s in protocol.sessions]
        )
        z = skill * labels / (1 + np.maximum(old, 0)) + rng.normal(size=labels.shape)
        scores = (1 / (1 + np.exp(-z)))[:, : session.stop].astype(np.float32)
        state = {
            "session": session.index,
            "classes": list(protocol.classes),
            "test_images": images,
            "seconds": 10.0 + experiment.seed,
            "metrics": session_metrics(protocol, session.index, scores, labels, full=True),
            "exemplar_ids": [],
            "method": {},
            "weights": {"leak": leak},
        }
        if memory:
            state["peak_memory_mb"] = 100.0 + session.index
        run.write_session(session.index, {}, Scores(np.arange(images).astype(str), scores, labels), state)
    run.write_json("DONE", run.final_summary())
    return run


def coco(overrides=(), **options):
    return finished("coco_b0c10", overrides, sorted(reference.published_classes("coco2014")), **options)


def voc(preset="voc_b0c4_r2", overrides=(), **options):
    return finished(preset, overrides, sorted(reference.published_classes("voc2007")), **options)
