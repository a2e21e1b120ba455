"""What the JSON files of a run folder may hold, key by key, so that a damaged one is named where it is read.

A shape is a type, a tuple of types, ``[shape]`` for a list of any length, ``{key: shape}`` for an object of which any
key may be missing and others may be there (folders of other versions), or ``{str: shape}`` for one of any keys.
"""

from __future__ import annotations

import math
from typing import Any

NUMBER = (int, float, type(None))  # null stands for NaN
TEXT = (str, type(None))
OBJECT = (dict, type(None))

WEIGHTS = {str: (str, int, float, bool, type(None), list, dict), "leak": TEXT, "trained_on": TEXT, "file": TEXT}
IMAGES = {"sizes": str, "sample": str}
MADE_WITH = {"inputs": str, "max_steps": NUMBER, "processes": NUMBER, "images": (IMAGES, None), "precision": TEXT,
             "held_out": str}  # fmt: skip

STATE = {
    "session": int, "classes": [str], "new_classes": [str], "train_images": int, "test_images": int, "seconds": NUMBER,
    "peak_memory_mb": NUMBER, "metrics": {str: NUMBER, "AP_seen": {str: NUMBER}}, "method": dict, "memory": dict,
    "exemplar_ids": [[str]], "weights": WEIGHTS, "made_with": (MADE_WITH, None), "starts": [int],
    "replayed_images": int, "reported_epoch": int, "epoch_chosen_on": str, "oracle": bool,
    "exemplar_bytes": NUMBER, "method_bytes": NUMBER, "shown": {str: [NUMBER]}, "inherited": str, "made_by": str,
}  # fmt: skip
SUMMARY = {
    "method": str, "dataset": str, "protocol": str, "seed": int, "average_mAP": NUMBER, "last_mAP": NUMBER,
    "forgetting": NUMBER, "forgetting_definitions": {str: NUMBER}, "mAP_per_session": [NUMBER], "seconds": NUMBER,
    "peak_memory_mb": NUMBER, "exemplars": int, "weights": WEIGHTS, "config_hash": str, "commit": TEXT, "mixed": [str],
    "oracle": bool,
    "exemplar_bytes": NUMBER, "method_bytes": NUMBER,
    **dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), NUMBER),
}  # fmt: skip
START = {
    "python": str, "versions": {str: str}, "hardware": {str: (str, int, float, type(None))}, "host": str,
    "commit": TEXT, "reasons": {str: str}, "weights": (WEIGHTS, None), "at": str, "augmentation": TEXT, "code": OBJECT,
    "steered": ({str: str}, None), "made_with": (MADE_WITH, None), "oracle": bool, "inherited": bool,
}  # fmt: skip
ENVIRONMENT = {**START, "starts": [START]}
EPOCH = {"session": int, "epoch": int, str: (int, float, str, bool, type(None), list, dict), "loss": NUMBER,
         "images_per_second": NUMBER, "mAP_seen": NUMBER, "mAP_of": str, "lr": NUMBER, "seconds": NUMBER}  # fmt: skip
CALIBRATION = {"a": [(int, float)], "b": [(int, float)], "thresholds": [(int, float)], "fitted": [bool],
               "images": (int, float), "shown": [(int, float)], "curves": [[[(int, float)]]]}  # fmt: skip
PROGRESS = {
    "session": int, "sessions": int, "epoch": int, "epochs": int, "step": int, "steps": int, "eta_seconds": NUMBER,
    "images_per_second": NUMBER, "loss": NUMBER, "updated_at": str, "task": str, "state": str,
}  # fmt: skip


def misfit(value: Any, shape: Any, place: str = "") -> str:
    """What does not fit, in words; empty where everything does."""
    if isinstance(shape, tuple) and any(isinstance(one, dict) for one in shape):  # an object, or null
        return "" if value is None else misfit(value, shape[0], place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _told(place, "a list", value)
        return next((why for i, item in enumerate(value) if (why := misfit(item, shape[0], f"{place}[{i}]"))), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _told(place, "an object", value)
        for key, item in value.items():
            inner = shape.get(key, shape.get(str))
            if inner is not None and (why := misfit(item, inner, f"{place}.{key}".lstrip("."))):
                return why
        return ""
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        return _told(place, " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds), value)
    if isinstance(value, (int, float)) and not _sensible(value):
        return _told(place, "a number of sensible size", value)
    return ""


def _sensible(number: float) -> bool:
    """A float that is finite (the loss of a training that runs away is huge) or NaN, an integer that arrays hold."""
    return not math.isinf(number) if isinstance(number, float) else -(2**63) <= number < 2**63


def _told(place: str, what: str, value: Any) -> str:
    return f"{place or 'it'} must be {what}, found {type(value).__name__}"
