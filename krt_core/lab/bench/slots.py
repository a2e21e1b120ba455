"""Where runs run: a GPU or a share of the cores each, taken by one run at a time on the whole machine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...errors import ConfigError
from ...machine.cluster import cores
from ...machine.home import file_name
from ...machine.locks import try_lock

VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = "KRT_SLOTS"  # environment variable: where the folder of the locks is, if not in /tmp


@dataclass(frozen=True)
class Slots:
    """The slots of this machine. kind "gpu": names as CUDA_VISIBLE_DEVICES takes them; "cpu": cores, as in 0 or 4-7."""

    kind: str
    names: tuple[str, ...]
    threads: int  # per slot
    locks: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what a slot locks, where not just its name

    def environment(self, taken: tuple[str, ...]) -> dict[str, str]:
        """What a run in these slots must see."""
        threads = str(self.threads if self.kind == "cpu" else self.threads * len(taken))
        if self.kind == "cpu":
            return {VISIBLE: "", "OMP_NUM_THREADS": threads}
        # Numbers as nvidia-smi counts, by which the locks go too; CUDA would count from the fastest.
        return {VISIBLE: ",".join(taken), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": threads}


def find_slots(workers: int = 0, at_most: int | None = None) -> Slots:
    """The GPUs this process may see, else ``workers`` shares of the cores (0: one per core).

    at_most: no more shares than there are jobs. Their number decides the threads of a run and with them the last digits
    of its results, so it must not depend on what is already done.
    """
    import torch

    here = cores()
    named = tuple(name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip())
    if torch.cuda.is_available():
        names = named or tuple(str(i) for i in range(torch.cuda.device_count()))
        return Slots("gpu", names, max(1, len(here) // len(names)), _gpu_locks(names))
    if torch.version.cuda and named and re.match(r"\d|GPU-|MIG-", named[0]):
        raise ConfigError(
            f"{VISIBLE}={','.join(named)}, but CUDA sees no such GPU: correct it, or empty it for the CPU."
        )
    count = max(1, min(workers or len(here), at_most or len(here)))
    threads = max(1, len(here) // count)
    shares = [tuple(_core(here, i) for i in range(k * threads, (k + 1) * threads)) for k in range(count)]
    locks = {share[0] if threads == 1 else f"{share[0]}-{share[-1]}": share for share in shares}
    return Slots("cpu", tuple(locks), threads, locks)


def _core(cores: list[int], position: int) -> str:
    """A core by its number; where more runs are asked for than there are cores, the second on core 3 is 3+1."""
    around, place = divmod(position, len(cores))
    return f"{cores[place]}+{around}" if around else str(cores[place])


def _gpu_locks(names: tuple[str, ...]) -> dict[str, tuple[str]]:
    """What each GPU is called whatever name it was asked for by: its UUID, as nvidia-smi tells it. ConfigError where
    there is no such GPU: CUDA would see none, and the runs would take the CPU."""
    try:
        command = ["nvidia-smi", "-L"]
        listed = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout
    except FileNotFoundError:
        return {}
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"nvidia-smi -L, which names the GPUs that runs take turns on, does not work: {error}"
        ) from None
    known = re.findall(r"^\s*(?:GPU (\d+)|MIG).*\(UUID: ([^)]+)\)", listed, re.MULTILINE)
    found: dict[str, tuple[str]] = {}
    for name in names:
        uuids = [
            uuid for index, uuid in known if name == index or (name[:4] in ("GPU-", "MIG-") and uuid.startswith(name))
        ]
        if len(uuids) != 1 or (uuids[0],) in found.values():
            wrong = "stands there twice" if len(uuids) == 1 else "is no GPU of this machine, or more than one"
            raise ConfigError(f"{VISIBLE}={','.join(names)}: {name} {wrong}. nvidia-smi -L lists:\n{listed.strip()}")
        found[name] = (uuids[0],)
    return found


class SlotLock:
    """Some slots held for one run, by open files that its process inherits: they are free again when it has ended, even
    if this one was killed before."""

    def __init__(self, kind: str, names: tuple[str, ...], files: list[IO]):
        self.kind, self.names, self.files = kind, names, files

    def __str__(self) -> str:
        return f"{self.kind} {','.join(self.names)}"

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(file.fileno() for file in self.files)

    def close(self) -> None:
        """Let go of it here; a process that inherited it still holds it."""
        for file in self.files:
            file.close()

    def __enter__(self) -> SlotLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take(slots: Slots, count: int) -> SlotLock | None:
    """Take ``count`` free slots, all or none. Raises ConfigError where the machine does not have so many."""
    if count > len(slots.names):
        raise ConfigError(
            f"A run asks for {count} {slots.kind} slots, this machine has {len(slots.names)}: lower gpus_per_run."
        )
    names: list[str] = []
    held: list[IO] = []
    for name in slots.names:
        files = _lock_all([f"{slots.kind}-{lock}" for lock in slots.locks.get(name, (name,))])
        if files:
            names.append(name)
            held += files
        if len(names) == count:
            return SlotLock(slots.kind, tuple(names), held)
    for file in held:
        file.close()
    return None


def _lock_all(names: list[str]) -> list[IO]:
    """The locked files of these names; empty where one of them is taken."""
    # Not in TMPDIR, which differs between users and jobs. Links in it are refused.
    folder = Path(os.environ.get(FOLDER) or "/tmp") / "krt-slots"  # nosec B108
    files: list[IO] = []
    try:
        _shared(folder)
        for name in names:
            files.append(_open(folder / file_name(name)))
            if not try_lock(files[-1]):
                break
        else:
            return files
    except PermissionError as error:
        path = next(p for p in (Path(error.filename), *folder.parents) if os.path.exists(p))
        raise ConfigError(
            f"The locks of this machine's slots: {path}, which belongs to {_owner(path)}, does not allow this user in. "
            f"They can delete it while no krt bench runs; or name another folder with {FOLDER}, whose users take turns "
            "among themselves only."
        ) from None
    for file in files:
        file.close()
    return []


def _shared(folder: Path) -> None:
    """The folder, made for all users of the machine if it is not there; one that is there stays as it is. ConfigError
    for a link, by which somebody else would choose the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(folder):
        made = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-")
        os.chmod(made, 0o1777)  # for all users, whatever the umask, and before anybody sees it  # nosec B103
        try:
            os.rename(made, folder)
        except OSError:  # another has been quicker
            os.rmdir(made)
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise ConfigError(_refused(folder, "is no folder"))


def _open(path: Path) -> IO:
    """A lock file that any user of the machine may have made, and any may open. ConfigError for what is no file."""
    try:
        file = path.open("xb")
    except FileExistsError:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ConfigError(_refused(path, "is no file")) from None
        unfollowed = os.O_NOFOLLOW | os.O_NONBLOCK  # whatever stands there by now
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | unfollowed))
    os.fchmod(file.fileno(), 0o444)  # whatever the umask
    return file


def _refused(path: Path, why: str) -> str:
    made = "is a link" if path.is_symlink() else why
    return f"The locks of this machine's slots: {path} {made}. Delete it, or name another folder with {FOLDER}."


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user whom this machine, or this container, has no name for
        return f"user {path.stat().st_uid}"
