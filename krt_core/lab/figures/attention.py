"""Where the tokens attend, and which patches speak for a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..analysis.explain import Evidence, Look
from .figure import MARKERS, PALETTE, write_numbers

FOR_AND_AGAINST = "PuOr_r"  # orange for a class, violet against it: told apart by colour-blind readers


def patch_maps(image: np.ndarray, seen: Look, token: int, title: str = "") -> Figure:
    """One image, one model: patch attention of a session's token, the mean over heads and each head, each to its own
    scale. Above stands the share of the attention that falls on patches. image (S, S, 3) uint8; seen of this image."""
    maps = seen.patches[0, token]  # (H, h, w)
    names = ["mean of heads", *(f"head {i + 1}" for i in range(len(maps)))]
    figure, axes = row_of_images(len(names) + 1, lines=1 + title.count("\n"))
    show_image(axes[0], image, title)
    for axis, name, values in zip(axes[1:], names, [maps.mean(axis=0), *maps], strict=True):
        overlay(axis, image, values, "viridis", 0, values.max())
        axis.set_title(f"{name}\n{_share(values.sum())} on patches", fontsize=8)
    _mark_leak(figure, [seen])
    return figure


def maps_per_token(image: np.ndarray, seen: Look, title: str = "") -> Figure:
    """One image, one model: the mean patch attention of every session's token, all to one scale of shares among the
    patches. With the published query they are the same picture; with ``model.query=retention`` they are not."""
    means = seen.patches[0].mean(axis=1)  # (T, h, w)
    shares = means / means.sum(axis=(1, 2), keepdims=True)
    figure, axes = row_of_images(len(means) + 1, lines=1 + title.count("\n"))
    show_image(axes[0], image, title)
    for t, axis in enumerate(axes[1:]):
        overlay(axis, image, shares[t], "viridis", 0, shares.max())
        axis.set_title(f"token of session {t + 1}\n{_share(means[t].sum())} on patches", fontsize=8)
    _mark_leak(figure, [seen])
    return figure


def attention_over_sessions(image: np.ndarray, seen: Sequence[Look], title: str = "") -> Figure:
    """One image, the model after each session: mean patch attention of the newest session's token.

    Above each map stands the mass that the retention token takes. seen: of this image alone, one per session.
    """
    figure, axes = row_of_images(len(seen) + 1)
    show_image(axes[0], image, title)
    for t, (axis, look) in enumerate(zip(axes[1:], seen, strict=True)):
        patches = look.patches[0, -1].mean(axis=0)  # (h, w)
        overlay(axis, image, patches, "viridis", 0, patches.max())
        axis.set_title(f"after session {t + 1}\nretention token {_share(look.retention[0, -1].mean())}", fontsize=8)
    _mark_leak(figure, seen)
    return figure


def token_mass(seen: Sequence[Look], images: str = "") -> Figure:
    """How the mass on the tokens changes through the sessions, and how it is spread over the heads of the last model.

    seen: one per session, of the same images, over which the mass is averaged.
    """
    figure = Figure(figsize=(13, 3.7))
    space = dict(left=0.05, right=0.96, top=0.82, bottom=0.15, wspace=0.3, width_ratios=[1, 1, 1.15, 1.15])
    axes = figure.subplots(1, 4, gridspec_kw=space)
    for axis, kind, name in ((axes[0], "retention", "retention token"), (axes[1], "transfer", "transfer token")):
        for s in range(len(seen)):
            x = np.arange(s, len(seen))
            mass = [100 * getattr(seen[t], kind)[:, s].mean() for t in x if s < getattr(seen[t], kind).shape[1]]
            if mass:
                axis.plot(x[: len(mass)] + 1, mass, color=PALETTE[s % len(PALETTE)], marker=MARKERS[s % len(MARKERS)],
                          label=f"{s + 1}", ms=5)  # fmt: skip
        axis.set_xticks(range(1, len(seen) + 1))
        axis.set(xlabel="model after session", ylabel="attention (%)")
        axis.set_title(f"on the {name}, through the sessions", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(title="session of\nthe token", fontsize=7, title_fontsize=7, ncols=2)
    for axis, kind in ((axes[2], "retention"), (axes[3], "transfer")):
        mass = 100 * getattr(seen[-1], kind).mean(axis=0)  # (T, H)
        drawn = axis.imshow(mass, cmap="viridis", vmin=0, aspect="auto")
        if mass.size <= 40:
            write_numbers(axis, mass, mass < 0.6 * mass.max(), size=8)
        axis.set_xticks(range(mass.shape[1]), range(1, mass.shape[1] + 1))
        axis.set_yticks(range(len(mass)), range(1, len(mass) + 1))
        figure.colorbar(drawn, ax=axis, label="attention (%)")
        axis.set(xlabel="head", ylabel="session of the token")
        axis.set_title(f"on the {kind} token, last model shown", fontsize=9)
    figure.suptitle(f"Attention mass on the tokens{images and ': ' + images}", fontsize=10)
    _mark_leak(figure, seen)
    return figure


def evidence_over_sessions(
    image: np.ndarray,
    rows: dict[str, Sequence[Evidence | None]],
    title: str = "",
    boxes: np.ndarray | None = None,
    leak: bool = False,
) -> Figure:
    """One image: a row of evidence maps per entry (name → one per session, None where the class was not yet learned).

    Orange patches speak for the class, violet ones against it, on one scale. Above each map stand the probability, and
    the logit as baseline + sum of the map. boxes (m, 4) x, y, width, height of the class, as shares.
    """
    count = max(map(len, rows.values()))
    titles = [f"{title}\n{name}".strip() for name in rows]
    figure, axes = row_of_images(count + 1, len(rows), 1 + max(name.count("\n") for name in titles), bar=True)
    found = [one for sessions in rows.values() for one in sessions if one is not None]
    limit = max((np.abs(one.maps[0]).max() for one in found), default=1) or 1
    for line, name, sessions in zip(axes.reshape(len(rows), -1), titles, rows.values(), strict=True):
        show_image(line[0], image, name)
        _frame(line[0], image, boxes)
        for t, (axis, one) in enumerate(zip(line[1:], sessions, strict=False)):
            if one is None:
                axis.text(0.5, 0.5, "not yet\nlearned", ha="center", va="center", fontsize=8, color="0.4",
                          transform=axis.transAxes)  # fmt: skip
                continue
            drawn = overlay(axis, image, one.maps[0], FOR_AND_AGAINST, -limit, limit)
            _frame(axis, image, boxes)
            logit, base = one.logits[0], one.baseline[0]
            probability = 1 / (1 + np.exp(-float(logit)))
            axis.set_title(f"session {t + 1}: {probability:.2f}\n{logit:+.1f} = {base:+.1f} {logit - base:+.1f}",
                           fontsize=8)  # fmt: skip
    if found:
        place = axes.flat[-1].get_position()
        width = figure.get_figwidth()
        bar = figure.add_axes((place.x1 + 0.1 / width, place.y0, 0.1 / width, place.height))
        figure.colorbar(drawn, cax=bar).set_label("a patch's part of the logit", fontsize=8)
        bar.tick_params(labelsize=7)
    if leak:
        mark_leak(figure)
    return figure


def row_of_images(count: int, rows: int = 1, lines: int = 2, bar: bool = False) -> tuple[Figure, np.ndarray]:
    """Axes for square pictures under so many lines of title; no layout engine, which would take longer than the
    drawing."""
    side, head = 1.4, 0.1 + 0.15 * max(lines, 2)
    right = 0.75 if bar else 0.1  # inches beside the last picture
    width, height = (side + 0.08) * count + right, (side + head) * rows + 0.1
    figure = Figure(figsize=(width, height))
    space = dict(left=0.1 / width, right=1 - right / width, bottom=0.08 / height, top=1 - head / height)
    axes = figure.subplots(rows, count, squeeze=False, gridspec_kw=dict(wspace=0.06, hspace=head / side, **space))
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes if rows > 1 else axes[0]


def _share(mass: float) -> str:
    return f"{100 * mass:.0f} %"


def _mark_leak(figure: Figure, seen: Sequence[Look]) -> None:
    if any(look.leak for look in seen):
        mark_leak(figure)


def mark_leak(figure: Figure) -> None:
    figure.suptitle("LEAK: the first weights had seen these labels", fontsize=9, color=PALETTE[3], y=0.02, va="bottom")


def show_image(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8, parse_math=False)


def overlay(axis: Axes, image: np.ndarray, values: np.ndarray, cmap: str, low: float, high: float) -> AxesImage:
    axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    side = image.shape[0]
    extent = (0, side, side, 0)
    drawn = axis.imshow(values, cmap=cmap, vmin=low, vmax=high, alpha=0.6, extent=extent, interpolation="nearest")
    axis.set(xlim=(0, side), ylim=(side, 0))
    return drawn


def _frame(axis: Axes, image: np.ndarray, boxes: np.ndarray | None) -> None:
    side = image.shape[0]
    for x, y, width, height in () if boxes is None else boxes * side:
        axis.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color="white", lw=2.2)
        axis.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color="black", lw=1)
