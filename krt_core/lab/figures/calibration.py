"""What a score is worth as a probability: how often it is right."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import RunError
from ...metrics import BINS, calibration_error, calibration_errors, reliability_curve
from ...runs.folder import Run
from ..report import labels_of
from .figure import PALETTE, plain, shortened

WORST = 4  # classes that are drawn by themselves
CLASS_BINS = 8  # of one class, which few images show
LOOKS = {  # before and after
    "scores": dict(color=PALETTE[1], marker="s"),
    "calibrated": dict(color=PALETTE[0], marker="o"),
}


def reliability(run: Run, session: int = -1) -> Figure:
    """A reliability diagram: of the test images with a class seen by a session (-1: the last), how often images with so
    high a score show the class, before calibration and after; for all classes together, and for the four whose
    calibrated probabilities are furthest off. Bins of equal width; whiskers: one standard error of the share.

    Raises RunError for a run that calibrates nothing.
    """
    session %= len(run.protocol.sessions)
    found = run.calibration(session)
    if not found.fitted.any():
        raise RunError(
            f"{run.folder.name} has no calibration after session {session + 1}: train with images held out to "
            "calibrate on, as with data.validation=0.2."
        )
    scores, labels = run.tested(session)
    said = {"scores": scores, "calibrated": found.probabilities(scores)}
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    curve, counts = left.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    for name, p in said.items():
        label = f"{name}, off by {calibration_error(p, labels):.1f} points"
        _curve(curve, p, labels, BINS, label=label, **LOOKS[name])
        bars = np.histogram(p[labels >= 0], BINS, (0, 1))
        counts.stairs(*bars, color=LOOKS[name]["color"], lw=1.4)
    _frame(curve, "share of the images that show the class")
    curve.set_title("All classes together", fontsize=10)
    curve.legend(fontsize=8, loc="lower right")
    counts.set(xlabel="score or probability", ylabel="pairs", yscale="log")
    counts.grid(alpha=0.3)
    _worst(right, said, labels, run.protocol.classes)
    figure.suptitle(f"{plain(shortened(labels_of([run])[0], 60))}, after session {session + 1}", fontsize=11)
    return figure


def _worst(figure: Figure, said: dict[str, np.ndarray], labels: np.ndarray, classes: tuple[str, ...]) -> None:
    errors = {name: np.nan_to_num(calibration_errors(p, labels), nan=-1) for name, p in said.items()}
    worst = np.argsort(-errors["calibrated"], kind="stable")[:WORST]
    figure.suptitle("Furthest off after calibration (points, before → after)", fontsize=10)
    figure.supxlabel("score or probability", fontsize=10)
    axes = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    for axis in axes[len(worst) :]:
        axis.set_axis_off()
    for axis, c in zip(axes, worst, strict=False):
        for name, p in said.items():
            _curve(axis, p[:, c], labels[:, c], CLASS_BINS, **LOOKS[name])
        _frame(axis)
        off = " → ".join(f"{errors[name][c]:.1f}" for name in said)
        axis.set_title(f"{plain(shortened(classes[c], 22))}\n{(labels[:, c] > 0).sum()} images: {off}", fontsize=8)
        axis.tick_params(labelsize=8)


def _curve(axis: Axes, p: np.ndarray, labels: np.ndarray, bins: int, **looks) -> None:
    mean, share, count = reliability_curve(p, labels, bins, mass=False)
    spread = np.sqrt(share * (1 - share) / count)
    axis.errorbar(mean, share, yerr=spread, lw=1.2, elinewidth=0.9, capsize=2, ms=5, mec="0.3", mew=0.4, **looks)


def _frame(axis: Axes, ylabel: str = "") -> None:
    axis.plot([0, 1], [0, 1], color="0.4", ls="--", lw=0.9, zorder=1)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), ylabel=ylabel)
    axis.grid(alpha=0.3)
