"""Configuration: frozen dataclasses, strict YAML, one stable hash.

Precedence is default < preset < override. An unknown key, a wrong type or a value out of bounds is an error that names
the key, its place and the nearest known name. The effective configuration is saved with the run and read back by the
same code. Nothing heavy is imported: a misspelt key answers at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import Field, Strict
from pydantic.dataclasses import dataclass

from .errors import ConfigError, did_you_mean, shown
from .options import METHODS, STRICT, Calibrate, Seed, is_dotted, one_of, options_of, short_name
from .presets import merge, nested, parse_yaml, preset_names, read_preset
from .presets.checking import check_changes, convert
from .presets.retired import retire
from .presets.said import listed
from .presets.sections import DATASETS, Data, Model, Protocol, Replay, Train, even, protocol_name
from .presets.together import check_together

# fmt: off
__all__ = [
    "Calibrate",
    "Data",
    "Experiment",
    "Model",
    "Protocol",
    "Replay",
    "Train",
    "convert",
    "even",
    "experiment_from",
    "load_experiment",
    "load_experiments",
    "parse_yaml",
    "preset_names",
    "protocol_name",
]
# fmt: on

# What a run may be continued or repeated with differently: none of it decides a result.
BESIDE = {
    "name", "seed", "data.cache", "data.workers", "train.micro_batch", "train.eval_batch_size", "train.tensorboard",
    "train.callbacks",
}  # fmt: skip


@dataclass(frozen=True, config={**STRICT, "strict": False})
class Experiment:
    """Everything that decides the result of a run. ``options`` belong to the method (see ``krt_core.options``)."""

    name: Annotated[str, Strict(), Field(pattern=r"^[\w.-]+$")] = "experiment"
    method: Annotated[str, one_of(*METHODS)] = "krt"  # or mylab.module:Name, a method of your own
    seed: Annotated[Seed, Strict()] = 0  # weights, shuffling, augmentation, random exemplars
    data: Data = field(default_factory=Data)
    protocol: Protocol = field(default_factory=Protocol)
    model: Model = field(default_factory=Model)
    replay: Replay = field(default_factory=Replay)
    train: Train = field(default_factory=Train)
    calibrate: Calibrate = field(default_factory=Calibrate)
    options: Any = None  # dataclass of the method, chosen by `method`; in YAML a section of the method's name
    retired: tuple[tuple[str, Any], ...] = ()  # keys of old run folders that nothing reads any more

    @property
    def head(self) -> str:
        """The kind of head the method asks for: "ica" or "linear"."""
        options = self.options
        return (options.get("head") if isinstance(options, dict) else getattr(options, "head", None)) or "linear"

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict; the method's options stand under the method's name, as in a preset."""
        out = dataclasses.asdict(self)
        out["data"]["added"] = [one.said() for one in self.data.added]
        out[short_name(self.method)] = out.pop("options") or {}
        for dotted, value in out.pop("retired"):
            section, key = dotted.split(".")
            out[section][key] = value
        return json.loads(json.dumps(out))  # tuples become lists, so that it equals what YAML reads back

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def changes(self) -> dict[str, Any]:
        """Dotted keys that are not at their default and decide the result, with their values."""
        return dict(self._changes)

    @cached_property  # menus and tables of a hundred runs ask for it thousands of times
    def _changes(self) -> dict[str, Any]:
        kind = None if isinstance(self.options, dict) else type(self.options)
        default = Experiment(method=self.method, options=kind() if self.options is not None and kind else None)
        before, now = _flat(default.to_dict()), _flat(self.to_dict())
        beside = set(BESIDE)
        if self.data.dataset in DATASETS[:3]:  # any other folder is the user's own and told apart by its place alone
            beside.add("data.root")
        return {k: v for k, v in now.items() if k not in beside and (k not in before or v != before[k])}

    def hash(self) -> str:
        """Eight hex digits over everything that decides the result.

        Only what differs from the defaults counts: a key that is added later leaves the hashes of older runs alone.
        """
        return self._hash

    @cached_property
    def _hash(self) -> str:
        content = {"method": self.method, **self.changes()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Name of the run folder: ``<name>-<method>-<hash8>-s<seed>``."""
        return f"{self.name}-{short_name(self.method)}-{self.hash()}-s{self.seed}"


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """A dict of sections as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    for key, plain in (("model.mean", 0.0), ("model.std", 1.0)):  # what nothing said stands for
        if flat.get(key, plain) is None:
            flat[key] = "timm" if flat["model.weights"] == "timm" else plain
    return flat


# ---- reading ----


def load_experiment(preset: str | Path, overrides: Mapping[str, Any] | list[str] | str | None = None) -> Experiment:
    """Read a preset (a shipped name or a path to a YAML file) and apply overrides.

    A preset may say ``extends: other`` and then holds only what differs from that one; under ``methods`` it may say
    what else differs where one of them is chosen.

    ``overrides`` is a nested or dotted mapping (``{"train.epochs": 3}``) or a list of ``key=value`` strings; a text,
    as papermill passes it, is read as the one or the other. Raises ConfigError on an unknown preset, key, type or value
    and where a key is set twice.
    """
    changes = nested(overrides, kind_of)
    content, where = read_preset(preset, changes.get("method", ""), _check_own)
    content.setdefault("name", Path(preset).stem)
    return experiment_from(merge(content, changes), where, also=(content.get("method"),))


def load_experiments(
    preset: str | Path,
    methods: Iterable[str] | str,
    seeds: Iterable[int] | int | str,
    overrides: Mapping[str, Any] | list[str] | str | None = None,
) -> list[Experiment]:
    """One experiment for every seed and method, seeds outermost.

    A method may say what to change for it, which goes before ``overrides``: ``"krt replay.per_class=20"``. One method
    or one seed need no list, and a list may be text, as papermill passes it. Raises ConfigError as `load_experiment`.
    """
    found = []
    for seed in listed("seeds", seeds, int):
        for method in listed("methods", methods, str):
            name, *changes = method.split() or [""]
            own = nested([f"method={name}", *changes], kind_of)
            found.append(load_experiment(preset, {**merge(nested(overrides, kind_of), own), "seed": seed}))
    return found


def _check_own(method: str, changes: Mapping[str, Any], where: str) -> None:
    """ConfigError where what a preset says of one method cannot be right."""
    if method not in METHODS and not (isinstance(method, str) and is_dotted(method)):
        raise ConfigError(f"{where}: there is no such method.{did_you_mean(shown(method), METHODS)}")
    own = short_name(method)  # of a method outside the package, which need not be at hand
    check_changes({k: v for k, v in changes.items() if k != own or k in METHODS}, _sections(), where)


def _sections() -> dict[str, Any]:
    """Sections of a preset, and the dataclass of each."""
    hints = typing.get_type_hints(Experiment)
    return {k: v for k, v in hints.items() if dataclasses.is_dataclass(v)} | {k: v[1] for k, v in METHODS.items()}


def kind_of(dotted: str) -> str:
    """What a dotted key holds: "text", "names" (a list of texts) or "" for anything else."""
    section, _, key = dotted.rpartition(".")
    kind = _sections().get(section) if section else Experiment
    hint = typing.get_type_hints(kind).get(key) if kind else None
    if hint is str or (get_origin(hint) is Literal and isinstance(get_args(hint)[0], str)):
        return "text"
    return "names" if hint == tuple[str, ...] else ""


def experiment_from(
    content: Mapping[str, Any], where: str = "experiment", also: Iterable[Any] = (), stored: bool = False
) -> Experiment:
    """Build an Experiment from a nested mapping, strictly. Sections of other methods are checked, then left out.

    also: methods outside the package that may have a section too. stored: of a run folder, whose method need not be at
    hand to look at it; its options then stay the plain dict they are.
    """
    content = dict(content)
    method = content.get("method", "krt")
    if not (isinstance(method, str) and (method in METHODS or is_dotted(method))):
        raise ConfigError(f"{where}: there is no method {shown(method)}.{did_you_mean(shown(method), METHODS)}")
    names = {short_name(name): name for name in (*METHODS, *filter(is_dotted, also), method)}
    sections = {names[key]: content.pop(key) for key in list(content) if key in names}
    known = {f.name for f in dataclasses.fields(Experiment)} - {"options", "retired"}
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {shown(key)}.{did_you_mean(shown(key), known | set(names))}")
    options = {}
    for name in {*sections, method}:
        try:
            options[name] = convert(options_of(name), sections.get(name, {}), short_name(name), where)
        except ConfigError:
            if not (stored and name == method and is_dotted(name)):
                raise
            options[name] = dict(sections.get(name, {}))
    retired = retire(content, where, stored)
    made = convert(Experiment, content, "", where)
    experiment = dataclasses.replace(made, options=options[method], retired=retired)
    check_together(experiment, where)
    return experiment
