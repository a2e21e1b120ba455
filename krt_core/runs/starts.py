"""The starts of a run: what each was made with, which may go on with another's work, and what makes a run mixed.

A run that is interrupted goes on later, perhaps elsewhere and with other code. Every start is recorded in
environment.json; every session tells by which starts it was made. What decides the result must be as it was
(`check_made_with`); where refusing would cost the work of days the run goes on and is marked (`mixed_of`).
docs/runs.md lists both.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config import Experiment, Train
from ..errors import RunError
from ..machine.device import Runtime, environment
from ..methods import class_of, is_oracle
from ..options import is_dotted

PACKAGE = Path(__file__).parents[1]


def made_with_of(
    experiment: Experiment, runtime: Runtime, max_steps: int | None, inputs: dict[str, str], images: dict[str, str]
) -> dict[str, Any]:
    """What decides the result beside the configuration, and what a later start must therefore find unchanged: exemplars
    are row numbers, a quick look is no training, and batch statistics of each process's own images make the number of
    processes part of the result. inputs: hashes of ids and labels; images: of their files (`image_stamp`)."""
    return {
        **inputs,
        "max_steps": max_steps,
        "processes": runtime.world.size if experiment.train.batch_norm == "batch" else None,
        "images": images,
        "precision": str(runtime.dtype).removeprefix("torch."),
    }


def about_start(
    experiment: Experiment, runtime: Runtime, weights: dict[str, Any], made_with: dict[str, Any]
) -> dict[str, Any]:
    """The record of a start."""
    return {
        **environment(runtime), "weights": weights, "at": datetime.now().isoformat(timespec="seconds"),
        "augmentation": experiment.train.augment, "code": _code(experiment), "made_with": made_with,
        "pieces": pieces_of(experiment.train, runtime.world.size),
        **({"oracle": True} if is_oracle(class_of(experiment.method), experiment.options) else {}),
    }  # fmt: skip


def pieces_of(train: Train, processes: int) -> str:
    """How a process takes its share of a batch, in words: sums of pieces are rounded differently."""
    share = -(-train.batch_size // processes)
    return f"of {train.micro_batch} images" if 0 < train.micro_batch < share else "whole"


def check_made_with(folder: Path, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """RunError if what a run was begun with is not what it would go on with. Folders of older versions lack keys: what
    they do not say is not compared."""
    changed = {key for key in now.keys() & stored.keys() if now[key] != stored[key]}
    was = f"{folder} was begun "
    if "inputs" in changed:
        raise RunError(f"{folder}: the data set has changed since this run began. Start it in a new folder.")
    if "images" in changed and (what := _changed_images(stored["images"], now["images"])):
        raise RunError(
            f"{folder}: images have changed since this run began ({what} of their files differ). Put the old ones "
            "back, or start it in a new folder."
        )
    if "held_out" in changed:
        raise RunError(f"{was}with other images held out for validation. Start it in a new folder.")
    if "max_steps" in changed:
        raise RunError(
            f"{was}with --max-steps {stored['max_steps']}, which is not this training. "
            "Delete it or choose another --folder."
        )
    if "processes" in changed:
        raise RunError(
            f"{was}in {stored['processes']} processes, and with train.batch_norm=batch each "
            "takes statistics of its own images: another number is another training. "
            f"Go on with --processes {stored['processes']}, or choose another --folder."
        )
    if "precision" in changed:
        raise RunError(
            f"{was}in {stored['precision']}, and this start would go on in {now['precision']}, which is another "
            f"training. Go on with train.precision={stored['precision']} --folder {folder}, or choose another --folder."
        )


def _changed_images(stored: dict[str, str], now: dict[str, str]) -> str:
    """Copies without their times are the same images."""
    return " and ".join(key for key in ("sizes", "sample") if stored.get(key) != now[key]).replace("sample", "contents")


def precision_of(starts: Sequence[dict[str, Any]]) -> str | None:
    """In which a run is made; None where no record tells."""
    return next((found for start in reversed(starts) if (found := facts(start).get("precision"))), None)


def mixed_of(starts: Sequence[dict[str, Any]]) -> list[str]:
    """In what the starts that made a run differ, in words, as in "commit: abc, then def"; empty for one of a piece."""
    differing = {key: values for key, values in all_facts(starts).items() if len(values) > 1}
    if "commit" in differing:
        differing.pop("code of krt_core", None)  # says the same
    return [f"{key}: {', then '.join(values)}" for key, values in differing.items()]


def all_facts(starts: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """`facts` of several starts, each value once, in order."""
    found: dict[str, list[str]] = {}
    for start in starts:
        for key, value in facts(start).items():
            if value not in (values := found.setdefault(key, [])):
                values.append(value)
    return found


def facts(start: dict[str, Any]) -> dict[str, str]:
    """What is compared between starts, as far as a start tells it."""
    if not start:
        return {"record": "lost"}
    hardware, reasons = start.get("hardware") or {}, start.get("reasons") or {}
    machine = [start.get("host"), hardware.get("gpu") or hardware.get("cpu")]
    made_with, weights = start.get("made_with") or {}, start.get("weights") or {}
    steered = start.get("steered")
    device = str(reasons.get("device", "")).split(":")[0]
    told = {
        "record": "there",
        "commit": start.get("commit"),
        "precision": made_with.get("precision") or str(reasons.get("precision", "")).split(":")[0],
        "device": device,
        "tf32": str(reasons.get("tf32", "")).split(":")[0],
        "processes": reasons.get("processes"),
        "pieces of a batch": start.get("pieces"),
        "threads": hardware.get("threads") if device == "cpu" else None,  # each sums a part, so they decide rounding
        "machine": " ".join(str(part) for part in machine if part),
        "CPU capability": hardware.get("capability") if device == "cpu" else None,
        "python": start.get("python"),
        **(start.get("versions") or {}),
        "first weights": str(weights.get("sha256") or weights.get("weights") or "")[:12],
        "times of the images": (made_with.get("images") or {}).get("times"),
        "variables": None
        if steered is None
        else (" ".join(f"{key}={value}" for key, value in steered.items()) or "none"),
        **{f"code of {place}": digest for place, digest in (start.get("code") or {}).items()},
    }
    return {key: str(value) for key, value in told.items() if value}


def _code(experiment: Experiment) -> dict[str, str]:
    """Hashes of the code that a start runs: of this package, and of every file of the user's own that it names."""
    places = (experiment.method, experiment.data.dataset, experiment.train.augment)
    found = {"krt_core": sorted(PACKAGE.rglob("*.py"))}
    for place in filter(is_dotted, places):
        spec = None
        with contextlib.suppress(ImportError, ValueError):  # of a place that is none it is said elsewhere
            spec = importlib.util.find_spec(place.split(":")[0])
        found[place] = [Path(spec.origin)] if spec and spec.origin and Path(spec.origin).is_file() else []
    digests = {}
    for place, files in found.items():
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.read_bytes())
        digests[place] = digest.hexdigest()[:12]
    return digests
