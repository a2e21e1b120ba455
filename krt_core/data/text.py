"""What the bytes of a text file say, whatever program wrote it, and single values as tools write them."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError

BOMS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip  # UTF-32 before UTF-16: one begins as the other does
OTHERS = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "latin-1")  # tried only where something tells which fits
WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}  # programs declare the smaller set and use the larger
INSTEAD = (  # how a file begins → what it is in place of what should be there, and the way out
    (rb"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
    (rb"/annex/objects/", "a git-annex pointer: run git annex get"),
    (rb"\x1f\x8b", "compressed by gzip: unpack it"),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html)", "a web page, as a server sends it to log in: get the file again"),
    (rb"\0+\Z", "filled with zeros, as a broken copy is: get it again"),
)
YES, NO = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f", "", "unspecified", "none", "null")


def read_bytes(path: Path) -> bytes:
    """DataError, with the reason, where a file cannot be had, or another thing is in its place."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if what := instead(data[:200]):
        raise DataError(f"{path} is {what}.")
    return data


def instead(head: bytes) -> str:
    """What a file is by its first bytes that is neither text nor an image, with the way out; empty: nothing known."""
    return next((what for pattern, what in INSTEAD if re.match(pattern, head)), "")


def decode(data: bytes, path: Path, declared: str = "", fits: Callable[[str], bool] | None = None) -> str:
    """Text by its byte order mark, else by what it declares, else UTF-8 (or UTF-16 without a mark).

    fits: tells whether a text makes sense; where it does not as UTF-8, older encodings are tried until it does.
    Raises DataError naming file and encoding.
    """
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding, path)
    if b"\0" in data[:4]:
        wide = "utf-32" if data[:4].count(b"\0") == 3 else "utf-16"
        return _decode(data, f"{wide}-{'be' if data[0] == 0 else 'le'}", path)
    declared = WIDER.get(declared.lower(), declared)
    if declared and not declared.lower().startswith(("utf", "ucs")):
        return _decode(data, declared, path)
    for encoding in ("utf-8", *OTHERS) if fits else ():
        text = data.decode(encoding, "replace")
        if "\ufffd" not in text and fits and fits(text):
            return text
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = data[error.start]
        raise DataError(f"{path} is not in UTF-8 (byte {error.start} is {found:#x}): save it as UTF-8.") from None


def _decode(data: bytes, encoding: str, path: Path) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in {encoding}, as it says ({error.reason}, byte {error.start}).") from None
    except LookupError:
        raise DataError(f"{path} says that it is in {encoding!r}, an encoding that is not known.") from None


def class_name(value: Any, where: str) -> str:
    """The name of a class; a number is one too. DataError, beginning with ``where``, for what is no name."""
    name = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    if name and not any("\ud800" <= letter <= "\udfff" for letter in name):
        return name
    raise DataError(f"{where} must have a name, found {value!r}.")


def flag(value: Any, where: str) -> bool:
    """Yes or no, however it is written. DataError, beginning with ``where``, for anything else."""
    text = str(value).strip().lower() if isinstance(value, (str, int, float)) else "" if value is None else "?"
    text = text.removesuffix(".0")
    if text in YES or text in NO:
        return text in YES
    raise DataError(f"{where} must be 0 or 1, found {value!r}.")


def number(value: Any) -> float | None:
    """A finite number, also one written as text; else None."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
