"""Where the workbench keeps its folders, and how a file is replaced without ever being half written."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..errors import ConfigError


def home() -> Path:
    """Folder that holds ``data/`` and ``outputs/``: ``$KRT_HOME``, else the nearest folder upwards that looks like the
    workbench (so that notebooks work from ``notebooks/``), else the current one."""
    if os.environ.get("KRT_HOME"):
        return Path(os.environ["KRT_HOME"]).expanduser().resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "krt_core").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return here


def resolve(path: str | Path) -> Path:
    """A relative path is meant from `home`; an absolute one and ``~`` stay what they are. ConfigError for what is no
    path."""
    try:
        fine = isinstance(path, (str, os.PathLike)) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half a letter, as "\ud800"
        fine = False
    if not fine:
        raise ConfigError(f"A folder or file must be text, found {path!r} (with papermill: -r instead of -p).")
    return (home() / Path(path).expanduser()).resolve()


def data_dir() -> Path:
    return resolve("data")


def outputs_dir() -> Path:
    return resolve("outputs")


def atomic_write(path: str | Path, write: Callable[[IO[bytes]], object] | bytes | str, flush: bool = True) -> Path:
    """Write to a temporary file beside ``path``, flush to disk, then rename: a reader sees the old file or the new.

    flush false: without waiting for the disk, for what is written often and missed by nobody if the power fails. What
    a process that was killed has left of the same file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    temporary, handle = _temporary(path)
    try:
        with named(path), os.fdopen(handle, "wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode("utf-8", "backslashreplace") if isinstance(write, str) else write)
            file.flush()
            if flush:
                os.fsync(file.fileno())
            os.replace(temporary, path)  # still open, and so still locked
    except BaseException:
        with contextlib.suppress(OSError):  # the disk can only be read by now
            temporary.unlink(missing_ok=True)
        raise
    return path


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Errors inside say of which file they are: "No space left on device" alone does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def append_line(path: Path, text: str, flush: bool = False) -> None:
    """Add a line to a file; flush: and wait until it is on disk."""
    with named(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{text}\n")
        if flush:
            file.flush()
            os.fsync(file.fileno())


def _temporary(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, open to be written, and locked so that `sweep` sees that somebody is at it."""
    while True:
        # Made with the rights that any new file has: results are to be shared, and asking for the mask would change it.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: then nothing is swept there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)  # somebody has swept it up between the two


def sweep(folder: Path, name: str = "", deep: bool = False) -> None:
    """Remove what killed processes have left half written in a folder (and, deep, in those below it), of one file or
    of all. Whoever is writing holds a lock on it, which ends with him."""
    pattern = f".{glob.escape(name) or '*'}.*.tmp"
    for path in folder.rglob(pattern) if deep else folder.glob(pattern):
        with contextlib.suppress(OSError):  # it is locked, gone, or cannot be
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def stamp(path: Path) -> tuple[int, int]:
    """Time of the last change in nanoseconds, and size in bytes; zeros where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def file_name(text: str) -> str:
    """A text as one part of a path, whatever is in it: an id such as ``../x`` must not leave its folder.

    What had to be changed carries a digest of the text, so that no two become one.

    >>> file_name("image_000012"), file_name("../x")
    ('image_000012', '_._x-d6b96a97')
    """
    name = re.sub(r"[^\w.,+=@() -]", "_", text)
    name = "_" + name[1:] if name[:1] in (".", "") else name
    name = name.encode()[:160].decode(errors="ignore")  # a file system takes 255 bytes, an ending and more among them
    return name if name == text else f"{name}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content."""
    state = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()
