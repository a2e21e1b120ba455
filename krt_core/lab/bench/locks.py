"""Locks on open files. Who inherits the open file holds the lock too; it is free when all of them have ended."""

from __future__ import annotations

import fcntl
from typing import IO

from ...errors import ConfigError


def try_lock(file: IO, shared: bool = False) -> bool:
    """Lock an open file; False where someone else holds it. ConfigError where its file system knows no locks."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{file.name} cannot be locked ({error.strerror}). Mount its file system with locks (Lustre: -o flock; "
            "NFS: not nolock), or choose another one: --folder or KRT_HOME for results, KRT_SLOTS for slots."
        ) from None
    return True
