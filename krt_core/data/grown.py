"""Data that have grown: the first data of a run, and what `krt extend` has added to them since.

A session that was added learns from its own images and from exemplars of those before, and is tested on all test images
that are there. What an image is not annotated with is unknown. Images of the k-th added data have ids that begin with
``+k/``, so that they are none of another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import Data
from ..errors import DataError
from .dataset import MultiLabelDataset, Split
from .overlap import present
from .validation import held_out

Both = tuple[MultiLabelDataset, np.ndarray, MultiLabelDataset | None]  # `krt_core.data.Halves`


def arrived_of(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """(n,) with which added data images came, by their ids; 0: with the first."""
    found = (re.match(r"\+(\d+)/", str(one)) for one in ids)
    return np.array([int(match[1]) if match else 0 for match in found], dtype=np.int64)


@dataclass
class Grown:
    """Opens what is there of data that have grown. open_one: `krt_core.data.open_halves`, for one of them alone."""

    config: Data
    open_one: Callable[[Data], Both]

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.opened: dict[int, Both] = {}

    @property
    def last(self) -> int:
        return len(self.config.added)

    def halves(self, exemplars: Sequence[str]) -> Both:
        """What the last session learns from, its own images and exemplars (by id); which of them are held out; and all
        test images that are there.

        DataError where the last data or an exemplar are not there.
        """
        train, held, _ = self.part(self.last)
        stored = self._exemplars(exemplars)
        learned = self.joined([*stored, train], "train")
        out = np.concatenate([np.zeros(len(learned) - len(train), bool), held])
        tests = list(filter(None, map(self._test, range(self.last + 1))))
        if not tests:
            raise DataError(
                f"{self.config.added[-1].root}: nothing is there to test on, neither images of these data nor of those "
                "before. Hold some of them out, such as test=0.2."
            )
        _, _, test = self.part(self.last)
        notes = *self.notes, *train.notes, *(test.notes if test is not None else ())
        return replace(learned, notes=notes), out, self.joined(tests, "test")

    def whole(self, split: Split) -> MultiLabelDataset:
        """All images of a half that are there, to be looked at."""
        parts = []
        for place in range(self.last + 1):
            try:
                train, held, test = self.part(place)
            except DataError:
                if place == self.last:
                    raise
                continue
            kept = {"train": ~held, "validation": held}
            half = test if split == "test" else train.select_images(kept[split], split) if held.any() else train
            parts += [half] if half is not None and len(half) else []
        return self.joined(parts, split)

    # ---- the parts ----

    def part(self, place: int) -> Both:
        """The data of a place (0: the first, k: the k-th added) by the run's names: training images, which of them are
        held out, and test images. DataError where they are not there."""
        if place not in self.opened:
            self.opened[place] = self._open(place)
        return self.opened[place]

    def _open(self, place: int) -> Both:
        if not place:
            return self.open_one(replace(self.config, added=()))
        one = self.config.added[place - 1]
        own = one.of(self.config)
        train, held, test = self.open_one(own if one.test is None else replace(own, test="validation"))
        kept = ~np.isin(train.ids, one.without)
        train, held = (train.select_images(kept, "train"), held[kept]) if one.without else (train, held)
        if one.test:
            tested = held_out(train.ids, train.labels, one.test, salt="test")  # others than are held out to validate on
            test = train.select_images(tested, "test")
            train, held = train.select_images(~tested, "train"), held[~tested]
        return self._named(train, place), held, test and self._named(test, place)

    def _named(self, part: MultiLabelDataset, place: int) -> MultiLabelDataset:
        """By the run's class names, with ids of its own."""
        names = dict(self.config.added[place - 1].same)
        classes = tuple(names.get(name, name) for name in part.classes)
        ids = np.array([f"+{place}/{one}" for one in part.ids])
        return replace(part, ids=ids, classes=classes, arrived=np.full(len(part), place))

    def _test(self, place: int) -> MultiLabelDataset | None:
        """Test images of a place, as far as they are there."""
        where = "the first data" if not place else f"the data of {self.config.added[place - 1].root}"
        try:
            test = self.part(place)[2]
        except DataError as error:
            if place == self.last:
                raise
            self.notes.append(f"{where} are not tested on: {error}")
            return None
        if test is None or place == self.last:
            return test
        there = present(test)
        if not there.all():
            self.notes.append(f"{(~there).sum()} of {len(there)} test images of {where} are not there any more")
            test = test.select_images(there, "test") if there.any() else None
        return test

    def _exemplars(self, ids: Sequence[str]) -> list[MultiLabelDataset]:
        """The images with these ids, those of each place together."""
        parts = []
        for place in np.unique(arrived_of(ids)).tolist():
            wanted = np.array(ids)[arrived_of(ids) == place]
            try:
                half = self.part(place)[0]
            except DataError as error:
                raise DataError(f"The run's exemplars cannot be read: {error} {NONE}") from None
            chosen = np.isin(half.ids, wanted)
            found = half.select_images(chosen, "train")
            gone = set(wanted) - set(found.ids[present(found)])
            if gone:
                raise DataError(
                    f"{len(gone)} of {len(wanted)} exemplars are not in {half.root} any more, the first is "
                    f"{min(gone)}. Put them back. {NONE}"
                )
            parts.append(found)
        return parts

    # ---- together ----

    def classes(self) -> tuple[str, ...]:
        """All names: those of the first data, then those that came with each of the others."""
        names = list(self.config.classes)
        for place in range(1, self.last + 1):
            of = dict(self.config.added[place - 1].same)
            names += sorted({of.get(name, name) for name in self.config.added[place - 1].classes} - set(names))
        return tuple(names)

    def joined(self, parts: Sequence[MultiLabelDataset], split: Split) -> MultiLabelDataset:
        """Data sets one below the other, with the columns of all classes; what they are not annotated with is unknown,
        unless they are said to be complete: then of the classes known by then it is absent."""
        classes = self.classes()
        labels: list[np.ndarray] = []
        unknown: list[np.ndarray] = []
        boxes: list[np.ndarray] = []
        start = 0
        for part in parts:
            columns = np.array([classes.index(name) for name in part.classes], dtype=np.int64)
            own, not_known = np.zeros((len(part), len(classes)), bool), np.ones((len(part), len(classes)), bool)
            own[:, columns] = part.labels
            not_known[:, columns] = False if part.unknown is None else part.unknown
            place = 0 if part.arrived is None else int(part.arrived[0])
            if place and self.config.added[place - 1].complete:
                by_then = len(self.until(place).classes())
                others = np.setdiff1d(np.arange(by_then), columns)
                not_known[:, others] = False
            moved = part.boxes.copy()
            moved[:, 0] += start
            moved[:, 1] = columns[moved[:, 1].astype(int)] if len(moved) else moved[:, 1]
            for kind, found in ((labels, own), (unknown, not_known), (boxes, moved)):
                kind.append(found)
            start += len(part)
        last, every = parts[-1], np.concatenate(unknown)
        arrived = [np.zeros(len(part), np.int64) if part.arrived is None else part.arrived for part in parts]
        return MultiLabelDataset(
            " + ".join(dict.fromkeys(part.name for part in parts)), split, last.root,
            np.concatenate([part.ids for part in parts]),
            np.array([str(part.path(row)) for part in parts for row in range(len(part))]),
            np.concatenate(labels), classes, np.concatenate(boxes), (), last.source, every if every.any() else None,
            tuple(parts), np.concatenate(arrived),
        )  # fmt: skip

    def until(self, place: int) -> Grown:
        """As the data were when the ``place``-th had been added."""
        return Grown(replace(self.config, added=self.config.added[:place]), self.open_one)


NONE = "Or go on without any: replay.per_class=0, or replay.budget=0."
