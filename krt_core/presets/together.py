"""What no key can tell by itself: values that exclude one another."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import ConfigError

OF_TABLES = ("paths", "tags", "separator", "split", "blank", "test_share", "split_seed")  # keys of data


def check_together(experiment: Any, where: str) -> None:
    """ConfigError where values of an experiment exclude one another. where: the preset they are from."""
    e, replay = experiment, experiment.replay
    online = replay.selection if replay.selection in ("prs", "ocdm") else ""
    std = e.model.std if isinstance(e.model.std, tuple) else (e.model.std,)
    made, least_most = e.data.cardinality or e.data.co_occurrence, e.data.labels_per_image
    keys = [field for field in dataclasses.fields(e.data) if field.name in OF_TABLES]
    of_tables = [f"data.{key.name}" for key in keys if getattr(e.data, key.name) != key.default]
    views = e.data.features and e.train.augment != "none" and (e.model.freeze != "none" or e.model.tune_from)
    asked, held_out = e.calibrate, e.data.validation and e.data.test == "test"
    wanted = asked.kind != "none" and asked != type(asked)()
    faults = {
        f"model.embed_dim must be a multiple of model.heads ({e.model.heads})": e.model.embed_dim % e.model.heads,
        "model.std must be positive": not all(s is None or s > 0 for s in std),
        "train.report can be best only if train.evaluate_every is not 0": e.train.report == "best"
        and not e.train.evaluate_every,
        "data.test=validation needs data.validation, the share to hold out": e.data.test == "validation"
        and not e.data.validation,
        "data.cardinality must be 0, for the embedded scenes, or from 1 to 4": 0 < e.data.cardinality < 1,
        "data.cardinality and data.co_occurrence are of scenes that are made (data.dataset=digits); of other images "
        "data.labels_per_image takes those with so many labels": made and e.data.dataset != "digits",
        f"{' and '.join(of_tables)} say how to read a table: set data.dataset=table, or leave them out": of_tables
        and e.data.dataset != "table",
        "data.labels_per_image must be the least and the most labels, such as [1, 2]": least_most
        and (len(least_most) != 2 or least_most[0] > least_most[1]),
        "data.cache_size must be 0 or at least 16 pixels": 0 < e.data.cache_size < 16,
        "replay takes per_class or budget, not both": replay.per_class and replay.budget,
        f"replay.selection={online} needs replay.budget, not replay.per_class": online and not replay.budget,
        "replay.power is of replay.selection=prs and ocdm": replay.power and not online,
        "protocol takes order or order_seed, not both": e.protocol.order and e.protocol.order_seed is not None,
        "protocol takes sizes or base, not both": e.protocol.sizes and e.protocol.base,
        "protocol.sizes must be at least 1 each": 0 in e.protocol.sizes[: len(e.protocol.sizes) - len(e.data.added)],
        "data.added needs protocol.sizes, one for each session": e.data.added
        and len(e.protocol.sizes) <= len(e.data.added),
        "data.views needs model.freeze or tune_from, data.features and an augmentation": e.data.views and not views,
        "model.tune_from has no say with model.freeze=all": e.model.tune_from and e.model.freeze == "all",
        "calibrate.at is of calibrate.aim=precision and recall": asked.at != type(asked).at and asked.aim == "f1",
        "calibrate needs images that are not tested on: data.validation, with data.test=test": wanted and not held_out,
        "model.expand is of the linear head": e.model.expand and e.head != "linear",
    }
    for text, is_so in faults.items():
        if is_so:
            raise ConfigError(f"{where}: {text}.")
