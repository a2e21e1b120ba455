"""Whether the images of a data set are still the same files, told without reading all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from .dataset import MultiLabelDataset
from .overlap import at_once

SAMPLE, PIECE = 256, 1 << 19  # files that are looked into, and bytes at their beginning and at their end


def image_stamp(datasets: Sequence[MultiLabelDataset], stats: Sequence[Sequence[os.stat_result]]) -> dict[str, str]:
    """Hashes of the files of all images, in the order of the rows: ``sizes``, ``times`` (of their last change) and
    ``sample``, the content of some of them. stats: what the disk says of each data set's images (`overlap.look`).

    Places do not enter, so data that were moved keep the stamp; copied without their times they keep sizes and sample.
    """
    every = [at for half in stats for at in half]
    places = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    chosen = np.unique(np.linspace(0, len(places) - 1, SAMPLE).astype(int))
    contents = at_once(lambda place: _content(place[0].path(place[1])), [places[i] for i in chosen])
    hashes = {
        "sizes": np.array([at.st_size for at in every], np.int64).tobytes(),
        "times": np.array([at.st_mtime_ns for at in every], np.int64).tobytes(),
        "sample": b"".join(contents),
    }
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in hashes.items()}


def _content(path: os.PathLike) -> bytes:
    """Hash of a file's beginning and end; of nothing where it cannot be read, which is said when it is decoded."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            digest.update(file.read(PIECE))
            file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - PIECE))
            digest.update(file.read())
    except OSError:
        return b""
    return digest.digest()
