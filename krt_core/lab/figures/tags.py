"""Photos with what a model names on them and what somebody has said of that; a model before and after it has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...tagger.tags import Tags
from .attention import mark_leak, overlay, row_of_images, show_image
from .figure import PALETTE, new_figure, plain
from .sheet import GREY, PIXELS, Said, card_of_photo, sheet, thumbnail

Spoken = Mapping[str, bool]  # tag → is it shown? of one photo
MARKS = "✓ named, and said to be there   ✗ named, said not to be   ○ said to be there, not named   ? named"


def photos_with_tags(
    photos: Sequence[Path],
    tags: Sequence[Tags | None],
    spoken: Sequence[Spoken],
    tag: str = "",
    first: int = 1,
    chosen: int = 0,
) -> Figure:
    """Cards of photos: what the model names, what somebody has said, and a bar for the probability of ``tag``.

    tags: None for a photo that cannot be read. first: the number of the first card; chosen: of the one that an arrow
    points to.
    """
    cards = []
    for number, (photo, found, said) in enumerate(zip(photos, tags, spoken, strict=True), first):
        name = f"{'▶ ' * (number == chosen)}{number} · {photo.name}"
        cards.append(card_of_photo(photo, name, tag, [_said(found, said, tag)]))
    leak = next((f"LEAK: {found.leak}" for found in tags if found is not None and found.leak), "")
    bars = f"bars: {tag}, tick: its threshold     " if any(card.said[0].score is not None for card in cards) else ""
    return sheet(cards, "\n".join(filter(None, [f"{len(cards)} photos", leak, bars + MARKS])))


def tags_before_and_after(
    photos: Sequence[Path], before: Sequence[Tags], after: Sequence[Tags], tag: str = ""
) -> Figure:
    """Cards of photos with what was named before a model grew, and after."""
    cards = []
    for number, (photo, *found) in enumerate(zip(photos, before, after, strict=True), 1):
        pairs = zip(("then", "now"), PALETTE, found, strict=False)
        told = [_said(tags, {}, tag, head, colour) for head, colour, tags in pairs]
        cards.append(card_of_photo(photo, f"{number} · {photo.name}", tag, told))
    bars = tag and f"     bars: {tag}"
    return sheet(cards, f"what is named, before the model has grown (then) and after (now){bars}", 3)


def _said(tags: Tags | None, spoken: Spoken, tag: str, head: str = "", colour: tuple = GREY) -> Said:
    if tags is None:
        return Said([])
    lines = [
        ({True: "right", False: "wrong"}.get(spoken.get(name), "unknown"), name, tags[name]) for name in tags.named
    ]
    for name in (name for name, shown in spoken.items() if shown and name not in tags.named):
        lines.append(("missed", name, tags[name] if name in tags.names else None))
    if tag not in tags.names:
        return Said(lines, None, None, head, colour)
    return Said(lines, tags[tag], float(tags.thresholds[tags.names.index(tag)]), head, colour)


def evidence_for_tags(photo: Path, tags: Tags, title: str = "", most: int = 6) -> Figure:
    """A photo, and for each tag that is named (at most so many) a map of where its evidence lies: `Tags.evidence`."""
    image = thumbnail(photo)
    image = np.zeros((PIXELS, PIXELS, 3), np.uint8) if image is None else image
    named = [name for name in tags.named if name in tags.evidence][:most]
    figure, axes = row_of_images(1 + len(named))
    show_image(np.atleast_1d(axes)[0], image, title)
    for axis, name in zip(np.atleast_1d(axes)[1:], named, strict=True):
        overlay(axis, image, tags.evidence[name], "inferno", 0, 1)
        axis.set_title(f"{plain(name)}\n{tags[name]:.2f}", fontsize=8)
    if tags.leak:
        mark_leak(figure)
    figure.alt = f"{title}: evidence for {', '.join(named) or 'nothing: no tag is named'}"
    return figure


def tag_changes(table: pd.DataFrame) -> Figure:
    """The table of `lab.analysis.tag_changes`: AP of each tag before and after, where test images tell it; and how far
    the probabilities on the photos have moved."""
    table = table[::-1]  # the first tag on top
    y, old = np.arange(len(table)), table["AP before"].notna().to_numpy()
    figure, axes = new_figure(9, 1.3 + 0.2 * len(table), columns=2, sharey=True)
    before, after = table["AP before"].to_numpy(), table["AP after"].to_numpy()
    axes[0].hlines(y[old], before[old], after[old], color="0.6", lw=2)
    axes[0].plot(before, y, "o", color=PALETTE[0], label="before", ms=6)
    axes[0].plot(after, y, "D", color=PALETTE[1], label="after", ms=4)
    axes[0].set(xlabel="AP on test images (%)", xlim=(0, 102), ylim=(-0.7, len(table) - 0.3))
    figure.legend(fontsize=8, loc="outside upper left", ncols=2)
    drift = table["drift"].fillna(0).to_numpy()
    axes[1].barh(y, drift, color=[PALETTE[2 if moved >= 0 else 3] for moved in drift])
    axes[1].axvline(0, color="0.3", lw=0.8)
    axes[1].set_xlabel("mean change of probability on the photos (points)")
    for axis in axes:
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(y, [plain(name) for name in table.index], fontsize=8)
    return figure
