"""Static figures. Every function takes runs or arrays and returns a matplotlib Figure; none is shown here."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .data import MultiLabelDataset
from .errors import RunError
from .explain import Explanation
from .home import atomic_write, resolve
from .metrics import forgetting_per_class
from .protocol import Protocol
from .report import label_of, labels_of, replicate_of
from .run import Run

PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vP*X"


def save(figure: Figure, folder: str | Path, name: str) -> Figure:
    """Write ``<folder>/<name>.png`` and ``.pdf`` and return the figure."""
    for kind in ("png", "pdf"):
        path = resolve(folder) / f"{name}.{kind}"
        atomic_write(path, lambda file, kind=kind: figure.savefig(file, format=kind, dpi=150, bbox_inches="tight"))
    return figure


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV."""
    return atomic_write(resolve(path), table.to_csv())


# ---- what the sessions see ----


def session_sizes(protocol: Protocol, labels: np.ndarray) -> Figure:
    """Per session: images it trains on, and how many of their labels it may see (labels (n, C) in learning order)."""
    figure, (left, right) = _figure(10, 3.4, 1, 2)
    sessions = protocol.sessions
    rows = [protocol.train_images(labels, s.index) for s in sessions]
    names = [str(s.index + 1) for s in sessions]
    left.bar(names, [len(r) for r in rows], color=PALETTE[0])
    left.set(xlabel="session", ylabel="training images", title="Images per session")
    parts = {
        "visible: the session's own classes": [
            labels[r][:, s.columns].sum() for r, s in zip(rows, sessions, strict=True)
        ],
        "hidden: classes learned before": [labels[r][:, : s.start].sum() for r, s in zip(rows, sessions, strict=True)],
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
    """Share of the images with the row's class that also show the column's class; lines separate the sessions."""
    counts = labels.astype(float).T @ labels
    share = 100 * counts / np.maximum(np.diag(counts)[:, None], 1)
    np.fill_diagonal(share, np.nan)
    size = max(4.5, 0.28 * len(protocol.classes) + 2)
    figure, axis = _figure(size + 1, size)
    sns.heatmap(share, ax=axis, cmap="viridis", square=True, xticklabels=protocol.classes, yticklabels=protocol.classes,
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
    from .data.pipeline import load_image

    labels, rng = protocol.reorder(dataset.labels), np.random.default_rng(seed)
    sessions = protocol.sessions
    figure, axes = _figure(1.75 * per_session, 2.05 * len(sessions), len(sessions), per_session, squeeze=False)
    for session, line in zip(sessions, axes, strict=True):
        rows = rng.permutation(protocol.train_images(labels, session.index))[:per_session]
        for axis in line:
            axis.set_axis_off()
        for row, axis in zip(rows, line, strict=False):
            axis.imshow(load_image(dataset.path(int(row)), size))
            present = np.flatnonzero(labels[row])
            own = range(session.start, session.stop)
            names = [protocol.classes[c] if c in own else f"({protocol.classes[c]})" for c in present]
            axis.set_title("\n".join(", ".join(names[i : i + 2]) for i in range(0, len(names), 2)), fontsize=7)
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


# ---- training ----


def training_loss(runs: Sequence[Run]) -> Figure:
    """Mean loss of every epoch; vertical lines separate the sessions."""
    figure, axis = _figure(9, 3.4)
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


# ---- forgetting ----


def session_curves(
    runs: Sequence[Run], key: str = "mAP_seen", reference: dict[str, np.ndarray] | None = None
) -> Figure:
    """One metric after each session, averaged over the seeds and class orders of a method, with a band of one standard
    deviation.

    reference: published curves by name, drawn dashed over their own number of sessions.
    """
    groups = _by_label(runs, same_order=False)
    names = len(groups) + len(reference or {})
    figure, axis = _figure(7.2, 4.2 + 0.12 * names)
    for i, (name, group) in enumerate(groups.items()):
        curves = np.stack([run.curve(key) for run in group])
        x, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        axis.plot(x, mean, label=textwrap.fill(name, 60), mec="0.3", mew=0.5, **_style(i))
        if len(curves) > 1:
            spread = curves.std(axis=0, ddof=1)
            axis.fill_between(x, mean - spread, mean + spread, color=PALETTE[i % len(PALETTE)], alpha=0.2, lw=0)
    for i, (name, curve) in enumerate((reference or {}).items()):
        axis.plot(np.arange(1, len(curve) + 1), curve, "--", color="0.3", marker=MARKERS[i % len(MARKERS)], ms=4,
                  label=name)  # fmt: skip
    sessions = runs[0].protocol.sessions
    words = " classes" if len(sessions) <= 9 else ""
    axis.set_xticks(range(1, len(sessions) + 1), [f"{s.index + 1}\n{s.stop}{words}" for s in sessions])
    axis.set(
        xlabel="after session" + ("" if words else " (below: classes learned)"),
        ylabel=f"{key.replace('_', ' ')} (%)",
        title=f"{key.replace('_', ' ')} after each session",
    )
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return figure


def forgetting_summary(runs: Sequence[Run]) -> Figure:
    """The headline forgetting of each method: a bar for the mean over its runs, whiskers of one standard deviation, and
    a dot per run. Class orders may differ."""
    groups = _by_label(runs, same_order=False)
    figure, axis = _figure(7.2, 1.3 + 0.42 * len(groups))
    for i, group in enumerate(groups.values()):
        values = np.array([run.summary["forgetting"] for run in group])
        spread = values.std(ddof=1) if len(values) > 1 else None
        colour = PALETTE[i % len(PALETTE)]
        axis.barh(i, values.mean(), height=0.6, color=colour, alpha=0.45, xerr=spread, capsize=3, ecolor="0.25")
        axis.plot(values, np.full(len(values), i), ls="", ms=5, mec="0.3", mew=0.5, clip_on=False, **_style(i))
    axis.set_yticks(range(len(groups)), [textwrap.fill(name, 36) for name in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.axvline(0, color="0.3", lw=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set(xlabel="forgetting (points of AP)", title="Forgetting: best earlier AP − last AP, whole test set")
    return figure


def class_session_heatmap(runs: Sequence[Run], pool: str = "fixed") -> Figure:
    """AP of every class after every session, one panel per run; grey where the class is still to come."""
    classes = runs[0].protocol.classes
    height = max(3.0, 0.24 * len(classes) + 1.2)
    figure, axes = _figure(2.9 * len(runs) + 1.4, height, 1, len(runs), squeeze=False, sharey=True)
    cmap = matplotlib.colormaps["viridis"].with_extremes(bad="0.88")
    for axis, run in zip(axes[0], runs, strict=True):
        table = run.ap_tables[pool]
        image = axis.imshow(table.T, vmin=0, vmax=100, cmap=cmap, aspect="auto")
        axis.set_xticks(range(len(table)), range(1, len(table) + 1))
        axis.set(title=label_of(run, runs), xlabel="after session")
        if len(classes) * len(table) <= 150:
            for (t, c), value in np.ndenumerate(table):
                if np.isfinite(value):
                    colour = "white" if value < 60 else "black"
                    axis.text(t, c, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes[0][0].set_yticks(range(len(classes)), classes, fontsize=8)
    figure.colorbar(image, ax=axes[0], label=f"AP (%), {POOLS[pool]}")
    return figure


POOLS = {
    "fixed": "whole test set",
    "seen": "test images with a seen class",
    "own": "test images of the class's own session",
}


def forgetting_bars(runs: Sequence[Run], kind: str = "max", pool: str = "fixed") -> Figure:
    """Points of AP each class lost until the end, averaged over the seeds of a method; without the last session's."""
    groups = _by_label(runs)
    protocol = runs[0].protocol
    shown = protocol.sessions[-1].start
    figure, axis = _figure(max(7.0, 0.28 * shown * len(groups) + 2), 3.8)
    width = 0.8 / len(groups)
    for i, (name, group) in enumerate(groups.items()):
        lost = np.mean([forgetting_per_class(r.ap_tables[pool], r.first_session, kind)[:shown] for r in group], axis=0)
        label = f"{name}: {lost.mean():.1f} on average"
        axis.bar(np.arange(shown) + (i - (len(groups) - 1) / 2) * width, lost, width, label=label,
                 color=PALETTE[i % len(PALETTE)])  # fmt: skip
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(range(shown), protocol.classes[:shown], rotation=45, ha="right")
    meaning = "best − last" if kind == "max" else "own session − last"
    axis.set(ylabel="AP lost (points)", title=f"Forgetting per class ({meaning}, {POOLS[pool]})")
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return figure


def thresholds(runs: Sequence[Run]) -> Figure | None:
    """Pseudo-label threshold and pseudo labels per image of each session; None if no run has any."""
    with_labels = [run for run in runs if run.session_state(run.finished_sessions - 1)["method"].get("thresholds")]
    if not with_labels:
        return None
    figure, (left, right) = _figure(9.5, 3.3, 1, 2)
    for i, run in enumerate(with_labels):
        records = run.session_state(run.finished_sessions - 1)["method"]["thresholds"]
        x = [int(t) + 1 for t in records]
        style = dict(marker=MARKERS[i % len(MARKERS)], color=PALETTE[i % len(PALETTE)])
        name = f"{label_of(run, runs)}, {replicate_of(run)}"
        left.plot(x, [r["threshold"] for r in records.values()], label=name, **style)
        right.plot(x, [r["found"] for r in records.values()], **style)
        right.plot(x, [r["target"] for r in records.values()], ":", color="0.3", label="expected" if not i else None)
    left.set(xlabel="session", ylabel="threshold (probability)", title="Dynamic pseudo-label threshold")
    right.set(xlabel="session", ylabel="old labels per image", title="Pseudo labels found")
    for axis in (left, right):
        axis.set_xticks(x)
        axis.legend(fontsize=8)
    return figure


def _by_label(runs: Sequence[Run], same_order: bool = True) -> dict[str, list[Run]]:
    """Runs by method. RunError if they have different classes or protocols or, where it matters, class orders."""
    classes = tuple if same_order else frozenset
    if len({(classes(run.protocol.classes), run.protocol.name) for run in runs}) > 1:
        orders = ", class orders" if same_order else ""
        raise RunError(f"These runs have different classes{orders} or protocols: draw them apart.")
    groups: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        groups.setdefault(label, []).append(run)
    return groups


def _style(i: int) -> dict:
    """Colour and marker of the i-th method: the pairs repeat only after forty."""
    return dict(color=PALETTE[i % len(PALETTE)], marker=MARKERS[i % len(MARKERS)])


# ---- attention ----


def attention_over_sessions(image: np.ndarray, explanations: Sequence[Explanation], title: str = "") -> Figure:
    """One image, the model after each session: mean patch attention of the newest session's token.

    Above each map stands the mass that the retention token takes. image (S, S, 3) uint8; explanations of this image
    alone, one per session.
    """
    count = len(explanations)
    figure, axes = _figure(2.0 * (count + 1), 2.6, 1, count + 1, squeeze=False)
    _show(axes[0][0], image, title)
    _mark_leak(figure, explanations)
    for t, explanation in enumerate(explanations):
        patches = explanation.patches[0, t].mean(axis=0)  # heads averaged: (h, w)
        mass = explanation.retention[0, t].mean()
        _overlay(axes[0][t + 1], image, patches, "viridis", 0, patches.max())
        axes[0][t + 1].set_title(f"session {t + 1}\nretention token {100 * mass:.0f} %", fontsize=8)
    return figure


def retention_mass(explanations: Sequence[Explanation]) -> Figure:
    """Attention mass (%) on each session's retention token per head, in one model, averaged over images."""
    mass = 100 * np.concatenate([e.retention for e in explanations]).mean(axis=0)  # (T, H)
    figure, axis = _figure(0.62 * mass.shape[1] + 2.6, 0.42 * len(mass) + 1.6)
    sns.heatmap(mass, ax=axis, cmap="viridis", vmin=0, annot=True, fmt=".1f", annot_kws={"fontsize": 8},
                xticklabels=range(1, mass.shape[1] + 1), yticklabels=range(1, len(mass) + 1),
                cbar_kws={"label": "attention (%)"})  # fmt: skip
    axis.set(xlabel="head", ylabel="session of the token", title="Mass on the retention tokens")
    _mark_leak(figure, explanations)
    return figure


def evidence_over_sessions(
    image: np.ndarray, explanations: Sequence[Explanation], protocol: Protocol, present: Sequence[int], title: str = ""
) -> Figure:
    """One image: a row per present class (columns in learning order), a column per session; red patches speak for the
    class, blue ones against it, on one scale per class. The score stands above."""
    count = len(explanations)
    figure, axes = _figure(1.9 * (count + 1), 2.15 * len(present), len(present), count + 1, squeeze=False)
    _mark_leak(figure, explanations)
    for line, column in zip(axes, present, strict=True):
        _show(line[0], image, f"{title}\nclass: {protocol.classes[column]}")
        learned = [e for e in explanations if column < e.evidence.shape[1]]
        limit = max((np.abs(e.evidence[0, column]).max() for e in learned), default=1)
        for t, (axis, explanation) in enumerate(zip(line[1:], explanations, strict=True)):
            if column >= explanation.evidence.shape[1]:
                axis.set_axis_off()
                axis.text(0.5, 0.5, "not yet\nlearned", ha="center", va="center", fontsize=8, color="0.5")
                continue
            _overlay(axis, image, explanation.evidence[0, column], "RdBu_r", -limit, limit)
            axis.set_title(f"session {t + 1}\nscore {explanation.scores[0, column]:.2f}", fontsize=8)
    return figure


def _mark_leak(figure: Figure, explanations: Sequence[Explanation]) -> None:
    if any(explanation.leak for explanation in explanations):
        figure.suptitle("LEAK: the first weights had seen these labels", fontsize=9, color=PALETTE[3])


def _show(axis, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def _overlay(axis, image: np.ndarray, values: np.ndarray, cmap: str, low: float, high: float) -> None:
    axis.imshow(image.mean(axis=2), cmap="gray")
    side = image.shape[0]
    axis.imshow(values, cmap=cmap, vmin=low, vmax=high, alpha=0.55, extent=(0, side, side, 0), interpolation="nearest")
    axis.set_axis_off()
