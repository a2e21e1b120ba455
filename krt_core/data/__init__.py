"""Data sets: every source becomes one `MultiLabelDataset`, its labels read once and then cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..config import Data
from ..errors import DataError
from ..machine.home import atomic_write, data_dir, resolve
from .dataset import MultiLabelDataset, Split

DEFAULT_ROOTS = {"digits": "data/digits", "coco2014": "data/coco2014", "voc2007": "data/voc2007"}


def open_dataset(config: Data, split: Split) -> MultiLabelDataset:
    """Open the train or test half of the configured data set.

    Labels come from a cache under ``data/cache`` while the source files are unchanged. Raises DataError, with the
    command that gets the data, when the folder is missing or does not hold what the layout promises.
    """
    from . import coco, digits, voc  # each pulls its own reader library

    root = dataset_root(config)
    if config.dataset == "digits":
        digits.make(root)  # returns at once if it is there
    if not root.is_dir():
        raise DataError(f"There is no data folder {root}. {_how_to_get(config)}")
    reader = voc if config.dataset.startswith("voc") else coco
    source = reader.locate(root, split)
    dataset = _cached(
        config.dataset, split, source.root, source.files, lambda: reader.read(source, config.dataset, split)
    )
    return dataset.select_classes(config.classes) if config.classes else dataset


def dataset_root(config: Data) -> Path:
    if not config.root and config.dataset not in DEFAULT_ROOTS:
        raise DataError(f"data.dataset={config.dataset} reads a folder of your own: set data.root to it.")
    return resolve(config.root or DEFAULT_ROOTS[config.dataset])


def _how_to_get(config: Data) -> str:
    if config.root:
        return "Set data.root to the folder that holds it."
    return f"Get it with: krt data {config.dataset}"


def fingerprint(files: list[Path]) -> str:
    """Hash of names, sizes, times and the first and last megabyte of files: changes when they do, without reading
    hundreds of megabytes of annotations each time."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, stat.st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()[:16]


CACHE_FORMAT = 1  # raise it when a reader's result changes


def _cached(
    name: str, split: str, root: Path, files: list[Path], read: Callable[[], MultiLabelDataset]
) -> MultiLabelDataset:
    path = data_dir() / "cache" / f"labels-{name}-{split}-{fingerprint(files)}-v{CACHE_FORMAT}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            head = json.loads(str(stored["head"]))
            labels = np.unpackbits(stored["labels"], axis=1, count=len(head["classes"])).astype(bool)
            return MultiLabelDataset(
                name, split, root, stored["ids"], stored["paths"], labels, tuple(head["classes"]), stored["boxes"],
                tuple(head["notes"]),
            )  # fmt: skip
    dataset = read()
    head = json.dumps({"classes": dataset.classes, "notes": dataset.notes})
    packed = np.packbits(dataset.labels, axis=1)
    columns = dict(head=head, ids=dataset.ids, paths=dataset.paths, labels=packed, boxes=dataset.boxes)
    atomic_write(path, lambda file: np.savez(file, **columns))
    return dataset
