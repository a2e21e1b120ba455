"""Looking at the files of both halves once: what they are, so that a change is seen, and whether one is in both."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import DataError
from ..machine.home import atomic_write, data_dir, file_digest
from .dataset import MultiLabelDataset
from .images import check_file

Asked = TypeVar("Asked")
Said = TypeVar("Said")
OFFICIAL = ("coco2014", "voc2007")  # halves by their publishers: contents are not compared
THREADS = 16
PIECE = 4096  # bytes at the end of a file that tell most files of one size apart


Stats = list[os.stat_result]


def look_at(
    train: MultiLabelDataset, test: MultiLabelDataset, stats: tuple[Stats, Stats] | None = None
) -> tuple[list[str], list[str]]:
    """Asks the disk for every image: the keys of both halves, for `ImageStore`, and what is to be said of images that
    are in both. DataError for images that are not there. A slow disk takes its time: one process does it for all.
    stats: what the disk has said already (`look`)."""
    train_stats, test_stats = stats or (look(train), look(test))
    keys = [key_of(train, train_stats), key_of(test, test_stats)]
    shared = _shared(train, test, train_stats, test_stats, keys)
    if not shared:
        return keys, []
    first = f"the first is {test.path(shared[0])}"
    if len(shared) == len(test):
        text = (
            f"all {len(test)} test images are training images too ({first}): scores will say nothing about new images"
        )
    else:
        text = f"{len(shared)} of {len(test)} test images are training images too ({first}): scores will be too good"
    return keys, [text]


def image_key(dataset: MultiLabelDataset) -> str:
    """Hash of names, sizes and times of all images, in their order, wherever the data set lies."""
    return key_of(dataset, look(dataset))


def look(dataset: MultiLabelDataset) -> list[os.stat_result]:
    """What the disk says of each image; DataError, with their number, for images that are not there."""
    paths = [f"{dataset.root}/{path}" if not os.path.isabs(path) else str(path) for path in dataset.paths]
    found = at_once(_stat, paths)
    missing = [path for path, known in zip(paths, found, strict=True) if known is None]
    if missing:
        try:
            check_file(Path(missing[0]))
        except DataError as error:
            others = f" So it is with {len(missing) - 1} more of {len(paths)}." if len(missing) > 1 else ""
            raise DataError(f"{error}{others} Get the {dataset.split} images as a whole.") from None
    return [known for known in found if known is not None]


def key_of(dataset: MultiLabelDataset, stats: Iterable[os.stat_result]) -> str:
    digest = hashlib.sha256()
    for path, at in zip(dataset.paths, stats, strict=True):
        digest.update(f"{path} {at.st_size} {at.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def present(dataset: MultiLabelDataset) -> np.ndarray:
    """(n,) bool: which images are there."""
    paths = [str(dataset.path(row)) for row in range(len(dataset))]
    return np.array([found is not None for found in at_once(_stat, paths)], dtype=bool)


def _stat(path: str) -> os.stat_result | None:
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            return found
    return None


def rows_of_both(one: MultiLabelDataset, other: MultiLabelDataset) -> list[int]:
    """Rows of the other's images that are in the first, too: the same file, or another of the same content. DataError
    for images that are not there."""
    stats, others = look(one), look(other)
    return _shared(one, other, stats, others, [key_of(one, stats), key_of(other, others)])


def _shared(
    train: MultiLabelDataset, test: MultiLabelDataset,
    train_stats: list[os.stat_result], test_stats: list[os.stat_result], keys: list[str],
) -> list[int]:  # fmt: skip
    """Rows of the test images that are training images too: the same file, or another of the same content."""
    place = f"{train.root} {test.root} {' '.join(keys)}".encode("utf-8", "surrogatepass")
    known = data_dir() / "cache" / f"overlap-{hashlib.sha256(place).hexdigest()[:16]}.json"
    with contextlib.suppress(Exception):  # not there, or cut short: looked at again
        return [int(row) for row in json.loads(known.read_text(encoding="utf-8"))["test_rows"]]
    same = {(at.st_dev, at.st_ino) for at in train_stats}
    rows = {row for row, at in enumerate(test_stats) if (at.st_dev, at.st_ino) in same}
    if train.name not in OFFICIAL:
        rows.update(_same_content(train, test, [at.st_size for at in train_stats], [at.st_size for at in test_stats]))
    with contextlib.suppress(OSError):
        atomic_write(known, json.dumps({"test_rows": sorted(rows)}))
    return sorted(rows)


def _same_content(
    train: MultiLabelDataset, test: MultiLabelDataset, train_sizes: list[int], test_sizes: list[int]
) -> Iterator[int]:
    """Rows of the test images that have the content of a training image. Files are told apart by their size, then by
    their end, and read as a whole only where both are the same."""
    common = set(train_sizes) & set(test_sizes)
    alike: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
    for half, sizes in ((train, train_sizes), (test, test_sizes)):
        rows = [row for row, size in enumerate(sizes) if size in common]
        ends = at_once(_end, [half.path(row) for row in rows])
        keys = [(sizes[row], end) for row, end in zip(rows, ends, strict=True)]
        if half is train:
            for row, key in zip(rows, keys, strict=True):
                alike[key].append(train.path(row))
    whole = functools.cache(lambda key: {file_digest(path) for path in alike[key]})
    for row, key in zip(rows, keys, strict=True):
        if key in alike and file_digest(test.path(row)) in whole(key):
            yield row


def first_alike(paths: list[Path]) -> list[int]:
    """Of each file the place of the first one with the same content, which may be its own. Told as above."""
    sizes = [-1 if at is None else at.st_size for at in at_once(_stat, [str(path) for path in paths])]
    several = {size for size, count in Counter(sizes).items() if count > 1}
    rows = [row for row, size in enumerate(sizes) if size in several]
    alike: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, end in zip(rows, at_once(_end, [paths[row] for row in rows]), strict=True):
        alike[sizes[row], end].append(row)
    first = list(range(len(paths)))
    for group in alike.values():
        contents: dict[str, int] = {}
        for row in group if len(group) > 1 else ():
            first[row] = contents.setdefault(_content(paths[row]), row)
    return first


def _content(path: Path) -> str:
    """Hash of a file; of one that cannot be read, which is said when it is decoded, its name."""
    try:
        return file_digest(path)
    except OSError:
        return str(path)


def _end(path: Path) -> bytes:
    """Hash of the end of a file; of one that cannot be read, which is said when it is decoded, its name."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - PIECE))
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return os.fsencode(path)


def at_once(ask: Callable[[Asked], Said], items: list[Asked]) -> list[Said]:
    """What the disk says to each question, asked by several threads: on a file server waiting is what takes time."""
    pieces = [items[start : start + 512] for start in range(0, len(items), 512)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [said for piece in pool.map(lambda piece: [ask(item) for item in piece], pieces) for said in piece]
