"""How a training goes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..report import label_of, replicate_of
from ..run import Run
from .figure import PALETTE, new_figure


def training_loss(runs: Sequence[Run]) -> Figure:
    """Mean loss of every epoch; vertical lines separate the sessions."""
    figure, axis = new_figure(9, 3.4)
    for i, run in enumerate(runs):
        epochs = run.epochs
        axis.plot(range(1, len(epochs) + 1), [e["loss"] for e in epochs], color=PALETTE[i % len(PALETTE)],
                  label=f"{label_of(run, runs)}, {replicate_of(run)}")  # fmt: skip
    per_session = runs[0].experiment.train.epochs
    for t in range(1, len(runs[0].protocol.sessions)):
        axis.axvline(t * per_session + 0.5, color="0.8", lw=1)
    axis.set(
        xlabel="epoch, over all sessions", ylabel="loss (summed over a batch)", yscale="log", title="Training loss"
    )
    axis.legend(fontsize=9)
    return figure
