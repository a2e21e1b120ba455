"""One pass over images: probabilities and, where wanted, pooled features. No image is padded or counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .data.pipeline import ImageStore, batches
from .device import Runtime
from .distributed import World
from .metrics import average_precision, precision_recall_f1
from .model import Network
from .model.inference import for_inference
from .protocol import Protocol


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
