"""Grow a run by one session whose images come with data of their own: what `krt extend` does.

The run stays as it is. The new folder begins with its sessions (files are shared with it where the disk can) and reads
as one history; the session that is added is learned by the loop as any other, from the new images alone and from
exemplars where some are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import Data, Experiment, experiment_from
from ..data import MultiLabelDataset, open_dataset
from ..data.layouts import layout_of
from ..data.overlap import present, rows_of_both
from ..errors import ConfigError, DataError, RunError, did_you_mean, printable
from ..launch import launch
from ..machine.home import file_digest, outputs_dir, resolve
from ..methods import method_class
from ..methods.head import OwnHead
from ..presets import merge, nested
from ..presets.checking import convert
from ..presets.sections import Added
from ..runs.folder import Run
from ..runs.inherit import inherit
from ..weights.convert import load_method, load_model
from .alike import Ask, spelt_alike

TEST_SHARE = 0.2  # of new data without a test half
OWN = {each.name for each in dataclasses.fields(Added)} - {"root", "same", "run", "without", "digest"}


@dataclass(frozen=True)
class New:
    """What is added, and what is to be said of it."""

    added: Added
    classes: tuple[str, ...]  # names that the run does not know, in learning order
    notes: list[str] = field(default_factory=list)
    alone: tuple[str, ...] = ()  # of the new ones those that every image to learn from shows


def extend(
    run: Run | str | Path,
    data: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    folder: str | Path | None = None,
    session: int | None = None,
    same: Mapping[str, str] | None = None,
    new: Sequence[str] = (),
    known: str = "refuse",
    ask: Ask | None = None,
    processes: int = 1,
    device: str | None = None,
    show: str = "auto",
) -> Run:
    """Add a session to a run, from a folder or table of images with labels, and return the new run; the old one stays.

    data: COCO or VOC layout, a table or a folder of folders. overrides: of the new session, as for `load_experiment`
    (``method``, ``train.epochs``, ...); and ``classes``, ``complete``, ``test``, ``dataset`` of the data, see `Added`.
    folder: of the new run, default by its name in outputs. session: grow the run as it was after this one, 1 the first.
    same: names in the data → names that the run knows them by; new: names that are new though they look like known
    ones; ask: asked about those where neither says. known: "refuse" images that the run has learned from, "keep" them,
    which are then learned again, or "skip" them.

    Raises RunError, DataError or ConfigError, each with the way out.

    >>> krt.extend("outputs/tags", "photos/march", same={"Bike": "bicycle"}).curve()  # doctest: +SKIP
    """
    run = run if isinstance(run, Run) else Run(run)
    sessions = _sessions(run, session)
    mine, others = _apart(nested(overrides))
    found = look_at_new(run, sessions, data, mine, dict(same or {}), tuple(new), known, ask)
    experiment = grown_experiment(run, sessions, found, others)
    check_method(run, sessions, experiment)
    check_learns(experiment, found)
    if run.leak:
        found.notes.append(f"LEAK: {run.leak}, and what grows from it is marked, too")
    path = resolve(folder) if folder else outputs_dir() / experiment.run_name()
    if path == run.folder:
        raise ConfigError(f"--folder {path} is the run itself, which stays as it is: choose another.")
    for note in found.notes if show != "none" else ():
        print(printable(note), flush=True)
    inherit(run, sessions, experiment, path, found.notes)
    return launch(experiment, path, processes, device, show=show)


def _sessions(run: Run, session: int | None) -> int:
    """How many sessions the new run has from the old one; RunError where they are not there, or without weights."""
    finished = run.finished_sessions
    if not finished:
        raise RunError(f"{run.folder} has not finished a session: there is no model yet that could grow.")
    sessions = session or finished
    if not 1 <= sessions <= finished:
        raise RunError(f"{run.folder} has finished {finished} sessions, so --session must be 1 to {finished}.")
    weights = run.session_folder(sessions - 1) / "model.safetensors"
    if not weights.is_file():
        raise RunError(f"{weights} is missing: a run grows from its weights. Copy it from where the run was trained.")
    load_method(run, sessions - 1, load_model(run, sessions - 1))
    return sessions


def _apart(overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of the data, and of the experiment."""
    known = {*OWN, "method", "seed", "name"}
    for key, value in overrides.items():
        if key not in known and not isinstance(value, Mapping):
            raise ConfigError(f"krt extend: unknown key {key!r}.{did_you_mean(key, known)}")
    return {k: v for k, v in overrides.items() if k in OWN}, {k: v for k, v in overrides.items() if k not in OWN}


# ---- the new data ----


def look_at_new(
    run: Run, sessions: int, data: str | Path, said: dict[str, Any], same: dict[str, str], new: tuple[str, ...],
    known: str, ask: Ask | None,
) -> New:  # fmt: skip
    """Open the new data, tell which of their classes are new, and choose what is tested on."""
    names = run.protocol.classes[: run.protocol.sessions[sessions - 1].stop]
    section = run.experiment.data
    whole = {"dataset": said.get("dataset") or layout_of(data), **said, "root": str(resolve(data))}
    one: Added = convert(Added, whole, "", "krt extend")
    if one.dataset != "table" and (odd := [key for key in Added.TABLE if getattr(one, key)]):
        raise ConfigError(f"krt extend: {odd[0]} says how to read a table, and {data} has {one.dataset} layout.")
    part = one.of(section)
    train, notes = open_dataset(replace(part, validation=0.0, test="test"), "train"), []
    shown = train.labels.any(axis=0)
    same = spelt_alike(train.classes, names, same, new, ask, str(data))
    called = [same.get(name, name) for name in train.classes]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        both = [own for own, name in zip(train.classes, called, strict=True) if name == twice[0]]
        raise ConfigError(f"{data}: {' and '.join(both)} are both called {twice[0]}. Merge them there, or rename one.")
    unseen = [name for name, there in zip(called, shown, strict=True) if not there and name not in names]
    if unseen:
        raise DataError(
            f"{train.source or train.root}: no image to learn from shows {', '.join(unseen)}. Leave such classes out "
            f"with classes=[{', '.join(n for n, there in zip(train.classes, shown, strict=True) if there)}], or check "
            "the annotations."
        )
    if one.complete or one.dataset == "table":  # whose columns and tags are what somebody has looked for
        kept = train.classes
    else:  # listed, as in a file of all classes, is not annotated
        kept = tuple(name for name, there in zip(train.classes, shown, strict=True) if there)
        if listed := [name for name in train.classes if name not in kept]:
            notes.append(f"no image shows {', '.join(listed)}: unknown, unless complete=true says that they are absent")
    fresh = tuple(sorted(same.get(name, name) for name in kept if same.get(name, name) not in names))
    if not fresh:
        notes.append(f"all classes of {data} are known: the session adds {len(train)} images to them, and no class")
    one = replace(one, classes=kept, same=tuple(sorted((own, to) for own, to in same.items() if own in kept)))
    one = _tested(one, replace(part, classes=kept), notes)
    weights = file_digest(run.session_folder(sessions - 1) / "model.safetensors")
    one = replace(one, without=_known(run, train, known, notes), run=str(run.folder))
    one = replace(one, digest=f"{train.digest()}-{weights[:16]}")
    lacking = dict(zip(called, (train.truth == 0).any(axis=0), strict=True))
    return New(one, fresh, notes, tuple(name for name in fresh if not lacking[name]))


def _tested(one: Added, part: Data, notes: list[str]) -> Added:
    """With the share that is held out to test on where nothing is said of it and the data have no test half."""
    if one.test is not None:
        return one
    try:
        open_dataset(replace(part, test="test"), "test")
        return one
    except DataError as error:
        notes.append(
            f"{part.root} has no test half ({str(error).rstrip('.')}): {TEST_SHARE:.0%} of its images are held out to "
            "test on; test=0 learns from all"
        )
        return replace(one, test=TEST_SHARE)


def _known(run: Run, train: MultiLabelDataset, known: str, notes: list[str]) -> tuple[str, ...]:
    """Ids of the new images that are left out because the run has learned from them."""
    if known not in ("refuse", "keep", "skip"):
        raise ConfigError(f"known must be refuse, keep or skip, found {known!r}.")
    try:
        before = open_dataset(run.experiment.data, "train")
    except DataError as error:
        notes.append(f"whether the run has learned from some of the images cannot be told: {error}")
        return ()
    if not (there := present(before)).any():
        return ()
    rows = rows_of_both(before.select_images(there, "train"), train)
    if not rows:
        return ()
    first = f"{len(rows)} of {len(train)} images are ones that {run.folder.name} has learned from, the first is "
    first += str(train.path(rows[0]))
    if known == "refuse":
        raise DataError(f"{first}. --known skip leaves them out, --known keep learns from them again.")
    notes.append(f"{first}: {'left out' if known == 'skip' else 'learned from again'}")
    if known == "skip" and len(rows) == len(train):
        raise DataError(f"{first}: with --known skip none is left.")
    return tuple(train.ids[rows].tolist()) if known == "skip" else ()


# ---- the new experiment ----


def grown_experiment(run: Run, sessions: int, found: New, overrides: dict[str, Any]) -> Experiment:
    """The run's own experiment with a session more, and what is asked for otherwise."""
    e, protocol = run.experiment, run.protocol
    if isinstance(e.options, dict):
        raise RunError(f"{run.folder}: its method {e.method} is not to be had here, so it cannot learn a session more.")
    names = protocol.classes[: protocol.sessions[sessions - 1].stop]
    first = len(protocol.sessions) - len(e.data.added)  # sessions of the first data
    kept = e.data.added[: max(0, sessions - first)]
    base = protocol.classes[: protocol.sessions[min(first, sessions) - 1].stop]
    sizes = [s.stop - s.start for s in protocol.sessions[:sessions]]
    content = e.to_dict()
    content["data"] |= {"classes": list(base), "added": [one.said() for one in (*kept, found.added)]}
    order = {"base": 0, "order_seed": None, "order": [*names, *found.classes]}
    content["protocol"] |= {**order, "sizes": [*sizes, len(found.classes)]}
    if "target" in content.get("krt", {}) and e.method == "krt":
        content["krt"]["target"] = "estimated"  # how many classes there will be is not known
    for section in ("data", "protocol"):
        allowed = {"data": {"validation", "cache", "workers", "features", "views"}, "protocol": set()}[section]
        if odd := sorted(set(overrides.get(section, {})) - allowed):
            raise ConfigError(f"{section}.{odd[0]} is the run's own and stays as it is in a session that is added.")
    made = merge(content, overrides)
    return experiment_from(_plain(made), "krt extend", also=(e.method,))


def _plain(content: Any) -> Any:
    """Without tuples, as YAML has it."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, (list, tuple)) else content


def check_method(run: Run, sessions: int, experiment: Experiment) -> None:
    """ConfigError where the method cannot go on from what the run has kept."""
    before, name = run.experiment, experiment.method
    kind, was = method_class(name), method_class(before.method)
    by_run = f"{run.folder.name} is of method {before.method}"
    if kind.sees != "session":
        raise ConfigError(
            f"method {name} learns from the images of all sessions, and the old ones are gone: extend by another, "
            "such as method=census for a run of it, or train anew on all data."
        )
    if getattr(experiment.options, "oracle", False):
        raise ConfigError("krt.oracle sees true labels of old classes, which nobody has here: krt.oracle=false.")
    if experiment.head != before.head or (
        name != before.method and (issubclass(kind, OwnHead) or issubclass(was, OwnHead))
    ):
        raise ConfigError(f"{by_run}, whose classifier method {name} does not have: extend it by {before.method}.")
    state = run.method_state(sessions - 1)
    if lacking := [key for key in kind.goes_on_from if key not in state]:
        raise ConfigError(
            f"{by_run} and has not kept what {name} goes on from ({', '.join(lacking)}). Extend it by {before.method}, "
            f"or train a run of {name} first."
        )


def check_learns(experiment: Experiment, found: New) -> None:
    """ConfigError where the method learns nothing from such data; notes on what it cannot learn from them."""
    name, kind = experiment.method, method_class(experiment.method)
    old = [of for of in found.added.classes if dict(found.added.same).get(of, of) not in found.classes]
    if kind.only_new and not found.classes:
        raise ConfigError(
            f"method {name} learns from the labels of new classes alone, and these data bring none. Runs of ridge, "
            "census, krt and most other methods learn more of old classes, too."
        )
    if kind.only_new and old:
        found.notes.append(
            f"{name} learns from the labels of new classes alone: those of {', '.join(old)} are not used"
        )
    if found.alone and not kind.has_own("fit"):
        found.notes.append(
            f"every image to learn from shows {', '.join(found.alone)}: nothing tells {name} where it is absent, and "
            "it learns to see it everywhere. Bring images without it, too, or extend a run of ridge or census, which "
            "count the old images as not showing it"
        )
