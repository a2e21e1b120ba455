"""What a protocol makes of a data set: its sessions in numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ...data import MultiLabelDataset
from ...protocol import Protocol


def split_table(protocol: Protocol, train: MultiLabelDataset, test: MultiLabelDataset) -> pd.DataFrame:
    """A line per session, from 1: its new classes, its training images, and the test images on which the seen and the
    new classes are scored, as far as they had come by then."""
    protocol, test_labels = protocol.on(train), protocol.on(test).reorder(test.labels)
    labels = protocol.reorder(train.truth)
    came = np.zeros(len(test)) if test.arrived is None else test.arrived
    subsets = [
        protocol.test_subsets(test_labels[came <= protocol.arrival(s.index)], s.index) for s in protocol.sessions
    ]
    columns = {
        "new classes": [", ".join(protocol.class_names(s.index)) for s in protocol.sessions],
        "training images": [len(protocol.train_images(labels, s.index)) for s in protocol.sessions],
        "test images, seen": [len(subset["seen"][0]) for subset in subsets],
        "test images, new": [len(subset["new"][0]) for subset in subsets],
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(1, len(subsets) + 1, name="session"))


def split_words(protocol: Protocol, train: MultiLabelDataset, test: MultiLabelDataset) -> str:
    """Two lines: images, classes and protocol; labels per image, as far as they are known."""
    mean, test_mean = train.labels.sum(axis=1).mean(), test.labels.sum(axis=1).mean()
    unknown = (
        "" if train.unknown is None else f"; {100 * train.unknown.mean():.0f} % of the training labels are unknown"
    )
    return (
        f"{train.name}: {len(train)} training and {len(test)} test images, {len(train.classes)} classes, "
        f"{protocol.name}\nlabels per image: {mean:.2f} in training, {test_mean:.2f} in test{unknown}"
    )
