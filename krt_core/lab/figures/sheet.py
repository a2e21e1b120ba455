"""Cards of images on one sheet, with what is said of each. All of a sheet is drawn into one axis: many would take
seconds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ...data import MultiLabelDataset
from ...data.store import load_image
from ...errors import DataError
from .figure import PALETTE

PIXELS = 160  # side of a thumbnail
SIDE, GAP, LINE, BAR = 1.65, 0.2, 0.15, 0.08  # inches: of a thumbnail, between two, a line of text, a bar
BESIDE = 1.5  # inches for text beside a thumbnail
LINES = 4  # classes named below an image; beside it one less
NAME = 7  # points: the names on boxes
FRAMED = 3  # other classes whose boxes are drawn
GREY = (0.35, 0.35, 0.35)

# Verdict → mark and colour: told apart without the colour, and dark enough for text on white.
VERDICTS = {
    "right": ("✓", tuple(0.7 * v for v in PALETTE[2])),
    "wrong": ("✗", tuple(0.8 * v for v in PALETTE[3])),
    "missed": ("○", tuple(0.8 * v for v in PALETTE[0])),
    "shown": ("=", (0.3, 0.3, 0.3)),
    "unknown": ("?", (0.3, 0.3, 0.3)),
}


@dataclass(frozen=True)
class Said:
    """What is written about an image: lines (verdict, class, score or None); above them a bar for a score from 0 to 1,
    if there is one, with a tick at the threshold."""

    lines: Sequence[tuple[str, str, float | None]]
    score: float | None = None
    threshold: float | None = None
    head: str = ""
    colour: tuple = GREY


@dataclass(frozen=True)
class Card:
    """One image by its id: pixels (S, S, 3), or None where there is no file, which ``missing`` names; one `Said` below
    it, or two beside it; main: the class in question, in bold; boxes (name, x, y, width, height) in shares of the
    image; note: what stands behind its id."""

    image: str
    pixels: np.ndarray | None
    missing: str
    said: Sequence[Said]
    main: str | None = None
    boxes: Sequence[tuple[str, float, float, float, float]] = field(default_factory=list)
    note: str = ""


def sheet(cards: Sequence[Card], title: str, across: int = 6) -> Figure:
    """Cards in rows of at most ``across`` under a title, which is also the figure's `alt`. The axis is measured in
    inches from the top left; `card_at` tells which card is where."""
    beside = any(len(card.said) > 1 for card in cards)
    across = max(-(-len(cards) // max(1, -(-len(cards) // across))), 2 if beside else 4)  # rows as even as can be
    most = LINES - 1 if beside else LINES
    written = max((_height(told, most) for card in cards for told in card.said), default=0)
    step_x = SIDE + GAP / 2 + (BESIDE if beside else 0)
    step_y = LINE + 0.04 + (max(SIDE, 2 * written) if beside else SIDE + written) + GAP
    width = 0.1 + step_x * across
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, int(16 * width))]
    head = LINE * 1.15 * len(lines) + 0.2
    page = _Page(width, head + step_y * -(-len(cards) // across))
    page.words(0.1, 0.1, "\n".join(lines), size=9, linespacing=1.3)
    places = []
    for i, card in enumerate(cards):
        left, top = 0.1 + step_x * (i % across), head + step_y * (i // across)
        places.append((left, top, left + step_x - GAP / 2, top + step_y - GAP / 2))
        room = step_x - GAP / 2 - length_of(f"image {card.note}", "normal", 8)
        page.words(left, top, f"image {_cut(card.image, room, 8)}{card.note}", size=8)
        top += LINE + 0.04
        page.image(left, top, card)
        page.boxes(left, top, card)
        x, y = (left + SIDE + 0.08, top) if beside else (left, top + SIDE + 0.06)
        for told in card.said:
            page.write(x, y, BESIDE - 0.15 if beside else SIDE, told, card.main, most)
            y += max(SIDE / 2, written)
    figure = page.finish()
    figure.alt, figure.places = title, places
    return figure


def card_at(figure: Figure, x: float, y: float) -> int | None:
    """Which card of a sheet is at a place of its axis."""
    inside = [left <= x < right and top <= y < bottom for left, top, right, bottom in figure.places]
    return inside.index(True) if True in inside else None


def _height(told: Said, most: int) -> float:
    return LINE * min(len(told.lines), most + 1) + (BAR + 0.09 if told.score is not None else 0) + 0.06


class _Page:
    """A figure with one axis in inches from the top left. Shapes are gathered, then drawn as a few collections: an
    artist of its own for each would take longer than the images. What is left to take time is text, 1 ms a line."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height))
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set_axis_off()
        self.filled: list[tuple[np.ndarray, tuple]] = []  # corners and colour
        self.plates: list[np.ndarray] = []  # under the names of boxes
        self.frames: dict[bool, list[np.ndarray]] = {True: [], False: []}  # of the class in question, of others
        self.ticks: list[list[tuple[float, float]]] = []
        self.limits = dict(xlim=(0, width), ylim=(height, 0))

    def words(self, x: float, y: float, words: str, size: float = 7.5, va: str = "top", **style) -> None:
        self.axis.text(x, y, words, fontsize=size, va=va, parse_math=False, **style)

    def image(self, left: float, top: float, card: Card) -> None:
        if card.pixels is None:
            self.filled.append((_corners(left, top, SIDE, SIDE), (0.85, 0.85, 0.85)))
            words = _folded(_cut(card.missing, 5 * SIDE), 0.92 * SIDE)  # letters on screen are a little wider
            self.words(left + SIDE / 2, top + SIDE / 2, words, ha="center", va="center")
        else:
            extent = (left, left + SIDE, top + SIDE, top)
            self.axis.imshow(card.pixels, extent=extent, aspect="auto", interpolation="nearest")

    def boxes(self, left: float, top: float, card: Card) -> None:
        """Of each class the first box, which is the largest, is named."""
        named = set()
        for name, x, y, width, height in card.boxes:
            x, y, main = left + SIDE * x, top + SIDE * y, name == card.main
            self.frames[main].append(_corners(x, y, SIDE * width, SIDE * height))
            if name not in named:
                named.add(name)
                base = y + 0.1 if y < top + 0.1 else y - 0.02  # inside where there is no room above the box
                weight = "bold" if main else "normal"
                self.plates.append(_corners(x, base - 0.09, 0.04 + length_of(name, weight), 0.12))
                self.words(x + 0.02, base, name, size=NAME, va="baseline", weight=weight, zorder=4)

    def write(self, x: float, y: float, width: float, told: Said, main: str | None, most: int) -> None:
        """What is said, at most so many lines of it; the class in question always."""
        if told.score is not None:
            left, low = x, y + 0.02
            if told.head:
                self.words(x, low + BAR / 2, f"{told.head} {told.score:.2f}", weight="bold", va="center")
                left += 0.36 + 0.07 * len(told.head)
            length = x + width - left
            self.filled.append((_corners(left, low, length, BAR), (0.9, 0.9, 0.9)))
            self.filled.append((_corners(left, low, length * max(told.score, 0.005), BAR), told.colour))
            if told.threshold is not None:
                at = left + length * told.threshold
                self.ticks.append([(at, low - 0.03), (at, low + BAR + 0.03)])
            y += BAR + 0.09
        lines = sorted(told.lines, key=lambda line: line[1] != main)
        for k, (verdict, name, score) in enumerate(lines[:most]):
            mark, colour = VERDICTS[verdict]
            short = name if len(name) <= 17 else f"{name[:16]}…"
            words = f"{mark} {short}" + ("" if score is None else f" {score:.2f}")
            self.words(x, y + LINE * k, words, color=colour, weight="bold" if name == main else "normal")
        if len(lines) > most:
            self.words(x, y + LINE * most, f"+ {len(lines) - most} more", color="0.4")

    def finish(self) -> Figure:
        shapes, colours = [shape for shape, _ in self.filled], [colour for _, colour in self.filled]
        add = self.axis.add_collection
        add(PolyCollection(shapes, facecolor=colours, lw=0, zorder=0))
        add(PolyCollection(self.plates, facecolor="white", alpha=0.75, lw=0, zorder=3.5))
        add(LineCollection(self.ticks, color="black", lw=1.2))
        for main, frames in self.frames.items():
            width, dashes = (1.2, "-") if main else (0.8, (0, (3, 2)))
            add(LineCollection(frames, color="white", lw=width + 1.4, zorder=3))
            add(LineCollection(frames, color="black", lw=width, ls=dashes, zorder=3))
        self.axis.set(**self.limits)
        return self.figure


@lru_cache(maxsize=4096)
def length_of(words: str, weight: str = "normal", size: float = NAME) -> float:
    """Inches of words in a line."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(words, font, ismath=False)[0] / 72


def _cut(words: str, width: float, size: float = 7.5) -> str:
    """What of the words fits into so many inches: the middle goes, for the ends of ids and file names tell them apart.

    >>> _cut("COCO_val2014_000000581781", 1.0)
    'COCO_va…581781'
    """
    if len(words) * size / 72 <= width or length_of(words, size=size) <= width:  # few letters are wider than high
        return words
    keep = int(len(words) * width / length_of(words, size=size))
    while keep > 2 and length_of(_middle_out(words, keep), size=size) > width:
        keep -= 1
    return _middle_out(words, keep)


def _folded(words: str, width: float, size: float = 7.5) -> str:
    """The words in lines of at most so many inches."""
    for letters in range(22, 1, -1):
        lines = textwrap.wrap(words, letters)
        if all(length_of(line, size=size) <= width for line in lines):
            break
    return "\n".join(lines)


def _middle_out(words: str, keep: int) -> str:
    return f"{words[: keep - keep // 2]}…{words[len(words) - keep // 2 :]}"


def _corners(x: float, y: float, width: float, height: float) -> np.ndarray:
    """(5, 2) a rectangle, closed."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)])


# ---- cards from a data set ----


def make_card(
    dataset: MultiLabelDataset | None, image: str, main: str | None, told: Sequence[Said], note: str = ""
) -> Card:
    """The card of an image by its id."""
    rows = np.flatnonzero(dataset.ids == image) if dataset is not None else ()
    if not len(rows):
        missing = "no such image in the data set" if dataset is not None else "no data set"
        return Card(image, None, missing, told, main, note=note)
    path = dataset.path(int(rows[0]))
    return Card(image, thumbnail(path), path.name, told, main, boxes_of(dataset, int(rows[0]), main), note)


def card_of_photo(photo: Path, name: str, main: str | None, told: Sequence[Said]) -> Card:
    """The card of a photo that no data set names."""
    return Card(name, thumbnail(photo), f"{photo.name} cannot be read", told, main)


def thumbnail(path: Path) -> np.ndarray | None:
    """(PIXELS, PIXELS, 3) uint8; None where the file is missing or broken."""
    try:
        return _decoded(path, path.stat().st_mtime_ns)
    except (OSError, DataError):
        return None


@lru_cache(maxsize=1024)  # 80 MB
def _decoded(path: Path, changed: int) -> np.ndarray:
    return load_image(path, PIXELS)


def boxes_of(dataset: MultiLabelDataset, row: int, main: str | None) -> list[tuple[str, float, float, float, float]]:
    """Boxes of an image as (name, x, y, width, height): all of class ``main``, the largest of a few others."""
    mine = dataset.boxes[dataset.boxes[:, 0] == row]
    mine = mine[np.argsort(-mine[:, 4] * mine[:, 5], kind="stable")]
    named = [(dataset.classes[int(box[1])], *box[2:].tolist()) for box in mine]
    largest = {box[0]: box for box in reversed(named) if box[0] != main}
    return [box for box in named if box[0] == main] + list(largest.values())[::-1][:FRAMED]
