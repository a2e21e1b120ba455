"""How a training goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from ...runs.folder import Run
from ..report import names_of
from .figure import PALETTE, new_figure, style_of


def training_loss(runs: Sequence[Run]) -> Figure:
    """Mean loss of every epoch; vertical lines separate the sessions. What is learned in closed form has none."""
    figure, axis = new_figure(9, 3.8)
    for i, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
        begins = _begins(run)
        epochs = [(begins[e["session"]] + e["epoch"] + 1, e["loss"]) for e in run.epochs if "loss" in e]
        if epochs:
            axis.plot(*zip(*epochs, strict=True), color=PALETTE[i % len(PALETTE)], label=name)
    for begin in _begins(runs[0])[1:]:
        axis.axvline(begin + 0.5, color="0.8", lw=1)
    axis.set(xlabel="epoch, over all sessions", ylabel="loss (summed over a batch)", title="Training loss")
    if axis.get_legend_handles_labels()[0]:
        axis.set_yscale(_scale(runs))
        figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    else:
        axis.set_title("No loss: learned in closed form")
    return figure


def training_progress(runs: Sequence[Run]) -> Figure:
    """Loss and mAP of the seen classes so far, of runs that may be unfinished or not even have an epoch.

    The mAP after a session is a large marker, one validated inside it (``train.evaluate_every``) a small one. The x
    axis counts epochs, or sessions where the runs differ in epochs per session; it is as long as the whole training.
    """
    figure, (above, below) = new_figure(9, 5.6 + 0.12 * len(runs), 2, 1, sharex=True)
    lengths = {run.epochs_of(t) for run in runs for t in range(_sessions(run))}
    same = len(lengths) == 1
    unit, shift = (lengths.pop(), 0.5) if same else (1, 0.0)  # per session; a line stands half an epoch after its last
    validated = drawn = False
    for i, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
        x, loss, mean_ap = _per_epoch(run)
        after = run.curve()
        ends = np.arange(1, len(after) + 1)
        style, thin = style_of(i), dict(ms=3.5, markevery=max(1, len(x) // 40), lw=1.2)
        above.plot(x * unit, loss, label=name, **style, **thin)
        below.plot(x * unit, mean_ap, ls="", ms=3.5, alpha=0.7, **style)
        below.plot(ends * unit, after, ms=8, mec="0.3", mew=0.5, lw=1.2, **style)
        validated, drawn = validated or np.isfinite(mean_ap).any(), drawn or len(x) > 0
    sessions = max(map(_sessions, runs), default=1)
    _separate(above, below, edges=np.arange(sessions + 1) * unit + shift)
    above.set(
        ylabel="loss (summed over a batch)",
        yscale=_scale(runs),
        xlim=(shift - 0.01 * unit, (sessions + 0.02) * unit + shift),
    )
    below.set(ylabel="mAP of seen classes (%)", xlabel="epoch, over all sessions" if same else "session")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for which in (above.yaxis.set_major_formatter, above.yaxis.set_minor_formatter):
        if above.get_yscale() == "log":
            which(LogFormatter(minor_thresholds=(2, 1)))  # 70, 80, ... rather than powers of ten
    if validated:
        of = sorted({str(e["mAP_of"]) for run in runs for e in run.epochs if "mAP_of" in e})
        images = f" ({' or '.join(of)} images)" if of else ""
        below.set_title(f"large: after a session, small: inside it{images}", fontsize=8, color="0.35")
    if not drawn:
        below.set_ylim(0, 100)
    figure.suptitle("Training progress" if drawn else "Training progress: no epoch is finished yet")
    if runs:
        figure.legend(*above.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=2)
    return figure


def _scale(runs: Sequence[Run]) -> str:
    """Logarithmic, unless no run has a loss, as none has that learns in closed form."""
    begun = any(run.epochs for run in runs)
    return "linear" if begun and not any("loss" in e for run in runs for e in run.epochs) else "log"


def _per_epoch(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position in sessions, loss and mAP of the seen classes in percent (NaN where not validated) of (n,) epochs."""
    epochs = run.epochs
    lengths = [run.epochs_of(t) for t in range(max((e["session"] + 1 for e in epochs), default=0))]
    x = [e["session"] + (e["epoch"] + 1) / lengths[e["session"]] for e in epochs]
    return (
        np.array(x, dtype=float),
        np.array([e.get("loss", np.nan) for e in epochs], dtype=float),
        np.array([e.get("mAP_seen", np.nan) for e in epochs], dtype=float),
    )


def _begins(run: Run) -> list[int]:
    """How many epochs lie before each session."""
    return np.cumsum([0, *(run.epochs_of(t) for t in range(_sessions(run) - 1))]).tolist()


def _sessions(run: Run) -> int:
    """Sessions of the whole run as far as its files tell; the first state holds the classes, progress.json less."""
    if run.finished_sessions:
        return len(run.protocol.sessions)
    return run.progress.get("sessions", 1)


def _separate(*axes: Axes, edges: np.ndarray) -> None:
    """Lines between the sessions, and their numbers above the first of the axes."""
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
        for edge in edges[1:-1]:
            axis.axvline(edge, color="0.8", lw=1, zorder=0)
    middles = (edges[1:] + edges[:-1]) / 2
    for t, middle in enumerate(middles if len(middles) <= 20 else ()):
        text = f"session {t + 1}" if len(middles) <= 8 else t + 1
        transform = axes[0].get_xaxis_transform()
        axes[0].text(middle, 1.02, text, transform=transform, ha="center", fontsize=8, color="0.35")
