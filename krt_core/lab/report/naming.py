"""How runs are called in tables, legends and menus, and which of them may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...methods import class_of
from ...options import is_dotted, short_name
from ...runs.folder import Run
from .published import held_out

NOT_OF_THE_METHOD = {"protocol.order_seed", "protocol.order", "data.added"}  # runs that differ in the class order are
# replicates, and data that were added are told by the setting
LEAK, ORACLE, MIXED, RECORDED = " (LEAK)", " (ORACLE)", " (mixed)", " (recorded)"  # marks in labels
FROZEN = {"all": ", frozen", "first": ", frozen after session 1"}  # what a label says of `model.freeze`
_DEFAULT = object()  # stands for a key that is not changed


def label_of(run: Run, among: Sequence[Run] = ()) -> str:
    """How a run is called in tables and legends: its method, with its exemplars if it has any, whether `model.freeze`
    lets its backbone stand still, LEAK if its first weights had seen the labels to be learned, ORACLE if it was shown
    true labels that a method may not see, and mixed if starts of different kinds have made it.

    Runs in one setting that this would name alike though their configurations differ are told apart by the keys in
    which they do, as far as those are not at their default, or by a hash of their data: they are no replicates of one
    another. Runs that differ only in seed and class order are, and have one label.
    """
    return labels_of([run, *among])[0]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """`label_of` each run among all of them, in one go: for many runs it is much faster than one by one."""
    return [label for _, label in methods_and_labels(runs)]


def names_of(runs: Sequence[Run]) -> list[str]:
    """What each run is called where it stands alone, as in menus: its label and which replicate it is."""
    labels = [label + MIXED * bool(run.mixed) for run, (_, label) in zip(runs, _told(runs), strict=True)]
    return [f"{label}, {replicate_of(run)}" for run, label in zip(runs, labels, strict=True)]


def methods_and_labels(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The method and the label of each run, both with the ``key=value`` that tell it from runs named alike. A label is
    marked as mixed where one of its runs is: they share a line of a table and a curve."""
    found = _told(runs)
    mixed = {label for run, (_, label) in zip(runs, found, strict=True) if run.mixed}
    return [(method, label + MIXED * (label in mixed)) for method, label in found]


def _told(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """`methods_and_labels` without the mark of what is mixed."""
    alike: dict[tuple, list[dict[str, Any]]] = {}
    places = [(*setting_of(run), _plain_label(run), bool(run.leak), run.oracle) for run in runs]  # the marks tell those
    # apart already
    # The method by its whole name, as two from different files may have one short name.
    changes = [{"method": run.experiment.method, **run.experiment.changes()} for run in runs]
    _tell_data_apart(runs, changes)
    for place, own in zip(places, changes, strict=True):
        alike.setdefault(place, []).append(own)
    differing = {place: _differing(group) for place, group in alike.items()}
    found = []
    for run, place, own in zip(runs, places, changes, strict=True):
        *_, plain, leak, oracle = place
        told = [f"{key}={value}" for key, value in own.items() if key in differing[place]]
        label = ", ".join([plain, *told]) + LEAK * leak + ORACLE * oracle
        found.append((", ".join([_method(run), *told]), label))
    return found


def _tell_data_apart(runs: Sequence[Run], changes: Sequence[dict[str, Any]]) -> None:
    """Add a hash of the data to the changes of runs whose configuration is the same though their data are not: someone
    has changed labels or images between them, so they are no replicates."""
    replicates: dict[str, list[int]] = {}
    for row, own in enumerate(changes):
        kept = {key: value for key, value in own.items() if key not in NOT_OF_THE_METHOD}
        replicates.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(row)
    for rows in replicates.values():
        hashes = data_of([runs[row] for row in rows]) if len(rows) > 1 else []
        if len(set(hashes)) > 1:
            for row, digest in zip(rows, hashes, strict=True):
                changes[row]["data"] = digest


def data_of(runs: Sequence[Run]) -> list[str]:
    """Four hex digits for the data of each run, by what all of them tell of theirs (older ones tell less)."""
    told = [run.data for run in runs]
    keys = sorted(set.intersection(*map(set, told))) if told else []
    contents = [" ".join(data[key] for key in keys) for data in told]
    return [hashlib.sha256(content.encode()).hexdigest()[:4] for content in contents]


def _differing(group: Sequence[dict[str, Any]]) -> set[str]:
    """The keys in which changes differ from one another, replicates aside."""
    keys = {key for own in group for key in own} - NOT_OF_THE_METHOD
    return {key for key in keys if any(own.get(key, _DEFAULT) != group[0].get(key, _DEFAULT) for own in group)}


def replicate_of(run: Run) -> str:
    """Which of its method's replicates a run is: "seed 0", and "order 3" if its class order is not alphabetical."""
    order = run.experiment.protocol.order_name
    return f"seed {run.experiment.seed}" + ("" if order == "alphabetical" else f", order {order.removeprefix('seed ')}")


def setting_of(run: Run) -> tuple[str, str]:
    """Data set and protocol, as in ("coco2014", "B0-C10"): only within a setting may numbers stand side by side.

    A folder of the user's own is named so that it cannot be taken for an official data set, and so are chosen classes
    and digits in scenes that are asked for.
    """
    data, name = run.experiment.data, run.experiment.data.dataset
    if name in ("coco", "voc"):
        name = f"{Path(data.root or name).name} ({name} layout)"
    elif name == "table":
        name = f"{Path(data.root or name).name} (table)"
    elif is_dotted(name):
        name = f"{Path(data.root or 'data').name} (read by {name})"
    name += f", {data.cardinality:g} labels an image" if data.cardinality else ""
    name += f", co-occurrence {data.co_occurrence:g}" if data.co_occurrence else ""
    if data.classes:
        name += f", {len(data.classes)} classes"
    name += "".join(f" + {Path(one.root).name}" for one in data.added)
    if share := held_out(run.experiment):
        name += f", tested on {100 * share:g} % of the training images"
    return name, run.experiment.protocol.name


def epoch_chosen_on(run: Run) -> str:
    """On which images the epochs were chosen that a run reports: "test" or "validation"; "" for the last epochs."""
    e = run.experiment
    if e.train.report == "last" or class_of(e.method).has_own("fit"):
        return ""
    return "validation" if e.data.validation else "test"


def buffer_of(run: Run) -> str:
    """The exemplars of a run as tables of papers give them: "0", "20/class" or "1000"."""
    replay = run.experiment.replay
    if not class_of(run.experiment.method).replays:
        return "0"
    return f"{replay.per_class}/class" if replay.per_class else str(replay.budget)


def bound_of(run: Run) -> bool:
    """Was it trained on all labels at once, or shown true ones of old classes?"""
    return class_of(run.experiment.method).sees != "session" or bool(run.oracle)


def backbone_of(run: Run) -> str:
    """What the backbone does: "trained" in every session ("from blocks.5": its last layers), trained in the "first
    session", or "frozen" from the start, as it always is where a method learns in closed form only."""
    freeze, tuned = run.experiment.model.freeze, run.experiment.model.tune_from
    if freeze == "none" and class_of(run.experiment.method).has_own("fit"):
        freeze = "all"
    how = {"none": "trained", "first": "first session", "all": "frozen"}[freeze]
    return f"{how}, from {tuned}" if tuned and how != "frozen" else how


def stored_words(images: float, image_bytes: float, method_bytes: float) -> str:
    """What a method keeps of the sessions before, as in "200 images (0.6 MB)" or "13 MB of state"; "–" for nothing.
    NaN where it is not known, as for runs of older versions."""
    exemplars = f"{images:.0f} images" + (f" ({_megabytes(image_bytes)})" if image_bytes > 0 else "")
    parts = (exemplars if images > 0 else "", f"{_megabytes(method_bytes)} of state" if method_bytes > 0 else "")
    return " + ".join(filter(None, parts)) or "–"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2g} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


def _method(run: Run) -> str:
    """Of a run that has grown by another method than it was begun with: "finetune, then lwf"."""
    own = short_name(run.experiment.method) + FROZEN.get(run.experiment.model.freeze, "")
    earlier = range(run.finished_sessions) if run.experiment.data.added else ()
    names = [run.session_state(t).get("made_by") or run.experiment.method for t in earlier]
    before = [name for name, then in zip(names, [*names[1:], run.experiment.method], strict=False) if name != then]
    return "".join(f"{short_name(name)}, then " for name in before) + own


def _plain_label(run: Run) -> str:
    replay, method = run.experiment.replay, _method(run)
    if replay.per_class:
        return f"{method}, {replay.per_class} exemplars per class"
    return f"{method}, {replay.budget} exemplars" if replay.budget else method
