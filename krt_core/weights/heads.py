"""Classifiers in a state dict: how many outputs they have, and what speaks for labels of COCO or VOC."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

DATA_OF = {  # outputs of a classifier → the data that has as many, in words
    80: "COCO has classes",
    81: "COCO has classes with a background (and NUS-WIDE has without)",
    90: "COCO numbers its categories",
    91: "COCO numbers its categories, with a background",
    92: "COCO numbers its categories, with a background and an empty class",
    20: "VOC has classes",
    21: "VOC has classes with a background",
}
BY_OUTPUTS = {
    1000: "ImageNet-1k", 1001: "ImageNet-1k", 10450: "ImageNet-21k (winter edition)", 11221: "ImageNet-21k (MIIL)",
    11821: "ImageNet-12k", 21841: "ImageNet-21k", 21843: "ImageNet-21k", 365: "Places365",
}  # fmt: skip
ANCHORS = (1, 3, 4, 6, 9)  # of usual detectors at each place
IN_COCO_AND_VOC = {
    "person", "bicycle", "car", "bus", "train", "boat", "bird",
    "cat", "dog", "horse", "sheep", "cow", "bottle", "chair",
}  # fmt: skip

# A segment of a name that stands for a classifier, one for a layer below it, and one for what is
# named like a classifier and is none.
HEAD = re.compile(
    r"head|fc|cls|class(?!_?token)|logit|linear|output|^out|pred|final|score|label|query_embed|duplicate_pooling|"
    r"prototype|conv_seg|adj|mask_mat|^A$",
)
BELOW = re.compile(
    r"(blocks?|layers?|stages?|features?|conv|bn|norm|denseblock|down|downsample|transition|body|attn|self_attn|"
    r"multihead_attn|mlp|se|patch_embed|neck|rpn|decoder_blocks|resblocks?|embeddings?|encoder_layer)[\d_]*$",
    re.IGNORECASE,
)
NO_CLASSES = re.compile(
    r"norm|^bn|^ln|^conv_head$|^head_conv$|^final_conv$|^in_conv$|pre_logits|^projection", re.IGNORECASE
)
USUAL = re.compile(
    r"(^|\.)((mlp_)?head\.fc|fc|head|classifier|heads?\.head|last_linear|_fc|logits|linear|head\.l|cls_head)$"
)
# Networks that learn without labels: what their last layers give are no classes.
NO_LABELS = re.compile(
    r"(^|\.)(encoder_[qk]|queue|queue_ptr|momentum_encoder|base_encoder|last_layer|mask_token|decoder_pred|projector|"
    r"projection_head|predictor|prototypes|online_\w+|target_\w+|dino_loss)(\.|$)"
)


class Head(NamedTuple):
    name: str  # without .weight, numbers replaced by # where several heads of one kind are one classifier
    outputs: tuple[int, ...]  # of each of them

    @property
    def total(self) -> int:
        same = set(self.outputs)
        return same.pop() if len(same) == 1 and same & DATA_OF.keys() else sum(self.outputs)


def heads_of(tensors: Mapping[str, Tensor]) -> list[Head]:
    """Whatever looks like a classifier by its names, in the order of the file."""
    single: dict[str, tuple[int, int | None]] = {}
    for name, tensor in tensors.items():
        if (found := _head_of(name, tensor)) and (found[0] not in single or tensor.dim() > 1):
            single[found[0]] = found[1:]
    groups: dict[str, dict[int, str]] = {}
    for stem in single:
        if number := re.search(r"(?<=\.)\d+(?=\.|$)", stem):
            groups.setdefault(f"{stem[: number.start()]}#{stem[number.end() :]}", {})[int(number[0])] = stem
    found = {stem: Head(stem, (outputs,)) for stem, (outputs, _) in single.items()}
    for pattern, members in groups.items():
        sizes = [single[stem] for _, stem in sorted(members.items())]
        alike = len({inputs for _, inputs in sizes}) == 1 and all(inputs != outputs for outputs, inputs in sizes)
        if len(members) > 1 and sorted(members) == list(range(len(members))) and alike:
            for stem in members.values():
                found[stem] = Head(pattern, tuple(outputs for outputs, _ in sizes))
    return list(dict.fromkeys(found.values()))


def _head_of(name: str, tensor: Tensor) -> tuple[str, int, int | None] | None:
    """Stem, outputs and inputs of the classifier that a tensor belongs to; None if it belongs to none."""
    *stem, leaf = name.split(".")
    if (
        leaf in ("cls_token", "class_token", "dist_token")
        or not tensor.dim()
        or any(NO_CLASSES.search(s) for s in stem)
    ):
        return None
    at = next((i for i, segment in enumerate([*stem, leaf]) if HEAD.search(segment)), None)
    if at is None or any(BELOW.match(segment) for segment in [*stem[:at], *stem[at + 1 :]]):
        return None
    shape = tuple(tensor.shape)
    whole = ".".join(stem)
    known = shape[0] in DATA_OF or shape[0] in BY_OUTPUTS
    if leaf == "weight" and (classes := _of_anchors(stem, shape)):
        return whole, classes, shape[1]
    if leaf in ("weight", "bias") and (max(shape[2:], default=1) > 1 or (len(shape) != 2 and not known)):
        return None  # a norm, a convolution
    if leaf in ("weight", "bias", "weight_v", "weight_orig", "qweight"):
        return whole, shape[0], shape[1] if len(shape) > 1 else None
    if leaf in ("W", "b") and len(shape) > 1 and shape[0] == 1:  # one weight vector a class: (1, classes, width)
        return whole, shape[1], None
    if leaf == "kernel":
        return whole, shape[-1], shape[0]
    if HEAD.search(leaf):  # a bare parameter: (classes, width), or the other way round
        return name, next((size for size in shape if size in DATA_OF), shape[0]), None
    return None


def _of_anchors(stem: list[str], shape: tuple[int, ...]) -> int | None:
    """Classes of the convolution by which a detector names what is at each place, once for each of its anchors."""
    if len(shape) != 4 or not any(re.search("cls|class", segment) for segment in stem):
        return None
    return next((n for n in DATA_OF if shape[0] % n == 0 and shape[0] // n in ANCHORS), None)


def classes_of(heads: Iterable[Head], names: Iterable[str]) -> int | None:
    """Outputs of the classifier; None if there is none, or if the network learned without labels."""
    heads = list(heads)
    known = [head for head in heads if head.total in DATA_OF]
    if known:
        return known[-1].total
    if not heads or any(NO_LABELS.search(name) for name in names):
        return None
    exact = [head for head in heads if head.name.endswith("duplicate_pooling_bias")]
    usual = [head for head in heads if USUAL.search(re.sub(r"\.(#|\d+)(?=\.|$)", "", head.name))]
    known = [head for head in heads if head.total in BY_OUTPUTS]
    return next((some[-1].total for some in (exact, usual, known) if some), None)


def leak_by(classes: int | None, about: Mapping[str, Any]) -> str | None:
    """Why the labels to be learned may have been seen, by the outputs and by what else a file says; None: no reason."""
    if classes in DATA_OF:
        return f"its classifier has {classes} outputs, as many as {DATA_OF[classes]}"
    words: set[str] = set()
    for key, value in about.items():
        last = key.rpartition(".")[2].lower()
        if re.fullmatch(r"(num|nb|n)_?(of_)?(class|classes|labels)", last) and value in DATA_OF and value is not True:
            return f"it says {last} = {value}, as many as {DATA_OF[value]}"
        if not isinstance(value, str):
            continue
        of_data = re.fullmatch(r"data_?sets?(_(name|type))?|data_?name|trained_on|training_data", last)
        if of_data and (found := re.search(r"coco|pascal|voc(?!ab)", value.lower())):
            return f"it says {last} = {value[:60]!r}, which names {'COCO' if found[0] == 'coco' else 'VOC'}"
        words |= IN_COCO_AND_VOC.intersection(re.findall(r"[a-z]+", f"{last} {value[:5000]}".lower()))
    if len(words) >= 10:
        return f"it lists classes that COCO and VOC have ({', '.join(sorted(words)[:4])}, ...)"
    return None
