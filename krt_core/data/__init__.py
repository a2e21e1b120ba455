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
from ..options import find, is_dotted
from .dataset import MultiLabelDataset, Split

DEFAULT_ROOTS = {"digits": "data/digits", "coco2014": "data/coco2014", "voc2007": "data/voc2007"}


def open_dataset(config: Data, split: Split) -> MultiLabelDataset:
    """Open the train or test half of the configured data set.

    Labels come from a cache under ``data/cache`` while the source files are unchanged. A reader outside the package,
    ``mylab.tags:read``, is called with the folder and the split, every time. Raises DataError, with the command that
    gets the data, when the folder is missing or does not hold what the layout promises.
    """
    if is_dotted(config.dataset):
        dataset = _read_by(config, split)
        return dataset.select_classes(config.classes) if config.classes else dataset
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


def open_both(config: Data) -> tuple[MultiLabelDataset, MultiLabelDataset]:
    """The training and the test half; DataError where they name different classes."""
    train, test = open_dataset(config, "train"), open_dataset(config, "test")
    if train.classes != test.classes:
        raise DataError(f"{train.root}: training and test annotations name different classes.")
    return train, test


def dataset_root(config: Data) -> Path:
    if not config.root and config.dataset not in DEFAULT_ROOTS:
        raise DataError(f"data.dataset={config.dataset} reads a folder of your own: set data.root to it.")
    return resolve(config.root or DEFAULT_ROOTS[config.dataset])


def _read_by(config: Data, split: Split) -> MultiLabelDataset:
    """What a reader outside the package gives, checked: everything after it counts on this."""
    read, root = find(config.dataset, "data.dataset"), resolve(config.root) if config.root else data_dir()
    made = read(root, split)
    if not isinstance(made, MultiLabelDataset):
        raise DataError(f"{config.dataset} must return a MultiLabelDataset, found a {type(made).__name__}.")
    n, c = len(made.ids), len(made.classes)
    faults = {
        f"labels must be a boolean ({n}, {c}) matrix, one row per id and one column per class; "
        f"found {made.labels.dtype} {made.labels.shape}": made.labels.dtype != bool or made.labels.shape != (n, c),
        f"there are {n} ids and {len(made.paths)} paths": n != len(made.paths),
        "an id stands there twice": len(set(made.ids.tolist())) != n,
        "there is no image": not n,
    }
    for text, is_so in faults.items():
        if is_so:
            raise DataError(f"{config.dataset}, {split} split of {root}: {text}.")
    return made


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
    packed, d = np.packbits(dataset.labels, axis=1), dataset
    atomic_write(path, lambda file: np.savez(file, head=head, ids=d.ids, paths=d.paths, labels=packed, boxes=d.boxes))
    return dataset
