"""Run folders of newer versions: named as such, never guessed at, and never written to.

The layout of a run folder changes with the first two numbers of the version at most: 0.2.7 reads what 0.2.9 wrote.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .. import __version__
from ..errors import ConfigError, NewerError


def check_not_newer(folder: Path) -> None:
    """NewerError where the record of a run's starts names a later version than this one."""
    version, commit = _written_by(folder)
    if _numbers(version) > _numbers(__version__):
        raise NewerError(
            f"{folder} was written by version {version} of krt_core{_at(commit)}, and this is {__version__}, which may "
            f"misread it. Open it with {version} or a later version."
        )


def told(folder: Path, error: ConfigError) -> NewerError:
    """What is to be said where this version does not know a key, a value or the method of a run's configuration, which
    it has written itself if it has written it at all."""
    version, commit = _written_by(folder)
    record = f"Its record says {version}{_at(commit)}. " if version else ""
    return NewerError(
        f"{error} No version up to this one ({__version__}) writes that: the folder is of a newer version of krt_core, "
        f"or was changed by hand. {record}Open it with the newer version."
    )


def _written_by(folder: Path) -> tuple[str, str]:
    """The latest version among the starts, and the commit of the newest start; empty where no record tells.

    Read by itself: a record that is damaged, or of a shape not known here, is no reason to say nothing.
    """
    try:
        content = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        starts = [content, *(content.get("starts") or ())]
        versions = [str((start.get("versions") or {}).get("krt-core") or "") for start in starts]
        return max(versions, key=_numbers), str(content.get("commit") or "")
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return "", ""


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; empty where it has none."""
    return tuple(int(digits) for digits in re.findall(r"\d{1,9}", version.split("+")[0])[:2])


def _at(commit: str) -> str:
    return f" (commit {commit})" if commit else ""
