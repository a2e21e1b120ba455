"""experiment.yaml of a run folder, and what a start that continues the run may ask for differently.

What decides a result must be the same. `BESIDE` decides none, data may have been moved (whether they are the same is
told by their hashes, see `krt_core.runs.starts`), and a run begun with train.precision=auto may name what that was.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open

from ..config import BESIDE, Experiment, experiment_from, parse_yaml
from ..errors import ConfigError, KRTError, RunError
from ..machine.home import atomic_write
from .files import damaged

NAME = "experiment.yaml"
OTHER_VERSION = "If another version of the workbench made this folder, open it with that one."
START, END = "---\n", "...\n"  # a file that has the one has lost its end where it lacks the other


def write(folder: Path, experiment: Experiment) -> None:
    atomic_write(folder / NAME, START + experiment.to_yaml() + END)


def read(folder: Path) -> Experiment:
    """Raises RunError where the file is damaged, ConfigError where a key or value in it is not known."""
    path = folder / NAME
    way_out = f"start the same experiment again with --folder {folder}, which writes it anew."
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_yaml(text, str(path))
    except (ValueError, KRTError) as error:
        raise damaged(path, error, way_out) from None
    if not content or (text.startswith(START) and not text.endswith(END)):
        raise damaged(path, "its end is missing", way_out)
    try:
        return experiment_from(content, str(path), stored=True)
    except ConfigError as error:
        raise ConfigError(f"{error} {OTHER_VERSION}") from None


def taken(folder: Path, stored: Experiment, asked: Experiment, precision: str | None) -> tuple[Experiment, list[str]]:
    """The experiment as the run goes on with it, and what changes with that, in words.

    precision: in which the run was begun. Raises RunError if the folder holds another experiment.
    """
    experiment = dataclasses.replace(asked, name=stored.name)  # the name is the folder's
    if stored.train.precision == "auto" and asked.train.precision == precision:
        experiment = dataclasses.replace(experiment, train=dataclasses.replace(asked.train, precision="auto"))
    at_its_place = dataclasses.replace(experiment, data=dataclasses.replace(asked.data, root=stored.data.root))
    if (stored.hash(), stored.seed) != (at_its_place.hash(), asked.seed):
        raise RunError(f"{folder} holds another experiment: choose another folder, or delete it to start afresh.")
    before, now = stored.to_dict(), experiment.to_dict()
    keys = [key.split(".") for key in sorted({*BESIDE, "data.root"}) if "." in key]
    return experiment, [
        f"{section}.{key}: {before[section].get(key)!r} until now, {now[section].get(key)!r} from now on"
        for section, key in keys
        if before[section].get(key) != now[section].get(key)
    ]


def made_by(model: Path, experiment: Experiment) -> bool:
    """Does the header of a session's model.safetensors tell of this experiment?"""
    try:
        with safe_open(model, "pt") as file:
            said = json.loads(file.metadata()["krt"])["experiment"]
        made = experiment_from(said, str(model), stored=True)
    except Exception:  # no safetensors file, or without our header
        return False
    return (made.hash(), made.seed) == (experiment.hash(), experiment.seed)
