"""Errors that name the culprit and the way out, and the small helper that finds the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from unicodedata import category


class KRTError(Exception):
    """Base of every error this package raises on purpose; its text is written for the user."""


class ConfigError(KRTError):
    """A preset, an override or a notebook parameter has a wrong key, type or value."""


class NewerError(ConfigError):
    """A run folder is of a newer version of the workbench, which this one would misread."""


class DataError(KRTError):
    """A data folder, annotation or image is missing or broken."""


class CheckpointError(KRTError):
    """A weights file does not have the layout, or not the provenance, that is needed."""


class RunError(KRTError):
    """A run folder is missing, unfinished or belongs to another experiment."""


def shown(value: object, most: int = 120) -> str:
    """How a value that was found is shown in an error: on one line, not at length."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def printable(text: str) -> str:
    r"""Text as a terminal may show it: what would steer one, or turn its letters around, is written as an escape.

    >>> print(printable("red\x1b[31m, café"))
    red\x1b[31m, café
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or category(c) == "Zs" else ascii(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to ``name``, else the list of known names."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(sorted(known))}."
