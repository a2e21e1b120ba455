"""What `krt methods` tells of each method: where it comes from, what it needs, and what it keeps of the past.

Nothing of it is typed by hand but the paper and the words for what is stored, which stand in the method's class. The
bytes are counted by training each method through the sessions of a preset, on images that are made up: what a method
keeps hangs on the numbers of classes, features, parameters and exemplars, not on what the images show.
"""

from __future__ import annotations

import json
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
from PIL import Image

from ...config import Data, Experiment, load_experiment
from ...data import open_dataset
from ...data.dataset import MultiLabelDataset, Split
from ...errors import ConfigError, DataError, KRTError, did_you_mean
from ...methods import METHODS, Method, method_class
from ...options import is_dotted, options_of, short_name
from ...session import train
from .published import published_classes

OLD = {"ask_old", "old_model", "old_scores"}  # what of the old network a method can name, see `Context`

SEES = {
    "session": "its session's labels", "seen": "all labels so far: a bound", "all": "all labels at once: a bound"
}  # fmt: skip


def methods_table(names: Sequence[str] = (), preset: str = "", overrides: Sequence[str] = ()) -> pd.DataFrame:
    """One line per method; names: of shipped methods, or dotted places of others; without any, all shipped ones.

    preset: also the ``exemplars`` (images) and ``state_bytes`` that are kept at the end of its last session. Raises
    ConfigError for a name or preset that is none.
    """
    for name in names:
        if name not in METHODS and not is_dotted(name):
            raise ConfigError(f"There is no method {name!r}.{did_you_mean(name, METHODS)}")
    lines = [about(name) for name in names or METHODS]
    if preset:
        lines = [{**line, **kept(line["place"], preset, overrides)} for line in lines]
    return pd.DataFrame(lines).drop(columns="place")


def about(name: str) -> dict[str, Any]:
    """What a method says of itself."""
    kind, head = method_class(name), get_type_hints(options_of(name)).get("head")
    heads = list(get_args(head)) if head else ["linear"]
    default = getattr(options_of(name), "head", "linear")
    return {
        "place": name,
        "method": short_name(name),
        "paper": kind.paper,
        "sees": SEES[kind.sees],
        "oracle": f"{short_name(name)}.{kind.oracle}=true" if kind.oracle else "",
        "learns_by": "closed form" if kind.has_own("fit") else "gradients",
        "head": " or ".join(sorted(heads, key=lambda one: one != default)),
        "old_network": _asks_old(kind),
        "replays": "needed" if kind.needs_exemplars else "used" if kind.replays else "",
        "maps": bool(kind.needs_maps or default == "ica"),
        "unknown_labels": bool(vars(kind).get("knows_unknown")),
        "stores": kind.stores,
    }


def _asks_old(kind: type[Method]) -> bool:
    """Does its code name the old network?"""
    own = (vars(one) for one in kind.__mro__[: kind.__mro__.index(Method)])
    functions = [f for members in own for f in members.values() if isinstance(f, types.FunctionType)]
    return any(OLD & set(_names(function.__code__)) for function in functions)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


# ---- what is kept, counted ----


def kept(name: str, preset: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """``exemplars`` (images) and ``state_bytes`` of a method after the last session of a preset; None where it refuses
    the preset, and ``note`` says why. The images of exemplars are not counted in bytes: that is for a run to tell."""
    experiment = load_experiment(preset, [*overrides, f"method={name}"])
    with tempfile.TemporaryDirectory() as folder:
        small, note = _small(experiment, Path(folder))
        try:
            run = train(small, Path(folder) / "run", show="none", device="cpu", max_steps=1)
            state = run.session_state(run.finished_sessions - 1)
        except KRTError as error:
            return {"exemplars": None, "state_bytes": None, "note": str(error)}
    stored = sum(map(len, state["exemplar_ids"]))
    return {"exemplars": stored, "state_bytes": state["method_bytes"], "note": note}


def _small(e: Experiment, folder: Path) -> tuple[Experiment, str]:
    """The same setting on made-up images, a step a session; and what must be known of it. They are small where only
    their mean is read, so that their size decides nothing."""
    classes, note = _classes(e.data)
    first = e.protocol.sizes[0] if e.protocol.sizes else e.protocol.base or e.protocol.increment
    quota = e.replay.per_class or e.replay.budget // first
    content = {"classes": classes, "images": max(2, quota)}
    (folder / "made_up.json").write_text(json.dumps(content), encoding="utf-8")
    place = f"{__name__}:made_up"
    side = e.data.image_size if e.head == "ica" or method_class(e.method).needs_maps else min(e.data.image_size, 64)
    data = Data(dataset=place, root=str(folder), image_size=side, cache=False, features=False, workers=1)
    how = replace(
        e.train, epochs=1, batch_size=4, augment="none", evaluate_every=0, report="last", tensorboard=False,
        callbacks=(), compile=False, precision="float32", schedule="constant",
    )  # fmt: skip
    return replace(e, data=data, train=how, model=replace(e.model, weights="")), note


def _classes(data: Data) -> tuple[list[str], str]:
    """The classes of a preset, from its data where they are at hand."""
    if data.classes:
        return list(data.classes), ""
    try:
        return list(open_dataset(data, "train").classes), ""
    except DataError:
        names = sorted(published_classes("coco2014" if data.dataset.startswith("coco") else "voc2007"))
        return names, f"its data are not at hand: counted with {len(names)} classes"


def made_up(root: Path, split: Split) -> MultiLabelDataset:
    """So many grey images of each class and nothing else, or, to test on, one of all classes."""
    content = json.loads((root / "made_up.json").read_text(encoding="utf-8"))
    classes, each = tuple(content["classes"]), content["images"] if split == "train" else 1
    labels = np.repeat(np.eye(len(classes), dtype=bool), each, axis=0) if split == "train" else None
    labels = np.ones((1, len(classes)), bool) if labels is None else labels
    image = Image.new("RGB", (8, 8), (128, 128, 128))
    ids = np.array([f"{split}_{number:06d}.png" for number in range(len(labels))])
    for name in ids:
        if not (root / name).is_file():
            image.save(root / name)
    return MultiLabelDataset("made up", split, root, ids, ids, labels, classes)


# ---- how it is shown ----

YES = {True: "yes", False: "–"}


def shown(table: pd.DataFrame, width: int | None = None) -> str:
    """The table for a terminal so wide, or as wide as it is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False, leading=0)
    measured = "state_bytes" in table
    for title in ("method", "paper", "needs", "unknown", "keeps of a session", *(["bytes of it"] if measured else [])):
        grid.add_column(title, overflow="fold", justify="right" if title == "bytes of it" else "left")
    for line in table.to_dict("records"):
        cells = [line["method"], line["paper"] or "–", _needs(line), YES[line["unknown_labels"]], line["stores"]]
        grid.add_row(*map(escape, cells), *([escape(_bytes(line))] if measured else []))
    console = Console(width=width)
    with console.capture() as capture:
        console.print(grid)
    return capture.get()


def _needs(line: Mapping[str, Any]) -> str:
    parts = [
        line["learns_by"], f"{line['head']} head", "old network" if line["old_network"] else "",
        "maps" if line["maps"] else "",
        {"needed": "exemplars", "used": "exemplars if kept", "": "no exemplars"}[line["replays"]],
        line["sees"] if line["sees"].startswith("all") else "",
        f"ORACLE with {line['oracle']}: true old labels, a bound" if line["oracle"] else "",
    ]  # fmt: skip
    return ", ".join(filter(None, parts))


def _bytes(line: Mapping[str, Any]) -> str:
    if line["state_bytes"] is None or line["state_bytes"] != line["state_bytes"]:
        return "refused"
    images = f" + {line['exemplars']:.0f} images" if line["exemplars"] else ""
    return f"{line['state_bytes']:,.0f}{images}"
