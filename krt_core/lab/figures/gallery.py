"""Test images that one model, or two, are right and wrong about."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from ...data import MultiLabelDataset
from ...metrics import F1_THRESHOLD
from ...runs.folder import Run, Scores
from ..analysis.predictions import KINDS, PAIR_KINDS, check_learned, paired, said, scores_of, select
from ..report import names_of
from .figure import PALETTE
from .sheet import GREY, Card, Said, make_card, sheet

Side = tuple[str, tuple, Scores]  # head, colour and scores of what is written on a card


def gallery(
    run: Run,
    dataset: MultiLabelDataset | None,
    session: int,
    column: int,
    kind: str = "misses",
    count: int = 12,
    threshold: float = F1_THRESHOLD,
    *,
    name: str = "",
) -> Figure:
    """Test images of one of `predictions.KINDS` for a class after a session, with boxes, the class's score and
    what else is predicted.

    dataset: the test set, or None: grey cards instead of images, as for a file that is missing. name: how the run is
    called; by itself it cannot tell in what it differs from others. Raises RunError for an unknown kind or a class that
    is still to come.
    """
    check_learned(run, session, column)
    scores, classes = scores_of(run, session), run.protocol.classes
    rows = select(scores, None, column, kind, None, threshold)
    cards = _cards(dataset, rows[:count], classes, column, threshold, ("", GREY, scores))
    order = KINDS[kind].split("; ")[1]
    title = f"{classes[column]} after session {session + 1}: {len(cards)} of {len(rows)} {kind}, {order}"
    return sheet(cards, "\n".join([title, name or run_name(run), _marks(cards, classes[column], threshold)]))


def side_by_side(
    run_a: Run,
    run_b: Run,
    dataset: MultiLabelDataset | None,
    session: int,
    column: int,
    kind: str = "differ most",
    count: int = 12,
    threshold: float = F1_THRESHOLD,
    *,
    names: Sequence[str] = (),
) -> Figure:
    """The same test images with what two runs say of them; column and dataset as run_a has them, kind one of
    `lab.analysis.predictions.PAIR_KINDS`, or of `KINDS`: then by the scores of run_a. names: how the two are called.

    Raises RunError where the runs were not tested on the same images, classes and labels or one has not learned the
    class yet.
    """
    check_learned(run_a, session, column)
    a, b, session_b = paired(run_a, run_b, session)
    classes = run_a.protocol.classes
    check_learned(run_b, session_b, run_b.protocol.classes.index(classes[column]))
    rows = select(a, b, column, kind, None, threshold)
    sides = (("A", PALETTE[0], a), ("B", PALETTE[1], b))
    cards = _cards(dataset, rows[:count], classes, column, threshold, *sides)
    order = PAIR_KINDS.get(kind, f"{kind} of A, {KINDS.get(kind, '').split('; ')[-1]}")
    names = names or names_of((run_a, run_b))
    heads = [
        f"{letter}: {name}, after session {s + 1}"
        for letter, name, s in zip("AB", names, (session, session_b), strict=True)
    ]
    title = f"{classes[column]}, {order}: {len(cards)} of {len(rows)} images"
    return sheet(cards, "\n".join([title, *heads, _marks(cards, classes[column], threshold)]), across=3)


def lost_images(
    run: Run,
    dataset: MultiLabelDataset | None,
    table: pd.DataFrame,
    column: int,
    since: int,
    session: int,
    threshold: float = F1_THRESHOLD,
    *,
    name: str = "",
) -> Figure:
    """The images of `lab.analysis.forgetting.lost_images` with what was said after session ``since`` and is said after
    ``session``. dataset and name: as in `gallery`."""
    classes = run.protocol.classes
    now = scores_of(run, session)
    sides = (("then", PALETTE[0], scores_of(run, since).on(now.ids)), ("now", PALETTE[1], now))
    cards = _cards(dataset, table.row, classes, column, threshold, *sides)
    title = f"{classes[column]}: then is after session {since + 1}, now after session {session + 1}"
    marks = _marks(cards, classes[column], threshold)
    return sheet(cards, "\n".join([title, name or run_name(run), marks]), across=3)


def _cards(
    dataset: MultiLabelDataset | None,
    rows: Sequence[int],
    classes: Sequence[str],
    column: int,
    threshold: float,
    *sides: Side,
) -> list[Card]:
    """A card per row of the scores, with what each side says of the image."""
    cards = []
    for row in rows:
        told = []
        for head, colour, of in sides:
            lines = said(of.scores[row], of.labels[row], classes, threshold)
            told.append(Said(lines, float(of.scores[row, column]), threshold, head, colour))
        cards.append(make_card(dataset, str(sides[-1][2].ids[row]), classes[column], told))
    return cards


def _marks(cards: Sequence[Card], name: str, threshold: float) -> str:
    what = "✓ predicted and there   ✗ predicted, not there   ○ there, not predicted"
    if any(verdict == "unknown" for card in cards for told in card.said for verdict, *_ in told.lines):
        what += "   ? predicted, unknown"
    return f"bars: {name}, tick: threshold {threshold:.2f}     {what}"


def run_name(run: Run) -> str:
    return names_of([run])[0]
