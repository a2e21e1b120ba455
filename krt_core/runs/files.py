"""The files of a run folder: one that is damaged is named, with the way out. What JSON has no number for is null.

A file is written whole or not at all (`atomic_write`), yet a disk that was full, a copy that was cut short or a cloud
folder that has not finished leave empty, shortened and foreign ones.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import RunError
from ..machine.home import atomic_write
from .shapes import EPOCH, misfit

SUM = "crc32"  # key of what a file of tensors says of itself: the checksum of all that follows its header


def damaged(path: Path, why: object, way_out: str) -> RunError:
    """The error that names a file, what is wrong with it and what to do."""
    empty = path.is_file() and not path.stat().st_size
    first = "it is empty" if empty else next(iter(str(why).splitlines()), "") or type(why).__name__
    return RunError(f"{path} is damaged ({first}): {way_out}")


def read_json(path: Path, way_out: str, shape: dict[Any, Any]) -> dict[str, Any] | None:
    """A JSON object of a shape (`krt_core.runs.shapes`); None where there is no file. Raises RunError, with the way
    out, where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all
        raise damaged(path, error, way_out) from None
    if not isinstance(content, dict):
        raise damaged(path, f"it must hold a JSON object, found a {type(content).__name__}", way_out)
    if why := misfit(content, shape):
        raise damaged(path, why, way_out)
    return content


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, up to one that was cut short."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            made = json.loads(line)
        except (ValueError, RecursionError):
            break
        if misfit(made, EPOCH) or not {"session", "epoch"} <= made.keys():
            break
        lines.append(made)
    return lines


def to_json(content: dict[str, Any], indent: int | None = None) -> str:
    """JSON as its standard has it: NaN and infinities become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def known(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers as they were before `to_json`: null is NaN."""
    return {
        key: math.nan if value is None else known(value) if isinstance(value, dict) else value
        for key, value in numbers.items()
    }


def read_arrays(path: Path, kinds: dict[str, str], way_out: str) -> list[np.ndarray]:
    """Arrays of an npz file by name, all of one length. kinds: of each, NumPy's letter and the number of axes, as in
    "f2", or several such. Raises FileNotFoundError, and RunError, with the way out, where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = [np.asarray(stored[name]) for name in kinds]  # bytes where what is in it is no array
        fits = [f"{o.dtype.kind}{o.ndim}" in kind.split() for o, kind in zip(found, kinds.values(), strict=True)]
        if not all(fits) or len({len(one) for one in found}) > 1:
            raise ValueError(f"{', '.join(kinds)} are not what they should be")
        return found
    except Exception as error:  # zip, header and pickle code raise of every kind on what is no npz file
        raise _told(error, path, way_out) from None


def check_arrays(path: Path, way_out: str) -> None:
    """`read_arrays` without reading: is it an npz file with its end?"""
    try:
        np.load(path, allow_pickle=False).close()  # an array has no close: it is damaged too
    except Exception as error:
        raise _told(error, path, way_out) from None


def read_tensors(path: Path, way_out: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, errors as of `read_arrays`."""
    try:
        _check_sum(path)
        return load_file(path)
    except Exception as error:  # SafetensorError, and what Rust makes of headers that are none
        raise _told(error, path, way_out) from None


def _check_sum(path: Path) -> None:
    """ValueError where the numbers are not those that were written; files of older versions do not tell."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
        said, found = header.get("__metadata__", {}).get(SUM), 0
        while said and (piece := file.read(1 << 24)):
            found = zlib.crc32(piece, found)
    if said and said != f"{found:08x}":
        raise ValueError("its numbers are not those that were written")


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Tensors as safetensors, with texts ``about`` them: the same ones are the same bytes, whose hash may be told.
    (safetensors itself writes texts in an order that changes from call to call.)"""
    # As it takes them: on the CPU, none sharing memory with another.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = memoryview(save(plain, about))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:end]))
    header["__metadata__"] = {**(about or {}), SUM: f"{zlib.crc32(content[end:]):08x}"}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(content[end:])

    atomic_write(path, write)


def _told(error: Exception, path: Path, way_out: str) -> Exception:
    """What is no fault of the content (no file, no right to read it) stays what it is."""
    if isinstance(error, OSError) and error.filename is not None:
        return error
    return damaged(path, error, way_out)


def is_still(name: str) -> bool:
    """Does a tensor of a network belong to what does not learn where its backbone stands still?"""
    return name.startswith(("backbone.", "expansion."))
