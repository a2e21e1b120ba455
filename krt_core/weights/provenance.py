"""What a weights file is, what it was trained on, and why it may know labels that are to be learned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .heads import BY_OUTPUTS, Head, classes_of, heads_of, leak_by
from .parts import Part
from .published import is_published, session_sizes

NO_LABELS_OF = (  # names that tell how a network without labels was trained
    (r"encoder_[qk]|momentum_encoder|(^|\.)queue$", "MoCo"),
    (r"last_layer|dino_loss", "DINO"),
    (r"decoder_pred|mask_token", "masked images"),
    (r"online_|target_", "BYOL"),
    (r"projector|projection_head|prototypes", "contrasts of images"),
)


@dataclass
class Provenance:
    layout: str  # krt-workbench | krt-published | asl | miil-21k | tresnet | timm | lite0-pypi | unknown
    tensors: dict[str, Tensor]
    trained_on: str
    classes: int | None
    leak: str | None
    taken: str = ""  # keys and prefixes under which the tensors lay
    notes: list[str] = field(default_factory=list)
    everything: dict[str, Tensor] = field(default_factory=dict, repr=False)  # all networks in the file, by dotted name
    details: dict[str, Any] = field(default_factory=dict)


def explain(parts: list[Part], about: dict[str, Any]) -> Provenance:
    """By the names and shapes of its tensors; what a file says of itself can add to that and never take away."""
    everything = {f"{part.at}.{name}".lstrip("."): tensor for part in parts for name, tensor in part.tensors.items()}
    heads = heads_of(everything)
    classes = classes_of(heads, everything)
    made = (
        _of_krt(everything, about) or _of_tresnet(everything, classes) or _of_others(parts, everything, heads, classes)
    )
    made.everything = everything
    if "krt" in about and not made.details:
        made.notes.append("its entry 'krt' is not the workbench's, or of other tensors, and is not believed")
    made.leak = made.leak or leak_by(classes, about)
    used = {id(tensor) for tensor in made.tensors.values()}
    others = [part for part in parts if used.isdisjoint(map(id, part.tensors.values()))]
    beside = [part.at or "the top" for part in others if part.is_like(parts[0])]
    if beside:
        taken = made.taken.rstrip(".") or "the top"
        made.notes.append(f"it holds several networks: {taken} is taken; beside it there is {', '.join(beside)}")
    return made


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def prefixes_of(names: Iterable[str], last: str) -> list[str]:
    """Every prefix P for which there is a name P + ``last``, in the order of the names."""
    return [name[: -len(last)] for name in names if name == last or name.endswith(f".{last}")]


def _of_krt(everything: dict[str, Tensor], about: dict[str, Any]) -> Provenance | None:
    """A network of the workbench, or of the published code."""
    own = re.compile(r"((?:.*\.)?)(?:backbone\.body\..+|heads\.\d+\.(?:head\.)?bias)")
    prefixes = {match[1] for name in everything if (match := own.fullmatch(name))}
    for prefix in sorted(prefixes):
        tensors = under(everything, prefix)
        heads = {
            int(m[1]): len(t) for n, t in tensors.items() if (m := re.fullmatch(r"heads\.(\d+)\.(head\.)?bias", n))
        }
        sizes = [heads[index] for index in sorted(heads)]
        details = _said_by_krt(about, sum(sizes)) if sizes else {}
        if not sizes or not (details or any(name.startswith("backbone.body.") for name in tensors)):
            continue
        trained = f"an incremental run of the workbench of {' + '.join(map(str, sizes))} classes"
        if details:
            e = details["experiment"]
            trained = f"{e['data']['dataset']}, method {e['method']}, seed {e['seed']}: " + ", ".join(
                details["classes"][: sum(sizes)]
            )
        leak = "it is the result of an incremental run and knows its classes"
        return Provenance("krt-workbench", tensors, trained, sum(sizes), leak, prefix, details=details)
    for prefix in prefixes_of(everything, "cls_token"):
        tensors = under(everything, prefix)
        if is_published(set(tensors)):
            sizes = session_sizes(tensors)
            trained = f"an incremental KRT run (published code) of {' + '.join(map(str, sizes))} classes"
            leak = "it already knows the classes of its run"
            return Provenance("krt-published", tensors, trained, sum(sizes), leak, prefix)
    return None


def _said_by_krt(about: dict[str, Any], seen: int) -> dict[str, Any]:
    """Experiment and classes as a run folder's files state them; {} unless all of it is there and fits the heads."""
    try:
        said = json.loads(about["krt"])
        e, classes = said["experiment"], said["classes"]
        texts = [e["data"]["dataset"], e["method"], *classes]
        fits = isinstance(classes, list) and len(classes) >= seen and all(isinstance(text, str) for text in texts)
        return {"experiment": e, "classes": classes} if fits and isinstance(e["seed"], int) else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def _of_tresnet(everything: dict[str, Tensor], classes: int | None) -> Provenance | None:
    """A TResNet under the names of its authors, who also wrote the asymmetric loss and ML-Decoder."""
    for prefix in prefixes_of(everything, "body.conv1.0.weight"):
        tensors = under(everything, prefix)
        if classes in (80, 20):
            data = "all 80 COCO classes" if classes == 80 else "all 20 VOC classes"
            leak = f"it was trained on {data}: every session's labels would be known before the first"
            trained = f"{data}, by its outputs in the layout of the asymmetric-loss and ML-Decoder models"
            return Provenance("asl", tensors, trained, classes, leak, prefix)
        layout = "miil-21k" if classes and classes > 10000 else "tresnet"
        return Provenance(layout, tensors, _by_outputs(classes), classes, None, prefix)
    return None


def _of_others(parts: list[Part], everything: dict[str, Tensor], heads: list[Head], classes: int | None) -> Provenance:
    main, trained, layout = parts[0], _by_outputs(classes), "unknown"
    taken = f"{main.at}." if main.at else ""
    names = main.tensors.keys()
    if "_conv_stem.weight" in names and "_fc.weight" in names and not any("_se_" in name for name in names):
        layout, trained = "lite0-pypi", "ImageNet-1k, single label" if classes == 1000 else trained
    elif classes or "conv1.weight" in names or "conv_stem.weight" in names:
        layout = "timm"
    if classes is None:
        ways = [way for pattern, way in NO_LABELS_OF if any(re.search(pattern, name) for name in everything)]
        trained = f"unknown images, without labels by its layout ({ways[0]})" if ways else trained
    several = next((head.outputs for head in heads if len(head.outputs) > 1), None)
    if several and sum(several) == classes:
        trained = f"unknown, in {len(several)} heads ({' + '.join(map(str, several))}), perhaps an incremental run"
    return Provenance(layout, main.tensors, trained, classes, None, taken)


def _by_outputs(classes: int | None) -> str:
    return f"{BY_OUTPUTS[classes]}, by its {classes:,} outputs" if classes in BY_OUTPUTS else "unknown"
