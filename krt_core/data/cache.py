"""Labels that were read once: kept while every file they came from, and the reader itself, are unchanged."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..machine.home import atomic_write, data_dir
from .dataset import MultiLabelDataset, Split
from .finder import EXTENSIONS, folder_time

MANY = (".xml", *(f".{extension}" for extension in EXTENSIONS))


class Source(Protocol):
    """Where a half of a data set comes from."""

    @property
    def root(self) -> Path: ...

    @property
    def files(self) -> Iterable[Path]:
        """Every file that decides the labels."""

    @property
    def folders(self) -> dict[str, int]:
        """After reading: the folders in which images were looked for, and when they last changed."""


def cached(
    name: str, split: Split, source: Source, read: Callable[[], MultiLabelDataset], options: str = ""
) -> MultiLabelDataset:
    """What ``read`` gives, from the cache if it is there and whole. options: what else decides it, beside the files."""
    path = data_dir() / "cache" / f"labels-{name}-{split}-{fingerprint(source.files, options)}.npz"
    with contextlib.suppress(Exception):  # whatever is wrong with a cache, it is made again
        return _stored(path, name, split, source.root)
    d = read()
    head = json.dumps({"classes": d.classes, "notes": d.notes, "source": d.source, "folders": source.folders})
    matrices = {"labels": d.labels, "unknown": d.unknown}
    packed: dict[str, Any] = {k: np.packbits(m, axis=1) for k, m in matrices.items() if m is not None}
    with contextlib.suppress(OSError):  # a folder that cannot be written to costs time, not the labels
        write = functools.partial(np.savez, head=head, ids=d.ids, paths=d.paths, boxes=d.boxes, **packed)
        atomic_write(path, write)
    return d


def _stored(path: Path, name: str, split: str, root: Path) -> MultiLabelDataset:
    with np.load(path, allow_pickle=False) as stored:
        head = json.loads(str(stored["head"]))
        if any(folder_time(folder) != time for folder, time in head["folders"].items()):
            raise ValueError("images were added or renamed")
        bits = {key: stored[key] for key in ("labels", "unknown") if key in stored}
        whole = {k: np.unpackbits(v, axis=1, count=len(head["classes"])).astype(bool) for k, v in bits.items()}
        return MultiLabelDataset(
            name, split, root, stored["ids"], stored["paths"], whole["labels"], tuple(head["classes"]), stored["boxes"],
            tuple(head["notes"]), head["source"], whole.get("unknown"),
        )  # fmt: skip


def fingerprint(files: Iterable[Path], options: str = "") -> str:
    """Hash of the readers' code and of names, sizes and times of files, which one that is written in place changes too;
    of those that are not one of thousands (an XML, an image) also of the first and last megabyte."""
    digest = hashlib.sha256(_readers() + options.encode("utf-8", "surrogatepass"))
    for file in files:
        try:
            at = os.stat(file)
        except (OSError, ValueError):  # the reader will say so
            digest.update(f"{file} is not there\n".encode("utf-8", "surrogatepass"))
            continue
        digest.update(
            f"{file} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_ino}\n".encode("utf-8", "surrogatepass")
        )
        if not str(file).lower().endswith(MANY):
            with file.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, at.st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()[:16]


@functools.cache
def _readers() -> bytes:
    """Hash of the code that reads labels: what another version has read is read again."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()
