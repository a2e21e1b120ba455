"""``krt extend``: grow a run by photos with labels of their own, and say what became of the old tags."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import ConfigError, printable
from ..machine.command import arg, number
from ..machine.loading import loading

if TYPE_CHECKING:
    from ..runs.folder import Run

EXTEND = (
    arg("run", help="run folder; it stays as it is"),
    arg("data", help="folder or table of images with labels: COCO or VOC layout, a table, a folder of folders"),
    arg("overrides", nargs="*", help="classes=[...], complete=true or test=0.2 of the data; key=value of the session"),
    arg("--folder", help="folder of the new run; default outputs/<name>-<method>-<hash>-s<seed>"),
    arg("--session", type=number(1), help="grow the run as it was after this one, 1 the first; default: the last"),
    arg("--same", metavar="NAME=KNOWN", action="append", default=[], help="a class that the run knows by another name"),
    arg("--new", metavar="NAME", action="append", default=[], help="a class that is new, though it looks like a known"),
    arg("--known", choices=("refuse", "skip", "keep"), default="refuse",
        help="images that the run has learned from already: none may be there, left out, or learned from again"),
    arg("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one"),
    arg("--processes", type=number(1), default=1, help="share every batch among so many (one GPU each)"),
)  # fmt: skip


def extend(options: argparse.Namespace) -> None:
    same = dict(_pair(words) for words in options.same)
    with loading():
        from ..runs.folder import Run
        from .extend import extend as grow

    run = Run(options.run)
    ask = _ask if sys.stdin.isatty() and sys.stderr.isatty() else None
    new = grow(
        run, options.data, options.overrides, folder=options.folder, session=options.session, same=same,
        new=options.new, known=options.known, ask=ask, processes=options.processes, device=options.device,
    )  # fmt: skip
    print(printable(what_changed(new)), file=sys.stderr)
    print(new.folder)


def _pair(words: str) -> tuple[str, str]:
    name, equals, known = words.partition("=")
    if not (name and equals and known):
        raise ConfigError(f"--same takes NAME=KNOWN, a class of the data and the run's name for it; found {words!r}.")
    return name, known


def _ask(name: str, known: str) -> bool:
    while True:
        print(f"{name!r} looks like {known!r}, which the run knows. The same class? [y/n] ", end="", file=sys.stderr)
        answer = input().strip().lower()
        if answer in ("y", "yes", "n", "no"):
            return answer.startswith("y")


def what_changed(run: Run) -> str:
    """In a sentence: AP of old classes before and after, on the same test images, and of new ones."""
    import numpy as np

    last = run.finished_sessions - 1
    old, new = run.protocol.sessions[last].start, run.protocol.class_names(last)
    before, after = run.ap(last - 1)["fixed"], run.ap(last)["fixed"]
    tested = ~np.isnan(before[:old]) & ~np.isnan(after[:old])
    parts = []
    if tested.any():
        was, now = before[:old][tested].mean(), after[:old][tested].mean()
        parts.append(f"{tested.sum()} old classes: mAP {was:.1f} before, {now:.1f} now, on the same test images")
    fresh = after[old:]
    if len(new):
        known, shown = ~np.isnan(fresh), (labels := run.scores(last).labels[:, old : old + len(new)]) > 0
        alone = [name for name, y, there in zip(new, labels.T, shown.T, strict=True) if there.any() and (y != 0).all()]
        scored = [f"mAP {fresh[known].mean():.1f}"] if known.any() else []
        scored += [f"every image to test on shows {', '.join(alone)}, which says nothing of it"] if alone else []
        names = f"{', '.join(new[:6])}{', ...' if len(new) > 6 else ''}"
        parts.append(f"{len(new)} new ({names}): {' and '.join(scored) or 'no image to test on'}")
    return "; ".join(parts)
