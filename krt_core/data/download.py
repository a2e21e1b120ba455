"""Getting the public data sets: resumable, checksummed, unpacked without trusting the archive."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from ..machine.home import file_digest

Report = Callable[[str, int, int], None]  # (file name, bytes done, bytes in all or 0)
CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One file to fetch. ``digest`` is ``md5:…`` or ``sha256:…`` of the archive, empty if its publisher names none."""

    url: str
    digest: str = ""
    size: int = 0  # bytes, 0 if unknown


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"
_COCO = "http://images.cocodataset.org/"

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "voc2007": (
        Archive(_VOC + "VOCtrainval_06-Nov-2007.tar", "md5:c52e279531787c972589f7e41ab4ae64", 460_032_000),
        Archive(_VOC + "VOCtest_06-Nov-2007.tar", "md5:b6e924de25625d8de591ea690078ad9f", 451_020_800),
    ),
    "coco2014": (
        Archive(
            _COCO + "annotations/annotations_trainval2014.zip", "md5:0a379cfc70b0e71301e0f377548639bd", 252_872_794
        ),
        Archive(_COCO + "zips/val2014.zip", "md5:a3d79f5ed8d289b7a7554ce06a5782b3", 6_645_013_297),
        Archive(_COCO + "zips/train2014.zip", "md5:0da8c0bd3d6becc4dcb32757491aca88", 13_510_573_713),
    ),
}


def get(name: str, root: Path, report: Report | None = None, archives: tuple[Archive, ...] | None = None) -> Path:
    """Fetch and unpack a data set into ``root``; what is already there is not fetched again.

    Raises DataError naming the file for a failed transfer, a wrong checksum or an unsafe archive. An interrupted
    transfer goes on where it stopped when the command is repeated.
    """
    if name == "digits":
        from . import digits

        return digits.make(root)
    for archive in archives or ARCHIVES[name]:
        file = PurePosixPath(archive.url).name
        marker = root / f".{file}.unpacked"
        if marker.is_file():
            continue
        path = fetch(archive, root / file, report)
        unpack(path, root)
        marker.touch()
        path.unlink()
    return root


def fetch(archive: Archive, path: Path, report: Report | None = None, tries: int = 5, pause: float = 2.0) -> Path:
    """Download to ``path`` through ``path.part``, continuing a part that is there, and check its digest."""
    if path.is_file() and _digest_is(path, archive.digest):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _check_space(archive, part)
    for attempt in range(1, tries + 1):
        try:
            _transfer(archive, part, report)
            break
        except (urllib.error.URLError, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                raise DataError(
                    f"{archive.url} answers {error.code} {error.reason}. Get {path.name} elsewhere into {path.parent}."
                ) from None
            if attempt == tries:
                have = part.stat().st_size if part.is_file() else 0
                raise DataError(
                    f"{archive.url}: {error}. {have:,} bytes are kept; repeat the command to go on from there."
                ) from None
            time.sleep(pause * attempt)
    if not _digest_is(part, archive.digest):
        part.unlink()
        raise DataError(
            f"{path.name} does not have the checksum {archive.digest}: it was damaged on the way. Repeat the command."
        )
    os.replace(part, path)
    return path


def _transfer(archive: Archive, part: Path, report: Report | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)  # one of the addresses above  # nosec B310
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is already whole, or longer than the file: the digest will tell
            if archive.size and have > archive.size:
                part.unlink()
                raise urllib.error.URLError("the part is longer than the file; starting afresh") from None
            return
        raise
    with response:
        resumed = response.status == 206
        done = have if resumed else 0  # a server that ignores the range sends everything from the start
        length = int(response.headers.get("Content-Length") or 0)
        total = done + length if length else archive.size
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if report:
                    report(PurePosixPath(archive.url).name, done, total)
    if total and done < total:
        raise urllib.error.URLError(f"the connection ended after {done:,} of {total:,} bytes")


def _check_space(archive: Archive, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    free = shutil.disk_usage(part.parent).free
    need = 2 * archive.size - have  # the archive and its contents
    if archive.size and free < need:
        raise DataError(
            f"{part.parent} has {free / 1e9:.1f} GB free, {archive.url} needs {need / 1e9:.1f} GB with unpacking."
        )


def _digest_is(path: Path, digest: str) -> bool:
    algorithm, _, wanted = digest.partition(":")
    return not digest or file_digest(path, algorithm) == wanted


def unpack(path: Path, root: Path) -> None:
    """Extract a .zip or .tar[.gz] into ``root``: regular files and folders only, none outside ``root``.

    Every name is checked before anything is written; files go to a temporary folder first, so that a broken archive
    leaves nothing half unpacked. Raises DataError naming the offending member.
    """
    root.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(dir=root, prefix=".unpacking-"))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                for info in zipped.infolist():
                    _check_member(path, info.filename, (info.external_attr >> 16) & 0o170000 == 0o120000)
                zipped.extractall(target)  # every member was checked  # nosec B202
        else:
            with tarfile.open(path) as archive:
                members = archive.getmembers()
                for member in members:
                    _check_member(path, member.name, not (member.isfile() or member.isdir()))
                options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                archive.extractall(target, members=members, **options)  # likewise  # nosec B202
        _move_into(target, root)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be unpacked ({error}). Delete it and repeat the command.") from None
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _check_member(path: Path, name: str, special: bool) -> None:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (len(name) > 1 and name[1] == ":"):
        raise DataError(f"{path.name} holds {name!r}, which would be written outside the data folder: refused.")
    if special:
        raise DataError(f"{path.name} holds {name!r}, a link or device: refused.")


def _move_into(source: Path, root: Path) -> None:
    """Merge a folder into ``root``, file by file: two archives may share folders (VOCdevkit)."""
    for item in sorted(source.iterdir()):
        place = root / item.name
        if item.is_dir() and place.is_dir():
            _move_into(item, place)
        else:
            os.replace(item, place)
