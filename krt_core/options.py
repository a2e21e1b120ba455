"""Every method's options, and where its class is; a class is imported when a session begins. No torch here.

A method or a reader outside this package goes by its dotted place, ``mylab.lwf:LwF``. It is imported from what is
installed, from ``$KRT_HOME``, and from the current folder and those above it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic.dataclasses import dataclass

from .errors import ConfigError, did_you_mean, shown

WRITABLE = re.compile("[^\0\ud800-\udfff]*")  # no zero byte, and nothing that was no UTF-8 where it was typed
# No key that is not there, no text for a number or the other way round, no NaN.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
LISTED = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # YAML has no tuples
Head = Literal["ica", "linear"]
Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Options:
    """Of methods that have none of their own."""

    head: Head = "linear"  # incremental cross-attention, or pooling and a growing linear layer


@dataclass(frozen=True, config=STRICT)
class KRTOptions:
    head: Head = "ica"  # "linear" is the ablation without ICA (needs token_weight 0)
    token_weight: Weight = 100.0  # λ of the token distillation; 0: without it
    pseudo_labels: bool = True  # false: the ablation without DPL
    mean_labels: Annotated[float, Field(gt=0)] = 2.9  # μ, labels per training image (COCO 2.9, VOC 1.4)
    target: Literal["published", "estimated"] = "published"  # old labels expected per image: μ·C_old/C_total, or
    # estimated from the labels that earlier sessions showed
    rule: Literal["published", "exact"] = "published"  # the walk in steps of 0.005, or the exact quantile
    per_class: bool = False  # a threshold for each old class instead of one for all


@dataclass(frozen=True, config=STRICT)
class PODOptions:
    head: Head = "linear"
    spatial_weight: Weight = 5.0  # λ_c of POD-spatial, times sqrt(C / increment)
    flat_weight: Weight = 180.0  # λ_f of the pooled embedding's cosine distance, times sqrt(C / increment)


@dataclass(frozen=True, config=STRICT)
class FinetuneOptions:
    head: Head = "linear"
    old: Literal["zero", "unknown"] = "zero"  # what labels of old classes count as that a session does not show:
    # absent, or nothing at all, so that the loss is on the session's own classes and on what exemplars show


@dataclass(frozen=True, config=STRICT)
class RidgeOptions:
    head: Literal["linear"] = "linear"
    penalty: Weight = 0.0  # λ, as a share of the mean diagonal of the embeddings' scatter; 0: chosen by leaving each
    # image of the session out in turn
    old: Literal["zero", "soft", "class_mean", "unknown"] = "zero"  # what labels that a session does not show count as:
    # absent, what the head so far says of them, the share of images with the class, or nothing at all
    weights: Literal["equal", "rare"] = "equal"  # of images: rare as in L3A, the more, the rarer their classes are


# name → (place of the class, its options), in the order in which tables and figures show them
METHODS: dict[str, tuple[str, type]] = {
    "krt": ("krt_core.methods.krt:KRT", KRTOptions),
    "pod": ("krt_core.methods.pod:POD", PODOptions),
    "finetune": ("krt_core.methods.finetune:Finetune", FinetuneOptions),
    "masked": ("krt_core.methods.finetune:Masked", Options),
    "joint": ("krt_core.methods.joint:Joint", Options),
    "ridge": ("krt_core.methods.ridge:Ridge", RidgeOptions),
    "joint_ridge": ("krt_core.methods.ridge:JointRidge", RidgeOptions),
}


def is_dotted(name: Any) -> bool:
    """Does a name say where something outside the package is, as ``mylab.lwf:LwF`` does?"""
    module, colon, attribute = str(name).partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def short_name(name: str) -> str:
    """What a method is called in folders, tables and as a section of a preset: ``LwF`` for ``mylab.lwf:LwF``."""
    return name.rpartition(":")[2]


def method_class(name: str, where: str = "method") -> Any:
    """The class of a method by its name or dotted place. ConfigError where it is not to be had."""
    return find(METHODS[name][0] if name in METHODS else name, where)


@functools.cache
def options_of(name: str) -> type:
    """The options of a method; those of one outside the package become as strict as ours. ConfigError as `find`."""
    if name in METHODS:
        return METHODS[name][1]
    found = getattr(method_class(name), "Options", Options)
    if not dataclasses.is_dataclass(found):
        raise ConfigError(f"method {name}: its Options must be a dataclass, found {found!r}.")
    if "__pydantic_validator__" in vars(found):
        return found
    frozen = found.__dataclass_params__.frozen  # type: ignore[attr-defined]  # as it was made
    return dataclass(found, frozen=frozen, config=STRICT)


def find(place: str, where: str) -> Any:
    """What ``package.module:name`` names. ConfigError, with the way out, where it cannot be imported; ``where`` is the
    key that asks for it."""
    module_name, _, attribute = place.partition(":")
    _reach(module_name.partition(".")[0])
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = getattr(error, "name", None) or ""
        if not module_name.startswith(missing) or not missing:
            raise ConfigError(f"{where}: {place} cannot be imported: {error}.") from error
        raise ConfigError(
            f"{where}: there is no module {missing!r} for {place}. Start in the folder that holds {_file(missing)} (or "
            "in one below it), set KRT_HOME to that folder, or install the package."
        ) from None
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no {attribute!r}.{did_you_mean(attribute, names)}")
    return getattr(module, attribute)


def _reach(package: str) -> None:
    """Let a top-level package be imported from $KRT_HOME, the current folder or one above it; here and in every process
    started from here, whatever folder that works in."""
    if package in sys.modules or importlib.util.find_spec(package) is not None:
        return
    here = Path.cwd()
    own = [Path(os.environ["KRT_HOME"]).expanduser()] if os.environ.get("KRT_HOME") else []
    for folder in map(str, (*own, here, *here.parents)):
        if os.path.isfile(f"{folder}/{package}.py") or os.path.isdir(f"{folder}/{package}"):
            sys.path.append(folder)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))
            importlib.invalidate_caches()
            return


def _file(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}.py or {path}/"


# ---- what a key may hold ----


def one_of(*known: str) -> PlainValidator:
    """For a key: one of these names, or the dotted place of something outside the package."""

    def check(value: Any) -> str:
        if isinstance(value, str) and (value in known or is_dotted(value)):
            return value
        choice = ", ".join(known)
        hint = did_you_mean(shown(value), known)
        raise ValueError(f"must be one of {choice}, or a place such as mylab.module:name; found {shown(value)}.{hint}")

    return PlainValidator(check)


def _channels(value: Any) -> float | tuple[float, ...] | None:
    several = isinstance(value, (list, tuple))
    if value is None:
        return None
    numbers = list(value) if several else [value]
    if len(numbers) != (3 if several else 1) or not all(type(n) in (int, float) and abs(n) < 1e6 for n in numbers):
        raise ValueError(f"must be a number or three, one for each channel; found {shown(value)}.")
    return tuple(map(float, value)) if several else float(value)


Count = Annotated[int, Field(ge=0, le=2**31 - 1)]  # 0 stands for none, or for a choice of the program's own
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Field(gt=0)]
Channels = Annotated[float | tuple[float, ...] | None, PlainValidator(_channels)]
Names = Annotated[tuple[str, ...], LISTED]
Numbers = Annotated[tuple[Number, ...], LISTED]


# ---- checking ----

SAID = {  # pydantic's kind of error → what is asked for, in our words
    "int_type": "a whole number", "int_from_float": "a whole number", "bool_type": "true or false",
    "string_type": "text", "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "a section of keys",
    "dataclass_type": "a section of keys", "greater_than_equal": "at least {ge}", "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}", "less_than": "less than {lt}", "string_too_short": "a name",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' only",
}  # fmt: skip


def convert(kind: Any, value: Any, key: str, where: str) -> Any:
    """``value`` as the dataclass ``kind``, or a ConfigError that names the key below ``key``, what it must be and what
    was found. YAML reads 1e-4 as text; here it becomes a number."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {key} must be a section of keys, found {shown(value)} ({type(value).__name__}).")
    hints, out = _hints(kind), {}
    for name, item in value.items():
        dotted = f"{key}.{name}".lstrip(".")
        if name not in hints:
            raise ConfigError(f"{where}: unknown key {shown(dotted)}.{did_you_mean(shown(name), hints)}")
        if dataclasses.is_dataclass(hints[name]):
            item = convert(hints[name], item, dotted, where)
        elif hints[name] is float and isinstance(item, str):
            with contextlib.suppress(ValueError):
                item = float(item)
        elif isinstance(item, str) and not WRITABLE.fullmatch(item):
            raise ConfigError(f"{where}: {dotted} holds bytes that are no text, found {shown(item)}.")
        out[name] = item
    try:
        return kind(**out)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error.errors()[0], hints, key)}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _explain(error: Any, hints: dict[str, Any], key: str) -> str:
    """What pydantic found wrong, in our words."""
    name, *place = error["loc"]
    dotted = f"{key}.{name}".lstrip(".") + "".join(f"[{part}]" for part in place)
    found, kind = error["input"], error["type"]
    if kind == "value_error":  # of a check of our own
        return f"{dotted} {error['ctx']['error']}"
    if kind == "missing":
        return f"{dotted} is needed."
    if kind == "literal_error":
        choice = [str(one) for one in typing.get_args(hints[name])]
        return f"{dotted} must be one of {', '.join(choice)}; found {shown(found)}.{did_you_mean(shown(found), choice)}"
    asked = SAID[kind].format(**error.get("ctx", {})) if kind in SAID else error["msg"]
    return f"{dotted} must be {asked}, found {shown(found)} ({type(found).__name__})."
