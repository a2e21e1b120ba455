"""Looking into a trained model (`krt_core.model.explain`): which images are worth it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data import MultiLabelDataset
from ...errors import DataError, did_you_mean
from ...model.explain import Evidence, Look, evidence, grad_cam, look
from ...protocol import Protocol

__all__ = ["Evidence", "Look", "choose_images", "evidence", "grad_cam", "look"]


def choose_images(dataset: MultiLabelDataset, protocol: Protocol, ids: Sequence[str] = (), count: int = 3) -> list[int]:
    """Rows of the named images or, without names, of the first ``count`` that show a base class and classes of two
    later sessions (or as near to that as there is). Raises DataError for an unknown id."""
    if ids:
        known = {str(image): row for row, image in enumerate(dataset.ids)}
        for image in ids:
            if str(image) not in known:
                raise DataError(f"{dataset.name} {dataset.split} has no image {image!r}.{did_you_mean(image, known)}")
        return [known[str(image)] for image in ids]
    labels = protocol.on(dataset).reorder(dataset.labels)
    sessions = np.stack([labels[:, s.columns].any(axis=1) for s in protocol.sessions], axis=1)
    worth = 10 * sessions[:, 0] + sessions[:, 1:].sum(axis=1).clip(max=2)
    return np.argsort(-worth, kind="stable")[:count].tolist()
