"""What a model says of one photo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import printable


@dataclass(frozen=True)
class Tags:
    """The classes of a model for one photo, the most probable first; arrays (C,) float32 in the order of ``names``."""

    names: tuple[str, ...]
    probabilities: np.ndarray
    thresholds: np.ndarray  # on probabilities, above which a class is named
    scores: np.ndarray  # of the method, before calibration
    evidence: Mapping[str, np.ndarray] = field(default_factory=dict)  # named class → (h, w) in [0, 1], where asked for
    leak: str | None = None  # why the model's first weights had seen the labels it was to learn

    @classmethod
    def of(
        cls, classes: tuple[str, ...], probabilities: np.ndarray, thresholds: np.ndarray, scores: np.ndarray,
        leak: str | None = None,
    ) -> Tags:  # fmt: skip
        """Of arrays (C,) in learning order; ties keep it."""
        order = np.argsort(-probabilities, kind="stable")
        names = tuple(classes[column] for column in order)
        return cls(names, probabilities[order], thresholds[order], scores[order], leak=leak)

    @property
    def named(self) -> tuple[str, ...]:
        """The classes above their thresholds."""
        return tuple(
            name for name, above in zip(self.names, self.probabilities > self.thresholds, strict=True) if above
        )

    def __getitem__(self, name: str) -> float:
        """The probability of a class."""
        return float(self.probabilities[self.names.index(name)])

    def top(self, count: int) -> list[tuple[str, float, bool]]:
        """The most probable classes: name, probability, and is it named?"""
        above = self.probabilities > self.thresholds
        return list(zip(self.names, map(float, self.probabilities), map(bool, above), strict=True))[:count]

    def __repr__(self) -> str:
        tags = ", ".join(f"{name} {self[name]:.2f}" for name in self.named) or "no tags"
        return printable(f"<{tags}{'; LEAK' if self.leak else ''}>")
