"""Where the tokens attend, and which patches speak for a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ..explain import Explanation
from ..protocol import Protocol
from .figure import PALETTE, new_figure


def attention_over_sessions(image: np.ndarray, explanations: Sequence[Explanation], title: str = "") -> Figure:
    """One image, the model after each session: mean patch attention of the newest session's token.

    Above each map stands the mass that the retention token takes. image (S, S, 3) uint8; explanations of this image
    alone, one per session.
    """
    count = len(explanations)
    figure, axes = new_figure(2.0 * (count + 1), 2.6, 1, count + 1, squeeze=False)
    show_image(axes[0][0], image, title)
    mark_leak(figure, explanations)
    for t, explanation in enumerate(explanations):
        patches = explanation.patches[0, t].mean(axis=0)  # heads averaged: (h, w)
        mass = explanation.retention[0, t].mean()
        overlay(axes[0][t + 1], image, patches, "viridis", 0, patches.max())
        axes[0][t + 1].set_title(f"session {t + 1}\nretention token {100 * mass:.0f} %", fontsize=8)
    return figure


def retention_mass(explanations: Sequence[Explanation]) -> Figure:
    """Attention mass (%) on each session's retention token per head, in one model, averaged over images."""
    mass = 100 * np.concatenate([e.retention for e in explanations]).mean(axis=0)  # (T, H)
    figure, axis = new_figure(0.62 * mass.shape[1] + 2.6, 0.42 * len(mass) + 1.6)
    sns.heatmap(mass, ax=axis, cmap="viridis", vmin=0, annot=True, fmt=".1f", annot_kws={"fontsize": 8},
                xticklabels=range(1, mass.shape[1] + 1), yticklabels=range(1, len(mass) + 1),
                cbar_kws={"label": "attention (%)"})  # fmt: skip
    axis.set(xlabel="head", ylabel="session of the token", title="Mass on the retention tokens")
    mark_leak(figure, explanations)
    return figure


def evidence_over_sessions(
    image: np.ndarray, explanations: Sequence[Explanation], protocol: Protocol, present: Sequence[int], title: str = ""
) -> Figure:
    """One image: a row per present class (columns in learning order), a column per session; red patches speak for the
    class, blue ones against it, on one scale per class. The score stands above."""
    count = len(explanations)
    figure, axes = new_figure(1.9 * (count + 1), 2.15 * len(present), len(present), count + 1, squeeze=False)
    mark_leak(figure, explanations)
    for line, column in zip(axes, present, strict=True):
        show_image(line[0], image, f"{title}\nclass: {protocol.classes[column]}")
        learned = [e for e in explanations if column < e.evidence.shape[1]]
        limit = max((np.abs(e.evidence[0, column]).max() for e in learned), default=1)
        for t, (axis, explanation) in enumerate(zip(line[1:], explanations, strict=True)):
            if column >= explanation.evidence.shape[1]:
                axis.set_axis_off()
                axis.text(0.5, 0.5, "not yet\nlearned", ha="center", va="center", fontsize=8, color="0.5")
                continue
            overlay(axis, image, explanation.evidence[0, column], "RdBu_r", -limit, limit)
            axis.set_title(f"session {t + 1}\nscore {explanation.scores[0, column]:.2f}", fontsize=8)
    return figure


def mark_leak(figure: Figure, explanations: Sequence[Explanation]) -> None:
    if any(explanation.leak for explanation in explanations):
        figure.suptitle("LEAK: the first weights had seen these labels", fontsize=9, color=PALETTE[3])


def show_image(axis, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def overlay(axis, image: np.ndarray, values: np.ndarray, cmap: str, low: float, high: float) -> None:
    axis.imshow(image.mean(axis=2), cmap="gray")
    side = image.shape[0]
    axis.imshow(values, cmap=cmap, vmin=low, vmax=high, alpha=0.55, extent=(0, side, side, 0), interpolation="nearest")
    axis.set_axis_off()
