"""The table of a paper: for each setting one line per method, ours with mean and spread, and the published beside it.

Kept as numbers here; page.html.j2 and latex.py write it down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Shape

import numpy as np

from ...methods import class_of
from ...protocol import Protocol
from ...runs.folder import Run
from ...runs.summary import STORED
from . import definitions
from .naming import (
    LEAK,
    MIXED,
    ORACLE,
    RECORDED,
    backbone_of,
    bound_of,
    buffer_of,
    data_of,
    epoch_chosen_on,
    methods_and_labels,
    replicate_of,
    setting_of,
    stored_words,
)
from .published import PublishedResult, author_curves, published_classes, published_results, tested_as

KEPT = ("exemplars", *STORED)
HIGHER_IS_BETTER = {"average_mAP": True, "last_mAP": True, "CF1": True, "OF1": True, "forgetting": False}


@dataclass(frozen=True)
class Line:
    """One method in one setting. ``values`` holds a number per run for each metric, none where it is unknown."""

    method: str
    label: str  # method and buffer, as in legends
    buffer: str
    values: dict[str, np.ndarray]
    forgetting: dict[str, np.ndarray] = field(default_factory=dict)  # definition → a number per run, points
    curve: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (runs, sessions) mAP seen, %
    runs: tuple[Run, ...] = ()
    recorded: str = ""  # the table that a line of earlier runs comes from
    rows: tuple[Mapping[str, Any], ...] = ()  # its rows
    leak: bool = False
    bound: bool = False  # trained on all labels at once, or shown true ones
    oracle: bool = False  # shown true labels of old classes
    source: str = ""  # where a published line comes from
    note: str = ""

    @property
    def backbone(self) -> str:
        """See `backbone_of`; "–" for a published line."""
        if self.recorded:
            return str(self.rows[0]["backbone"])
        return backbone_of(self.runs[0]) if self.runs else "–"

    @property
    def stored(self) -> str:
        """See `stored_words`; medians over the runs."""
        return stored_words(*(float(np.median(v)) if len(v := self.values[key]) else np.nan for key in KEPT))

    @property
    def published(self) -> bool:
        return bool(self.source)

    @property
    def name(self) -> str:
        """Its label without marks."""
        return self.label.removesuffix(RECORDED).removesuffix(MIXED).removesuffix(ORACLE).removesuffix(LEAK)

    @property
    def mixed(self) -> bool:
        """Have starts of different kinds made one of its runs?"""
        return self.label.removesuffix(RECORDED).endswith(MIXED)

    @property
    def chosen_on_test(self) -> bool:
        """Were the epochs of one of its runs chosen on the test images?"""
        told = [row.get("epoch_chosen_on") for row in self.rows]
        return any(on == "test" for on in (*told, *(epoch_chosen_on(run) for run in self.runs)))

    @property
    def cited(self) -> str:
        """Its source, with what must be known before comparing."""
        return self.source + (f" ({self.note})" if self.note else "")

    @property
    def places(self) -> list[tuple[str, int]]:
        """Class order and seed of each run."""
        told = [(str(row["class_order"]), int(row["seed"])) for row in self.rows]
        return told + [(run.experiment.protocol.order_name, run.experiment.seed) for run in self.runs]

    def told(self, key: str) -> list[float]:
        """A metric of each run, NaN where it is unknown; in the order of `places`."""
        found = [row.get(key) for row in self.rows] + [run.summary.get(key) for run in self.runs]
        return [np.nan if value is None else float(value) for value in found]

    @property
    def counts(self) -> tuple[int, int]:
        """How many seeds and how many class orders its runs have."""
        return len({seed for _, seed in self.places}), len({order for order, _ in self.places})

    @property
    def replicates(self) -> str:
        """As in "6 (3 seeds, 2 orders)"; "1" for a single run; "–" for a published line."""
        seeds, orders = self.counts
        number = len(self.places)
        many = f" ({seeds} seed{'s' * (seeds > 1)}, {orders} order{'s' * (orders > 1)})" if number > 1 else ""
        return f"{number}{many}" if number else "–"


class Earlier(Shape):
    """Lines that are not of runs here: see `krt_core.lab.report.recorded`."""

    def lines(self, dataset: str, protocol: str) -> list[Line]: ...


@dataclass(frozen=True)
class Setting:
    """What may stand in one table: runs on one data set and protocol, as lines, and published results on the same."""

    dataset: str
    protocol: str
    lines: tuple[Line, ...]  # ours, recorded ones among them
    published: tuple[Line, ...]
    reference: dict[str, dict[str, np.ndarray]]  # mAP_seen, mAP_base, mAP_new → the authors' curves by name
    remarks: tuple[str, ...]  # what a reader must know before comparing

    @property
    def name(self) -> str:
        return f"{self.dataset} · {self.protocol}"

    @property
    def sources(self) -> list[str]:
        """Of the published lines, each once, as they come in `by_buffer`: a line has the number of its own."""
        lines = (line for group in self.by_buffer().values() for line in group)
        return list(dict.fromkeys(line.cited for line in lines if line.published))

    @property
    def leaks(self) -> list[str]:
        """Why runs are marked LEAK, each reason once."""
        return sorted({run.leak for run in self.runs if run.leak})

    @property
    def oracles(self) -> bool:
        """Were some shown true labels?"""
        return any(line.oracle for line in self.lines)

    @property
    def runs(self) -> list[Run]:
        return [run for line in self.lines for run in line.runs]

    @property
    def classes(self) -> Protocol:
        """The protocol of the first run; other runs may have other class orders."""
        return self.runs[0].protocol

    def by_buffer(self) -> dict[str, list[Line]]:
        """All lines by what they may store: bounds, no exemplars, so many per class, so many in all."""
        groups: dict[str, list[Line]] = {}
        for line in sorted([*self.lines, *self.published], key=_rank):
            name = "upper bound" if line.bound else _buffer_words(line.buffer)
            groups.setdefault(name, []).append(line)
        return groups

    def best(self, key: str) -> Line | None:
        """Our best line by a metric, upper bounds and LEAK aside; None unless there are two to compare."""
        lines = [x for x in self.lines if not (x.bound or x.leak) and len(x.values[key])]
        pick = max if HIGHER_IS_BETTER[key] else min
        return pick(lines, key=lambda line: line.values[key].mean()) if len(lines) > 1 else None


def settings_of(runs: Sequence[Run], earlier: Earlier | None = None) -> list[Setting]:
    """Finished runs by setting, in the order of their names; folders of one name with other classes stay apart.
    earlier: lines that stand beside them."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((*setting_of(run), tuple(sorted(run.protocol.classes))), []).append(run)
    return [_setting(*key[:2], groups[key], earlier.lines(*key[:2]) if earlier else []) for key in sorted(groups)]


def mean_and_std(values: np.ndarray, digits: int = 1) -> str:
    """``74.5 ± 1.8``: mean and standard deviation (n − 1) over runs; no ± for a single one, – for none."""
    if not len(values):
        return "–"
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    mean = round(float(values.mean()), digits) + 0.0  # never "−0.0"
    return f"{mean:.{digits}f}".replace("-", "−") + spread


def _setting(dataset: str, protocol: str, runs: list[Run], earlier: list[Line]) -> Setting:
    groups: dict[str, list[Run]] = {}
    methods = {}
    for run, (method, label) in zip(runs, methods_and_labels(runs), strict=True):
        groups.setdefault(label, []).append(run)
        methods[label] = method
    own = [_line(methods[label], label, group) for label, group in groups.items()]
    lines = tuple(sorted([*own, *earlier], key=_rank))
    data, made = runs[0].experiment.data, runs[0].protocol
    tested = tested_as(runs[0].experiment)
    published, reference = (), {f"mAP_{key}": {} for key in ("seen", "base", "new")}
    if not data.classes and published_classes(tested) == set(made.classes):
        found = published_results(tested, *made.as_published)
        published = tuple(_published_line(result) for result in found)
        reference = {f"mAP_{key}": author_curves(tested, *made.as_published, key) for key in ("seen", "base", "new")}
    return Setting(dataset, protocol, lines, published, reference, tuple(_remarks(lines, bool(published))))


def _line(method: str, label: str, runs: list[Run]) -> Line:
    summaries = [run.summary for run in runs]
    lost = [s.get("forgetting_definitions") or {} for s in summaries]
    values = {key: known([s.get(key) for s in summaries]) for key in HIGHER_IS_BETTER}
    values |= {key: known([s.get(key) for s in summaries]) for key in ("seconds", "peak_memory_mb", *KEPT)}
    if len(runs[0].protocol.sessions) < 2:
        values["forgetting"] = known([])  # nothing came after the only session
    everything = class_of(runs[0].experiment.method).sees != "session"
    return Line(
        method=method,
        label=label,
        buffer="all data" if everything else buffer_of(runs[0]),
        values=values,
        forgetting={key: known([d.get(key) for d in lost]) for d in lost for key in d},
        curve=np.stack([run.curve("mAP_seen") for run in runs]),
        runs=tuple(runs),
        leak=bool(runs[0].leak),
        bound=bound_of(runs[0]),
        oracle=bool(runs[0].oracle),
    )


def _published_line(result: PublishedResult) -> Line:
    keys = ("average_mAP", "last_mAP", "CF1", "OF1", "seconds")
    return Line(
        method=result.method,
        label=result.method if result.buffer == "0" else f"{result.method}, {_buffer_words(result.buffer)}",
        buffer=result.buffer,
        # Their forgetting was taken on another pool of images than ours, so it is no headline.
        values={**{key: known([getattr(result, key)]) for key in keys}, "forgetting": known([]),
                "peak_memory_mb": known([]), **dict.fromkeys(KEPT, known([]))},
        forgetting={key: known([value]) for key, value in result.forgetting.items()},
        curve=np.array([result.mAP_per_session]) if result.mAP_per_session else np.zeros((0, 0)),
        source=result.source,
        note=result.note,
    )  # fmt: skip


def known(values: Sequence[float | None] | np.ndarray) -> np.ndarray:
    """Without those that are None, NaN or infinite."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    return numbers[np.isfinite(numbers)]


def _rank(line: Line) -> tuple[int, int, float]:
    """Bounds, then no exemplars, then per class, then a fixed number; best average mAP first in each."""
    number = line.buffer.removesuffix("/class")
    kind = 0 if line.bound else 1 if number == "0" else 2 if line.buffer.endswith("/class") else 3
    return kind, int(number) if number.isdigit() else 0, -line.values["average_mAP"].mean()


def _buffer_words(buffer: str) -> str:
    if buffer == "0":
        return "no exemplars"
    return f"{buffer.removesuffix('/class')} exemplars" + (" per class" if buffer.endswith("/class") else "")


def _remarks(lines: Sequence[Line], published: bool) -> list[str]:
    """What makes lines less comparable than they look."""
    remarks = []
    if any(line.leak for line in lines):
        remarks.append(definitions.LEAK)
    if any(line.oracle for line in lines):
        remarks.append(definitions.ORACLE)
    if any(line.recorded for line in lines):
        remarks.append(definitions.RECORDED)
    if len({frozenset(line.places) for line in lines}) > 1:
        remarks.append(definitions.UNEQUAL)
    counts = Counter((line.label, replicate_of(run)) for line in lines for run in line.runs)
    twice = [f"{label}, {replicate}" for (label, replicate), count in counts.items() if count > 1]
    if twice:
        remarks.append(
            f"The same experiment is here more than once ({'; '.join(twice)}): its runs count as replicates, though "
            "they have one seed, so the standard deviation is too small."
        )
    if any(line.mixed for line in lines):
        remarks.append(definitions.MIXED)
    if len(set(data_of([run for line in lines for run in line.runs]))) > 1:
        remarks.append(definitions.OTHER_DATA)
    if any(line.chosen_on_test for line in lines):
        remarks.append(definitions.CHOSEN_ON_TEST)
    best = sorted({line.label for line in lines if line.runs and epoch_chosen_on(line.runs[0]) == "validation"})
    if best:
        remarks.append(
            f"{'; '.join(best)}: train.report=best takes each session's best epoch as measured on validation images."
        )
    if published:
        remarks.append(definitions.PUBLISHED)
    return remarks
