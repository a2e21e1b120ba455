"""Photos to grow by, and what growing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...data import open_dataset
from ...metrics import average_precision
from ...runs.folder import Run
from ...tagger.tags import Tags


def session_photos(run: Run, session: int, per_class: int = 24) -> dict[Path, tuple[str, ...]]:
    """Training images of a session (0 is the first), at most so many of each of its new classes, with those they show:
    what somebody might bring who wants just these tags. Images that show none of the older classes come first.

    Raises DataError where the data set is not there.
    """
    dataset = open_dataset(run.experiment.data, "train")
    protocol, own = run.protocol, run.protocol.sessions[session]
    labels = protocol.reorder(dataset.labels)
    strangers = (labels[:, : own.start] > 0).sum(axis=1)
    rows: dict[int, None] = {}
    for column in range(own.start, own.stop):
        there = np.flatnonzero(labels[:, column] > 0)
        rows |= dict.fromkeys(there[np.argsort(strangers[there], kind="stable")][:per_class].tolist())
    names = np.array(protocol.classes[own.start : own.stop])
    return {dataset.path(row): tuple(names[labels[row, own.start : own.stop] > 0].tolist()) for row in rows}


def tag_changes(
    before: Run, after: Run, session: int, tags_before: Sequence[Tags] = (), tags_after: Sequence[Tags] = ()
) -> pd.DataFrame:
    """A line for each tag of a run that has grown: what is still as it was?

    before: as it was after ``session`` (0 is the first); after: grown by one session more. tags_before and tags_after:
    of the same photos by both. Columns: learned (its session, from 1); AP before, AP after (%) on the test images that
    both were tested on and for which the label is known, NaN where there is none; of new tags only after; named before,
    named after: photos; drift, moved: means of the change of probability on the photos, and of its size, in points.
    """
    protocol, count = after.protocol, before.protocol.sessions[session].stop
    names, old, new = protocol.classes, before.scores(session), after.scores(session + 1)
    place = {image: row for row, image in enumerate(old.ids.tolist())}
    both = [row for row, image in enumerate(new.ids.tolist()) if image in place]
    scores = old.scores[[place[image] for image in new.ids[both].tolist()]]
    ap = np.full((2, len(names)), np.nan)
    ap[0, :count] = _known_ap(scores, new.labels[both, :count])
    ap[1, :count] = _known_ap(new.scores[both, :count], new.labels[both, :count])
    ap[1, count:] = _known_ap(new.scores[:, count:], new.labels[:, count:])
    learned = [next(s.index for s in protocol.sessions if c < s.stop) + 1 for c in range(len(names))]
    columns = {"learned": learned, "AP before": ap[0], "AP after": ap[1]}
    table = pd.DataFrame(columns, index=pd.Index(names, name="tag"))
    then = [set(tags.named) for tags in tags_before]
    now = [set(tags.named) for tags in tags_after]
    table["named before"] = [sum(name in one for one in then) for name in names]
    table["named after"] = [sum(name in one for one in now) for name in names]
    pairs = zip(tags_before, tags_after, strict=True)
    shift = 100 * np.array([[b[name] - a[name] for name in names[:count]] for a, b in pairs])
    for key, moved in (("drift", shift), ("moved", np.abs(shift))):
        mean = moved.mean(axis=0) if len(shift) else np.full(count, np.nan)
        table[key] = np.append(mean, np.full(len(names) - count, np.nan))
    return table


def _known_ap(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AP (C,) in percent; NaN for a class that no image is known to show."""
    found = average_precision(scores, labels)
    return np.where((labels > 0).any(axis=0), found, np.nan)
