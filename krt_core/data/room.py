"""Is there room on the disk? Asked before anything is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError


class Want(NamedTuple):
    """Bytes that are to be kept somewhere."""

    what: str  # in words, as in "the features"
    folder: Path  # which need not be there yet
    size: int


def check_room(wants: Iterable[Want], ways_out: str) -> None:
    """DataError where a disk has no room for all that is wanted on it. ways_out: what else may be done, in words."""
    disks: dict[int, dict[str, int]] = {}
    places: dict[int, Path] = {}
    for what, folder, size in wants:
        disk = _disk(_there(folder))
        sizes, places[disk] = disks.setdefault(disk, {}), folder
        sizes[what] = sizes.get(what, 0) + size
    for disk, sizes in disks.items():
        free = shutil.disk_usage(_there(places[disk])).free
        if sum(sizes.values()) > free:
            each = " and ".join(f"{what} take {said(size)}" for what, size in sizes.items() if size)
            raise DataError(
                f"{each[0].upper()}{each[1:]}, and {places[disk]} has {said(free)} left. Make room (in data/cache what "
                f"no run is using may be deleted: it is made again when wanted), {ways_out}."
            )


def said(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _there(folder: Path) -> Path:
    """It, or what there is of the way to it."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _disk(folder: Path) -> int:
    return os.stat(folder).st_dev
