"""What the sessions see."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ...data import MultiLabelDataset
from ...data.store import load_image
from ...protocol import Protocol
from .figure import PALETTE, new_figure, plain


def session_sizes(protocol: Protocol, labels: np.ndarray) -> Figure:
    """Per session: images it trains on, and how many of their labels it may see (labels (n, C) in learning order).

    protocol: of a run that has grown, `Protocol.on` its data.
    """
    figure, (left, right) = new_figure(10, 3.4, 1, 2)
    sessions = protocol.sessions
    rows = [protocol.train_images(labels, s.index) for s in sessions]
    first = [_first_visible(protocol, s.index) for s in sessions]
    labels = labels > 0
    names = [str(s.index + 1) for s in sessions]
    left.bar(names, [len(r) for r in rows], color=PALETTE[0])
    left.set(xlabel="session", ylabel="training images", title="Images per session")
    parts = {
        f"visible: the session's own classes{', all of added data' * bool(protocol.added)}": [
            labels[r][:, c : s.stop].sum() for r, c, s in zip(rows, first, sessions, strict=True)
        ],
        "hidden: classes learned before": [labels[r][:, :c].sum() for r, c in zip(rows, first, strict=True)],
        "hidden: classes still to come": [labels[r][:, s.stop :].sum() for r, s in zip(rows, sessions, strict=True)],
    }
    bottom = np.zeros(len(sessions))
    for (name, values), colour in zip(parts.items(), (PALETTE[2], PALETTE[3], PALETTE[7]), strict=True):
        right.bar(names, values, bottom=bottom, label=name, color=colour)
        bottom += values
    right.set(xlabel="session", ylabel="labels on these images", title="What label absence hides")
    right.set_ylim(0, bottom.max() * 1.45)
    right.legend(fontsize=8, loc="upper right")
    return figure


def co_occurrence(protocol: Protocol, labels: np.ndarray) -> Figure:
    """Share of the images with the row's class, and the column's class not unknown, that also show that one; lines
    separate the sessions. White: of no image both are known."""
    present = (labels > 0).astype(float)
    known = present.T @ (labels >= 0)
    share = np.where(known > 0, 100 * (present.T @ present) / np.maximum(known, 1), np.nan)
    np.fill_diagonal(share, np.nan)
    names = [plain(name) for name in protocol.classes]
    size = max(4.5, 0.28 * len(protocol.classes) + 2)
    figure, axis = new_figure(size + 1, size)
    sns.heatmap(share, ax=axis, cmap="viridis", square=True, xticklabels=names, yticklabels=names,
                cbar_kws={"label": "% of the row's images"})  # fmt: skip
    for session in protocol.sessions[1:]:
        axis.axhline(session.start, color="white", lw=1.5)
        axis.axvline(session.start, color="white", lw=1.5)
    axis.set(title="Co-occurrence of classes in training images")
    return figure


def sample_images(
    dataset: MultiLabelDataset, protocol: Protocol, per_session: int = 6, size: int = 128, seed: int = 0
) -> Figure:
    """A few training images of each session; visible labels stand plain, hidden ones in brackets."""
    protocol, rng = protocol.on(dataset), np.random.default_rng(seed)
    labels, truth, sessions = protocol.reorder(dataset.labels), protocol.reorder(dataset.truth), protocol.sessions
    figure, axes = new_figure(1.75 * per_session, 2.05 * len(sessions), len(sessions), per_session, squeeze=False)
    for session, line in zip(sessions, axes, strict=True):
        rows = rng.permutation(protocol.train_images(truth, session.index))[:per_session]
        for axis in line:
            axis.set_axis_off()
        for row, axis in zip(rows, line, strict=False):
            axis.imshow(load_image(dataset.path(int(row)), size))
            present = np.flatnonzero(labels[row])
            own = range(_first_visible(protocol, session.index), session.stop)
            names = [protocol.classes[c] if c in own else f"({protocol.classes[c]})" for c in present]
            axis.set_title(
                "\n".join(", ".join(names[i : i + 2]) for i in range(0, len(names), 2)), fontsize=7, parse_math=False
            )
        line[0].text(
            -0.12,
            0.5,
            f"session {session.index + 1}",
            transform=line[0].transAxes,
            rotation=90,
            va="center",
            ha="right",
        )
    return figure


def _first_visible(protocol: Protocol, session: int) -> int:
    """Column from which on a session sees labels: those of its own classes, and of data that were added all."""
    return 0 if protocol.arrival(session) else protocol.sessions[session].start
