"""What `krt extend` adds to the data of a run: one data set for each session that the run has grown by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from .options import LISTED, STRICT, Names

Pairs = Annotated[tuple[Annotated[tuple[str, str], LISTED], ...], LISTED]


@dataclass(frozen=True, config=STRICT)
class Added:
    """Images with labels of their own. What they are not annotated with is unknown, not absent."""

    dataset: str  # its layout, as data.dataset
    root: str  # its folder or file
    classes: Names = ()  # only these of its classes; empty: all
    same: Pairs = ()  # [its name, the run's name] of classes that are spelt otherwise
    complete: bool = False  # are all classes known by then annotated, so that what is not named is absent?
    without: Names = ()  # ids of images that are left out: the run had learned from them
    test: Annotated[float, Field(ge=0, lt=1)] | None = None  # share of its training images held out to test on, of each
    # class alike; None: it has a test half of its own, 0: nothing of it is tested
    run: str = ""  # the run that it was added to
