"""A run folder that begins with the sessions of another, which stays as it is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import Experiment
from ..data import open_halves
from ..errors import KRTError, RunError
from ..machine.home import atomic_write, sweep
from ..protocol import protocol_of
from . import configuration
from .files import to_json
from .folder import Run
from .scores import Scores
from .shown import Tally

MARK = "growing"  # a file in a folder that is being made
FILES = ("model.safetensors", "method.safetensors", "ap.npz", "calibration.json")  # as they are
AHEAD = "ahead.npz"  # too, but after the last: it speaks of images that come no more


def inherit(run: Run, sessions: int, experiment: Experiment, folder: Path, notes: Sequence[str] = ()) -> None:
    """Make the folder of a run that has grown: with the first sessions of ``run``, to which ``experiment`` adds one.

    Files are shared (hard links: both folders only ever replace files) or, where the disk cannot, copied. Labels of
    classes to come are unknown in the scores. The configuration is written last; a folder that has one is left alone.
    notes: for the beginning of its log.
    """
    if (folder / "experiment.yaml").is_file():
        (folder / MARK).unlink(missing_ok=True)  # one that was killed as it was done has left it
        return
    sweep(folder)  # the mark itself may be half written
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise RunError(f"{folder} is not empty, and no run: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / MARK, str(run.folder))  # what was begun here may be begun again
    for begun in folder.glob("session_*"):  # perhaps of another run, or of more sessions of it
        shutil.rmtree(begun)
    classes = protocol_of(experiment.protocol, tuple(sorted(experiment.protocol.order))).classes
    kept, tally = run.protocol.sessions[sessions - 1].stop, _tally(run)
    for session in range(sessions):
        own, new = run.session_folder(session), folder / f"session_{session:02d}"
        new.mkdir(exist_ok=True)
        for name in (*FILES, *([AHEAD] if session + 1 < sessions else [])):
            if (own / name).is_file():
                _share(own / name, new / name)
        with contextlib.suppress(RunError):  # missing or damaged: AP tells enough
            scores = run.scores(session)
            labels = np.full((len(scores.ids), len(classes)), -1, np.int8)
            labels[:, :kept] = scores.labels[:, :kept]
            Scores(scores.ids, scores.scores, labels).write(new / "scores.npz")
        state = json.loads((own / "state.json").read_text(encoding="utf-8"))
        state.pop("made_with", None)
        if "shown" not in state and tally is not None:  # of an older version, or imported
            state["shown"] = tally.shown(session).as_dict()
        about = {"inherited": str(run.folder), "made_by": run.experiment.method}
        state |= {"classes": list(classes), **about, **{key: state[key] for key in about if key in state}}
        atomic_write(new / "state.json", to_json(state, indent=1))
    made = [epoch for epoch in run.epochs if epoch["session"] < sessions]
    atomic_write(folder / "metrics.jsonl", "".join(to_json(one) + "\n" for one in made))
    starts = [{**start, "made_with": {}, "inherited": True} for start in run.starts]  # of other data than are to come
    newest = {**run.environment, "made_with": {}, "inherited": True}
    atomic_write(folder / "environment.json", to_json({**newest, "starts": starts}, indent=1))
    lines = [f"grown from {run.folder}, as it was after session {sessions}", *notes]
    atomic_write(folder / "log.txt", "".join(f"{line}\n" for line in lines))
    configuration.write(folder, experiment)
    (folder / MARK).unlink(missing_ok=True)


def _tally(run: Run) -> Tally | None:
    """What its sessions have shown; None where its training images are not there."""
    with contextlib.suppress(KRTError):
        train, held, _ = open_halves(run.experiment.data)
        labels = train.truth[:, [train.classes.index(name) for name in run.protocol.classes]] * ~held[:, None]
        return Tally(run.protocol, labels)
    return None


def _share(file: Path, new: Path) -> None:
    temporary = new.with_name(f".{new.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(file.resolve(), temporary)
    except OSError:  # another disk, or one that knows no links
        shutil.copy2(file, temporary)
    os.replace(temporary, new)
