"""The sizes that published data sets have: a set that has others is not the one of the papers."""

from __future__ import annotations

import csv

import numpy as np

from ..errors import DataError
from ..reference import text
from .dataset import MultiLabelDataset


def check_sizes(train: MultiLabelDataset, test: MultiLabelDataset | None) -> None:
    """DataError where a half of ``coco2014`` or ``voc2007``, with all its classes in alphabetical order, has not as
    many images in each session of the published protocols as ``reference/sizes.csv`` says. A test half that is not
    looked at is None."""
    for row in csv.DictReader(text("sizes.csv").splitlines()):
        half = train if row["split"] == "train" else test
        if half is None or row["dataset"] != half.name:
            continue
        expected = [int(count) for count in row["images"].split()]
        found = sizes(half.labels, int(row["base"]), int(row["increment"]), row["counts"] == "seen")
        if found != expected:
            own = "voc" if half.name == "voc2007" else "coco"
            raise DataError(
                f"{half.source} is not that of {half.name}: sessions of {row['base']} and then {row['increment']} "
                f"classes have {_said(found)} {half.split} images, where {_said(expected)} are published. Get it anew "
                f"with krt data {half.name}; a set of your own is data.dataset={own} data.root={half.root}"
            )


def sizes(labels: np.ndarray, base: int, increment: int, seen: bool = False) -> list[int]:
    """Images with a class of each session, or with any class up to it; labels (n, C) in alphabetical order."""
    stops = [base, *range(base + increment, labels.shape[1] + 1, increment)]
    starts = [0] * len(stops) if seen else [0, *stops[:-1]]
    return [int(labels[:, a:b].any(axis=1).sum()) for a, b in zip(starts, stops, strict=True)]


def _said(counts: list[int]) -> str:
    return " ".join(map(str, counts))
