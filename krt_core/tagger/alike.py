"""Class names that look like ones a run knows: the same class, or another?"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from ..data.finder import spelling
from ..errors import ConfigError, did_you_mean

Ask = Callable[[str, str], bool]  # (new name, known name) → are they the same class?
NEAR = 0.88  # share of letters in common from which longer names look alike


def looks_like(name: str, known: Sequence[str]) -> str | None:
    """The known name that a new one looks like: in all but case, spaces, dashes and an s at the end, or nearly.

    >>> looks_like("traffic_lights", ["car", "traffic light"])
    'traffic light'
    """
    plain = {_plain(other): other for other in known}
    if (own := _plain(name)) in plain:
        return plain[own]
    long = [other for other in plain if len(other) > 5] if len(own) > 5 else []
    near = difflib.get_close_matches(own, long, n=1, cutoff=NEAR)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    folded = re.sub(r"[\W_]+", "", spelling(name))
    return folded[:-1] if len(folded) > 3 and folded.endswith("s") and not folded.endswith("ss") else folded


def spelt_alike(
    names: Sequence[str], known: Sequence[str], same: dict[str, str], new: Sequence[str], ask: Ask | None, where: str
) -> dict[str, str]:
    """Names that are the run's by another spelling → the run's; what `same` and `new` do not say is asked, one by one.

    Raises ConfigError for what they say of names that are not there, and, where nobody is to be asked, naming all that
    look alike and how to say which is meant.
    """
    for name in (*same, *new):
        if name not in names:
            raise ConfigError(f"{where} has no class {name!r}.{did_you_mean(name, names)}")
    for name in same.values():
        if name not in known:
            raise ConfigError(f"The run has no class {name!r}.{did_you_mean(name, known)}")
    if both := sorted(set(same) & set(new)):
        raise ConfigError(f"{both[0]!r} cannot be both the same as {same[both[0]]!r} and new.")
    found, open_ones = dict(same), []
    for name in names:
        if name in known or name in same or name in new or not (like := looks_like(name, known)):
            continue
        if ask is None:
            open_ones.append((name, like))
        elif ask(name, like):
            found[name] = like
    if open_ones:
        pairs = ", ".join(f"{name!r} looks like {like!r}" for name, like in open_ones)
        name, like = open_ones[0]
        raise ConfigError(
            f"{where}: {pairs}, which the run knows. Say of each whether it is the same class, "
            f"--same '{name}={like}', or another, --new '{name}'."
        )
    return found
