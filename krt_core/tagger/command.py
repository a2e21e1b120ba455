"""``krt predict`` and ``krt export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError, printable
from ..machine.command import arg, number
from ..machine.loading import loading

if TYPE_CHECKING:
    from .tagger import Tagger
    from .tags import Tags

SESSION = arg("--session", type=number(1), help="1 is the first; default: the last finished one")
PREDICT = (
    arg("run", help="run folder"),
    arg("photos", nargs="+", help="files, folders (all below them) and patterns such as 'holiday/**/*.jpg'"),
    SESSION,
    arg("--csv", metavar="FILE", help="a row a photo: path, tags, and the probability of each class"),
    arg("--json", metavar="FILE", help="a list with an object a photo"),
    arg("--top", type=number(1), metavar="N", help="the N most probable classes, named or not"),
    arg("--threshold", default="calibrated", help="a number for all classes; default: each class's own, as calibrated"),
    arg("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one"),
)  # fmt: skip
EXPORT = (
    arg("run", help="run folder"), SESSION,
    arg("file", help="the file to write; its ending says what: .onnx, .pt2 or .pth"),
)  # fmt: skip


def predict(options: argparse.Namespace) -> int:
    """Tag photos; 2 where none could be read."""
    with loading():
        from ..runs.folder import Run
        from .output import check_place, lines, write_csv, write_json
        from .photos import find
        from .tagger import Tagger, which_session

    run = Run(options.run)
    session = which_session(run, options.session and options.session - 1)
    if options.csv and options.json:
        raise ConfigError("--csv and --json are two ways to write the same: choose one.")
    found = find(options.photos)
    place = check_place(options.csv or options.json) if options.csv or options.json else None
    tagger = Tagger(run, session, options.device, options.threshold)
    notes = [*tagger.notes]
    notes += [f"left out, as no images by their names: {found.others}"] if found.others else []
    notes += [f"named more than once, and tagged once: {found.again}"] if found.again else []
    for note in notes:
        _say(note)
    faults: list[str] = []
    tagged = _tagged(tagger, found.photos, faults, bar=place is not None)
    if options.csv:
        print(write_csv(place, tagged, tagger.classes, options.top, tagger.leak))
    elif options.json:
        print(write_json(place, tagged, options.top, tagger.leak))
    else:
        for line in lines(tagged, options.top):
            print(line)
    for fault in (*found.lacking, *faults):
        _say(f"not tagged: {fault}")
    return 2 if len(faults) == len(found.photos) else 0


def _tagged(tagger: Tagger, photos: list[Path], faults: list[str], bar: bool) -> Iterator[tuple[Path, Tags]]:
    """The photos that can be read, with a bar on a terminal; the faults of others are added to ``faults``."""
    from tqdm import tqdm

    off = None if bar else True  # None: where it is no terminal
    stream = tqdm(tagger.stream(photos), total=len(photos), unit="photo", disable=off, file=sys.stderr, leave=False)
    for photo, tags in zip(photos, stream, strict=True):
        if isinstance(tags, DataError):
            faults.append(str(tags))
        else:
            yield photo, tags


def _say(words: str) -> None:
    print(printable(words), file=sys.stderr)


def export(options: argparse.Namespace) -> None:
    """Write a session's model for other programs, or in the published layout."""
    kinds = {".onnx": "ONNX", ".pt2": "torch.export", ".pth": "the published layout, ICA on a TResNet"}
    ending = Path(options.file).suffix.lower()
    if ending not in kinds:
        known = ", ".join(f"{key} ({what})" for key, what in kinds.items())
        raise ConfigError(f"{options.file}: by its ending it is none of the files that can be written: {known}.")
    with loading():
        from ..machine.home import resolve
        from ..runs.folder import Run
        from .tagger import which_session

    run = Run(options.run)
    session = which_session(run, options.session and options.session - 1)
    if ending == ".pth":
        from ..weights.convert import export_published

        print(export_published(run, session, options.file))
        return
    from .export import export as write

    made = write(run, session, resolve(options.file))
    for line in made.said:
        print(printable(line))
    print(made.path)
