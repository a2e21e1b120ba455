"""Images with what one model, or two, say of them. All of a picture is drawn into one axis: many would take seconds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from ..data import MultiLabelDataset
from ..data.pipeline import load_image
from ..errors import DataError
from ..metrics import F1_THRESHOLD
from ..predictions import KINDS, PAIR_KINDS, check_learned, paired, said, scores_of, select
from ..report import label_of, replicate_of
from ..run import Run
from .figure import PALETTE

PIXELS = 160  # side of a thumbnail
SIDE, GAP, LINE, BAR = 1.65, 0.2, 0.15, 0.08  # inches: of a thumbnail, between two, a line of text, a bar
BESIDE = 1.5  # inches for text beside a thumbnail
LINES = 4  # classes named per model
FRAMED = 3  # other classes whose boxes are drawn

# Verdict → mark and colour: told apart without the colour, and dark enough for text on white.
VERDICTS = {
    "right": ("✓", tuple(0.7 * v for v in PALETTE[2])),
    "wrong": ("✗", tuple(0.8 * v for v in PALETTE[3])),
    "missed": ("○", tuple(0.8 * v for v in PALETTE[0])),
    "shown": ("=", (0.3, 0.3, 0.3)),
}
RIGHT_WRONG_MISSED = "✓ predicted and there   ✗ predicted, not there   ○ there, not predicted"


@dataclass(frozen=True)
class Said:
    """What is written about an image: lines (verdict, class, score or None); above them a bar for a score from 0 to 1,
    if there is one, with a tick at the threshold."""

    lines: Sequence[tuple[str, str, float | None]]
    score: float | None = None
    threshold: float | None = None
    head: str = ""
    colour: tuple = (0.35, 0.35, 0.35)


@dataclass(frozen=True)
class Card:
    """One image: pixels (S, S, 3) or None where there is no file, then ``missing`` says which; boxes (name, x, y, width,
    height) in shares of the image; one `Said` below it, or several beside it; main: the class in question, in bold."""

    title: str
    pixels: np.ndarray | None
    missing: str
    said: Sequence[Said]
    main: str | None = None
    boxes: Sequence[tuple[str, float, float, float, float]] = field(default_factory=list)


def gallery(
    run: Run,
    dataset: MultiLabelDataset | None,
    session: int,
    column: int,
    kind: str = "misses",
    count: int = 12,
    threshold: float = F1_THRESHOLD,
) -> Figure:
    """Test images of one of `krt_core.predictions.KINDS` for a class after a session, with boxes, the class's score and
    what else is predicted.

    dataset: the test set, or None: grey cards instead of images, as for a file that is missing. Raises RunError for an
    unknown kind or a class that is still to come.
    """
    check_learned(run, session, column)
    scores, classes = scores_of(run, session), run.protocol.classes
    rows = select(scores, None, column, kind, None, threshold)
    cards = []
    for row in rows[:count]:
        values = scores.scores[row]
        lines = said(values, scores.labels[row], classes, threshold)
        told = Said(lines, float(values[column]), threshold)
        cards.append(make_card(dataset, str(scores.ids[row]), classes[column], [told]))
    order = KINDS[kind].split("; ")[1]
    title = (
        f"{classes[column]} after session {session + 1}, {kind} at threshold {threshold:.2f}: "
        f"{len(cards)} of {len(rows)}, {order}\n{_name(run)}     {RIGHT_WRONG_MISSED}"
    )
    return sheet(cards, title)


def side_by_side(
    run_a: Run,
    run_b: Run,
    dataset: MultiLabelDataset | None,
    session: int,
    column: int,
    kind: str = "differ most",
    count: int = 12,
    threshold: float = F1_THRESHOLD,
) -> Figure:
    """The same test images with what two runs say of them; column and dataset as run_a has them, kind one of
    `krt_core.predictions.PAIR_KINDS`, or of `KINDS`: then by the scores of run_a.

    Raises RunError where the runs were not tested on the same images and classes or one has not learned the class yet.
    """
    check_learned(run_a, session, column)
    a, b, session_b = paired(run_a, run_b, session)
    classes = run_a.protocol.classes
    check_learned(run_b, session_b, run_b.protocol.classes.index(classes[column]))
    rows, cards = select(a, b, column, kind, None, threshold), []
    for row in rows[:count]:
        told = []
        for head, colour, values in (("A", PALETTE[0], a.scores[row]), ("B", PALETTE[1], b.scores[row])):
            lines = said(values, a.labels[row], classes, threshold)
            told.append(Said(lines, float(values[column]), threshold, head, colour))
        cards.append(make_card(dataset, str(a.ids[row]), classes[column], told))
    order = PAIR_KINDS.get(kind, f"{kind} of A, {KINDS.get(kind, '').split('; ')[-1]}")
    names = [
        f"{letter}: {_name(run, (run_a, run_b))}, after session {s + 1}"
        for letter, run, s in (("A", run_a, session), ("B", run_b, session_b))
    ]
    title = f"{classes[column]}, {order}: {len(cards)} of {len(rows)} images"
    marks = f"bars: probability of {classes[column]}, threshold {threshold:.2f}     {RIGHT_WRONG_MISSED}"
    return sheet(cards, "\n".join([title, *names, marks]), across=3)


def make_card(
    dataset: MultiLabelDataset | None, image: str, main: str | None, told: Sequence[Said], note: str = ""
) -> Card:
    """The card of an image by its id."""
    title = f"image {image}{note}"
    rows = np.flatnonzero(dataset.ids == image) if dataset is not None else ()
    if not len(rows):
        return Card(title, None, "no such image in the data set" if dataset is not None else "no data set", told, main)
    path = dataset.path(int(rows[0]))
    return Card(title, thumbnail(path), path.name, told, main, boxes_of(dataset, int(rows[0]), main))


def thumbnail(path: Path) -> np.ndarray | None:
    """(PIXELS, PIXELS, 3) uint8; None where the file is missing or broken."""
    try:
        return _decoded(path)
    except DataError:
        return None


@lru_cache(maxsize=1024)  # 80 MB; a failure is not kept, so that a file that comes back is seen
def _decoded(path: Path) -> np.ndarray:
    return load_image(path, PIXELS)


def boxes_of(dataset: MultiLabelDataset, row: int, main: str | None) -> list[tuple[str, float, float, float, float]]:
    """Boxes of an image as (name, x, y, width, height): all of class ``main``, the largest of a few others."""
    mine = dataset.boxes[dataset.boxes[:, 0] == row]
    mine = mine[np.argsort(-mine[:, 4] * mine[:, 5], kind="stable")]
    named = [(dataset.classes[int(box[1])], *box[2:].tolist()) for box in mine]
    largest = {box[0]: box for box in reversed(named) if box[0] != main}
    return [box for box in named if box[0] == main] + list(largest.values())[::-1][:FRAMED]


# ---- drawing ----


def sheet(cards: Sequence[Card], title: str, across: int = 6) -> Figure:
    """Cards in rows under a title. The axis is measured in inches from the top left."""
    beside = any(len(card.said) > 1 for card in cards)
    across = max(min(across, len(cards)), 2 if beside else 4)
    rows = -(-len(cards) // across)
    written = max((_height(told) for card in cards for told in card.said), default=0)
    head = LINE * 1.15 * (1 + title.count("\n")) + 0.15
    step_x = SIDE + GAP / 2 + (BESIDE if beside else 0)
    step_y = LINE + 0.04 + (max(SIDE, 2 * written) if beside else SIDE + written) + GAP
    width, height = 0.1 + step_x * across, head + step_y * max(rows, 0.2)
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.text(0.1, 0.1, title, fontsize=9, va="top", linespacing=1.3, parse_math=False)
    frames: dict[bool, list] = {True: [], False: []}
    bars: list[tuple[np.ndarray, tuple]] = []
    ticks: list[np.ndarray] = []
    for i, card in enumerate(cards):
        left, top = 0.1 + step_x * (i % across), head + step_y * (i // across)
        _words(axis, left, top, card.title, size=8)
        top += LINE + 0.04
        if card.pixels is None:
            bars.append((_rectangle(left, top, SIDE, SIDE), (0.85, 0.85, 0.85)))
            words = f"{card.title.removeprefix('image ')}\n{textwrap.fill(card.missing, 22)}"
            _words(axis, left + SIDE / 2, top + SIDE / 2, words, ha="center", va="center")
        else:
            extent = (left, left + SIDE, top + SIDE, top)
            axis.imshow(card.pixels, extent=extent, aspect="auto", interpolation="nearest")
        _frames(axis, card, left, top, frames)
        x, y = (left + SIDE + 0.08, top) if beside else (left, top + SIDE + 0.06)
        for told in card.said:
            _write(axis, told, x, y, BESIDE - 0.15 if beside else SIDE, card.main, bars, ticks)
            y += max(SIDE / 2, written)
    axis.add_collection(PolyCollection([shape for shape, _ in bars], facecolor=[c for _, c in bars], lw=0, zorder=0))
    axis.add_collection(LineCollection(ticks, color="black", lw=1.2))
    for main, lines in frames.items():
        for colour, extra in (("white", 1.4), ("black", 0)):
            lw, dashes = (1.2, "-") if main else (0.8, "-" if extra else (0, (3, 2)))
            axis.add_collection(LineCollection(lines, color=colour, lw=lw + extra, ls=dashes, zorder=3))
    axis.set(xlim=(0, width), ylim=(height, 0))
    return figure


def _height(told: Said) -> float:
    lines = min(len(told.lines), LINES + 1)
    return LINE * lines + (BAR + 0.09 if told.score is not None else 0) + 0.06


def _write(
    axis: Axes, told: Said, x: float, y: float, width: float, main: str | None, bars: list, ticks: list
) -> None:
    if told.score is not None:
        margin, middle = (0.16 if told.head else 0), y + 0.06
        length = width - margin - 0.33
        low = middle - BAR / 2
        bars.append((_rectangle(x + margin, low, length, BAR), (0.9, 0.9, 0.9)))
        bars.append((_rectangle(x + margin, low, length * max(told.score, 0.005), BAR), told.colour))
        if told.threshold is not None:
            at = x + margin + length * told.threshold
            ticks.append(np.array([(at, low - 0.03), (at, low + BAR + 0.03)]))
        if told.head:
            _words(axis, x, middle, told.head, weight="bold", va="center")
        _words(axis, x + width, middle, f"{told.score:.2f}", va="center", ha="right")
        y += BAR + 0.09
    lines = sorted(told.lines, key=lambda line: line[1] != main)  # the class in question is always named
    if len(lines) > LINES:
        more = f"+ {len(lines) - LINES} more"
        lines = lines[:LINES]
        _words(axis, x, y + LINE * LINES, more, color="0.4")
    for k, (verdict, name, score) in enumerate(lines):
        mark, colour = VERDICTS[verdict]
        number = "" if score is None else f" {score:.2f}"
        weight = "bold" if name == main else "normal"
        words = f"{mark} {textwrap.shorten(name, 17, placeholder='…') if ' ' in name else name[:17]}{number}"
        _words(axis, x, y + LINE * k, words, color=colour, weight=weight)


def _frames(axis: Axes, card: Card, left: float, top: float, frames: dict[bool, list]) -> None:
    """Boxes into ``frames``; of each class the first, which is the largest, is named."""
    named = set()
    for name, x, y, width, height in card.boxes:
        x, y, width, height = left + SIDE * x, top + SIDE * y, SIDE * width, SIDE * height
        frames[name == card.main].append(_rectangle(x, y, width, height, closed=True))
        if name not in named:
            named.add(name)
            below = y < top + 0.1  # no room above the box
            text = axis.text(x + 0.02, y + (0.02 if below else -0.01), name, fontsize=7, va="top" if below else "bottom",
                             weight="bold" if name == card.main else "normal", parse_math=False, zorder=4)  # fmt: skip
            text.set_bbox(dict(facecolor="white", alpha=0.75, lw=0, pad=0.6))


def _words(axis: Axes, x: float, y: float, words: str, size: float = 7.5, va: str = "top", **style) -> None:
    axis.text(x, y, words, fontsize=size, va=va, parse_math=False, **style)


def _rectangle(x: float, y: float, width: float, height: float, closed: bool = False) -> np.ndarray:
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)])
    return corners if closed else corners[:4]


def _name(run: Run, among: Sequence[Run] = ()) -> str:
    return f"{label_of(run, among)}, {replicate_of(run)}"
