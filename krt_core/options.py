"""Every method's options, and where its class is; a class is imported when a session begins. No torch here.

A method or a reader outside this package goes by its dotted place, ``mylab.lwf:LwF``. It is imported from what is
installed, from ``$KRT_HOME``, and from the current folder and those above it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass

from .errors import ConfigError, did_you_mean, shown

# No key that is not there, no text for a number or the other way round, no NaN.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
LISTED = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # YAML has no tuples
Head = Literal["ica", "linear"]
Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Calibrate:
    """Of a run of any method that holds images out (``data.validation``); docs/calibration.md."""

    kind: Literal["platt", "isotonic", "none"] = "platt"  # how scores become probabilities, class by class
    aim: Literal["f1", "precision", "recall"] = "f1"  # of each class's threshold: its best F1, or one that holds `at`
    at: Annotated[float, Field(gt=0, lt=1)] = 0.9  # the precision or recall to hold


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
    oracle: bool = False  # the true labels of old classes in place of restored ones: what labels can bring at most. It
    # sees what no method may, and every table says so


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
class LwFOptions:
    head: Head = "linear"
    weight: Weight = 1.0  # λ of the distillation, beside the loss of the same image's new classes
    temperature: Annotated[float, Field(gt=0)] = 2.0  # T, by which logits are divided in it


@dataclass(frozen=True, config=STRICT)
class EWCOptions:
    head: Head = "linear"
    old: Literal["zero", "unknown"] = "unknown"  # as finetune.old; unknown: a session's loss is on its own classes
    weight: Weight = 400.0  # λ of the penalty, beside a loss that is a mean over images (PNAS 2017: 400)
    decay: Annotated[float, Field(ge=0, le=1)] = 0.95  # γ, what of the importance goes on to the next session; 1: all
    images: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1000  # of a session, by which importance is judged; 0: all


@dataclass(frozen=True, config=STRICT)
class ICaRLOptions:
    head: Head = "linear"
    weight: Weight = 1.0  # λ of the distillation, beside the loss of the same image's new classes


@dataclass(frozen=True, config=STRICT)
class DERppOptions:
    head: Head = "linear"
    old: Literal["zero", "unknown"] = "zero"  # as finetune.old, on the session's own images
    alpha: Weight = 0.1  # α of the distance from the stored logits
    beta: Weight = 0.5  # β of the loss on the labels of exemplars


@dataclass(frozen=True, config=STRICT)
class RidgeOptions:
    head: Literal["linear"] = "linear"
    penalty: Weight = 0.0  # λ, as a share of the mean diagonal of the embeddings' scatter; 0: chosen by leaving each
    # image of the session out in turn
    old: Literal["zero", "soft", "class_mean", "unknown"] = "zero"  # what labels that a session does not show count as:
    # absent, what the head so far says of them, the share of images with the class, or nothing at all
    weights: Literal["equal", "rare"] = "equal"  # of images: rare as in L3A, the more, the rarer their classes are


@dataclass(frozen=True, config=STRICT)
class CensusOptions:
    old: ClassVar = "zero"  # as ridge.old and ridge.weights: an image must count alike whenever it comes
    weights: ClassVar = "equal"
    head: Literal["linear"] = "linear"
    penalty: Weight = 0.0  # as ridge.penalty
    once: bool = True  # false: an image counts in each session that it comes in, as with ridge
    parts: Weight = 0.3  # a, what the best part of an image counts for beside the whole; 0: nothing
    cells: Annotated[int, Field(ge=1, le=65536)] = 3  # parts a side, no more than the map has


@dataclass(frozen=True, config=STRICT)
class L3AOptions:
    head: Literal["linear"] = "linear"
    penalty: Annotated[float, Field(gt=0)] = 1000.0  # λ, added to the sums as it is (the paper: 1000 for TResNet, 1 for
    # ViT); it depends on the scale of the features, so search it
    expand: Annotated[int, Field(ge=0, le=2**31 - 1)] = 4096  # width of the random layer where model.expand says none;
    # 0: none (the paper: 4096 for COCO, 8192 for VOC)
    old: Literal["pseudo", "zero"] = "pseudo"  # labels that a session does not show: 1 above the threshold, or all 0
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7  # of the sigmoid of a regression value
    weights: Literal["rare", "equal"] = "rare"  # of images: the more, the rarer their classes are in the session


@dataclass(frozen=True, config=STRICT)
class RebLLOptions:
    head: Head = "linear"
    weight: Weight = 1.0  # of the distillation beside the classification
    positive: Weight = 1.0  # w₊, of what the old model says is there
    negative: Weight = 2.0  # w₋, of what it says is absent
    decay: Weight = 1.0  # how much less counts what it is overconfident of; 0: nothing
    gamma_neg: Weight = 2.0  # γ− of the classification after the first session; at 4, as elsewhere, negatives count for
    # less
    relabel: Annotated[float, Field(ge=0, le=1)] = 0.8  # probability above which an old class that is not shown is
    # taken to be there; 1: never


@dataclass(frozen=True, config=STRICT)
class KBKOptions:
    head: Literal["linear"] = "linear"  # of the network, which stands idle beside the method's own
    blocks: Annotated[int, Field(ge=1, le=64)] = 1  # of self-attention over patch tokens and class queries
    heads: Annotated[int, Field(ge=1, le=65536)] = 4  # of attention; must divide model.embed_dim
    thresholds: Literal["class", "shared", "none"] = "class"  # of pseudo labels: each class's own, the mean over all
    # old classes, or no pseudo labels at all
    unknown_weight: Weight = 1.0  # of the loss that trains the unknown output; 0: without it
    balance: bool = True  # old classes' terms weighted by |p - y| over its mean; false: equally


@dataclass(frozen=True, config=STRICT)
class MultiLaneOptions:
    head: Literal["linear"] = "linear"  # of the network, which stands idle beside the method's own
    selectors: Annotated[int, Field(ge=1, le=65536)] = 16  # of each session, each of which sums up the patch tokens
    heads: Annotated[int, Field(ge=1, le=65536)] = 4  # of attention; must divide model.embed_dim
    adapt: bool = False  # does the backbone learn in the first session, through its lane, where model.freeze lets it?
    # It stands still afterwards in any case, as the frozen lanes stand on it


@dataclass(frozen=True, config=STRICT)
class AGCNOptions:
    head: Literal["linear"] = "linear"  # of the network, which stands idle beside the method's own
    embeddings: Literal["random", "learned"] = (
        "random"  # of the classes, drawn for each: fixed, or a start to learn from
    )
    correlation: bool = True  # false: the ablation without relations, where each class is a node by itself
    classification_weight: Annotated[float, Field(gt=0)] = 0.07  # λ_cls
    distillation_weight: Weight = 0.93  # λ_dst
    graph_weight: Weight = 1.0  # λ_gph of the relationship-preserving loss; 0: without it


@dataclass(frozen=True, config=STRICT)
class CSCOptions:
    head: Literal["linear"] = "linear"  # of the network, which stands idle beside the method's own
    graph: bool = True  # false: the activation maps' highest values alone answer
    distillation_weight: Weight = 1.0  # λ
    entropy_weight: Weight = 0.1  # β of the entropy of old classes; 0: without it


# name → (place of the class, its options), in the order in which tables and figures show them
METHODS: dict[str, tuple[str, type]] = {
    "krt": ("krt_core.methods.krt:KRT", KRTOptions),
    "pod": ("krt_core.methods.pod:POD", PODOptions),
    "finetune": ("krt_core.methods.finetune:Finetune", FinetuneOptions),
    "masked": ("krt_core.methods.finetune:Masked", Options),
    "lwf": ("krt_core.methods.lwf:LwF", LwFOptions),
    "ewc": ("krt_core.methods.ewc:EWC", EWCOptions),
    "er": ("krt_core.methods.er:ER", FinetuneOptions),
    "icarl": ("krt_core.methods.icarl:ICaRL", ICaRLOptions),
    "derpp": ("krt_core.methods.derpp:DERpp", DERppOptions),
    "joint": ("krt_core.methods.joint:Joint", Options),
    "cumulative": ("krt_core.methods.joint:Cumulative", Options),
    "ridge": ("krt_core.methods.ridge:Ridge", RidgeOptions),
    "census": ("krt_core.methods.census:Census", CensusOptions),
    "rebll": ("krt_core.methods.rebll:RebLL", RebLLOptions),
    "l3a": ("krt_core.methods.l3a:L3A", L3AOptions),
    "kbk": ("krt_core.methods.kbk:KBK", KBKOptions),
    "agcn": ("krt_core.methods.agcn:AGCN", AGCNOptions),
    "csc": ("krt_core.methods.csc:CSC", CSCOptions),
    "multilane": ("krt_core.methods.multilane:MultiLane", MultiLaneOptions),
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
Counts = Annotated[tuple[Count, ...], LISTED]
