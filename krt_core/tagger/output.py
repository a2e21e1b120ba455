"""Tags of photos as a table on the terminal, CSV or JSON, written as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from ..errors import ConfigError, printable
from ..machine.home import atomic_write, resolve
from .tags import Tags

Tagged = Iterable[tuple[Path, Tags]]


def check_place(path: str | Path) -> Path:
    """The whole path of a file to write; ConfigError where none can be, before anything is computed for it."""
    path = resolve(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        atomic_write(trial := path.with_name(f".{path.name}.trial"), b"", flush=False)
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be written ({reason}): choose another place.") from None
    return path


def write_csv(path: Path, tagged: Tagged, classes: tuple[str, ...], top: int | None, leak: str | None) -> Path:
    """A row a photo: path, its tags joined by ``|``, and a probability for each class in learning order; with ``top``
    a row for each of the most probable classes. A run that leaks has a last column that says so."""
    marks = {"leak": leak} if leak else {}

    def rows() -> Iterator[list[object]]:
        if top is None:
            yield ["path", "tags", *classes, *marks]
            for photo, tags in tagged:
                of = dict(zip(tags.names, tags.probabilities, strict=True))
                yield [photo, "|".join(tags.named), *(_short(of[name]) for name in classes), *marks.values()]
            return
        yield ["path", "rank", "tag", "probability", "threshold", "named", *marks]
        for photo, tags in tagged:
            for rank, (name, probability, named) in enumerate(tags.top(top), 1):
                limit = _short(tags.thresholds[rank - 1])
                yield [photo, rank, name, _short(probability), limit, int(named), *marks.values()]

    def write(file: IO[bytes]) -> None:
        text = _text(file)
        csv.writer(text, lineterminator="\n").writerows(rows())
        text.detach()

    return atomic_write(path, write)


def write_json(path: Path, tagged: Tagged, top: int | None, leak: str | None) -> Path:
    """A list with an object for each photo: path, tags, and probabilities by class, the highest first."""

    def write(file: IO[bytes]) -> None:
        text = _text(file)
        between = "[\n"
        for photo, tags in tagged:
            of = {name: _short(probability) for name, probability, _ in tags.top(top or len(tags.names))}
            about = {"path": str(photo), "tags": tags.named, "probabilities": of, **({"leak": leak} if leak else {})}
            text.write(between + json.dumps(about, ensure_ascii=False))
            between = ",\n"
        text.write("\n]\n" if between == ",\n" else "[]\n")
        text.detach()

    return atomic_write(path, write)


def lines(tagged: Tagged, top: int | None) -> Iterator[str]:
    """A line a photo: its tags with their probabilities; with ``top`` the most probable classes, those that are not
    named in brackets."""
    for photo, tags in tagged:
        shown = [one for one in tags.top(top or len(tags.names)) if top or one[2]]
        words = [f"{name} {p:.2f}" if named else f"({name} {p:.2f})" for name, p, named in shown]
        yield printable(f"{photo}  {', '.join(words) or '–'}")


def _short(probability: float) -> float:
    """Six digits: float32 has no more to tell."""
    return float(f"{probability:.6g}")


def _text(file: IO[bytes]) -> io.TextIOWrapper:
    """A name of bytes that are no text is written with escapes."""
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)  # type: ignore[arg-type]
