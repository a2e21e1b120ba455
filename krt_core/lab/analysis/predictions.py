"""Which test images a model is right and wrong on, class by class, and where two models differ.

Everything is read from the test scores in run folders. Sessions count from 0, columns are in learning order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from ...data.grown import arrived_of
from ...errors import RunError, did_you_mean
from ...metrics import F1_THRESHOLD
from ...runs.folder import Run, Scores
from ..report import setting_of

KINDS = {  # of one run: what is shown first
    "false positives": "not the class, but predicted; highest score first",
    "misses": "the class, but not predicted; lowest score first",
    "hits": "the class, and predicted; highest score first",
}
PAIR_KINDS = {  # of two runs
    "differ most": "the scores differ most, with or without the class",
    "higher in A": "the class, with a higher score in A",
    "higher in B": "the class, with a higher score in B",
}


def top_images(
    scores: np.ndarray,
    labels: np.ndarray,
    column: int,
    kind: str,
    count: int | None = None,
    threshold: float = F1_THRESHOLD,
) -> np.ndarray:
    """Rows (k,) of the images of one `KINDS`, at most ``count`` of them (None: all); ties keep the order of the images.

    scores (n, C seen) probabilities, labels (n, at least C seen) as of `Scores`; predicted means score > threshold. An
    image of which the class is unknown is of no kind. Raises RunError for an unknown kind.
    """
    score, shown, absent = scores[:, column], labels[:, column] > 0, labels[:, column] == 0
    predicted = score > threshold
    if kind not in KINDS:
        raise RunError(f"There are no images of kind {kind!r}.{did_you_mean(kind, KINDS)}")
    wanted = {"false positives": absent & predicted, "misses": shown & ~predicted, "hits": shown & predicted}[kind]
    rows = np.flatnonzero(wanted)
    rising = score[rows] if kind == "misses" else -score[rows]
    return rows[np.argsort(rising, kind="stable")][:count]


def disagreements(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    labels: np.ndarray,
    column: int,
    count: int | None = None,
    kind: str = "differ most",
) -> np.ndarray:
    """Rows (k,) of the images on whose score for the class two runs differ most, the greatest difference first.

    scores_a and scores_b (n, C seen) of the same images; kind: one of `PAIR_KINDS`. Raises RunError for an unknown one.
    """
    if kind not in PAIR_KINDS:
        raise RunError(f"There are no images of kind {kind!r}.{did_you_mean(kind, PAIR_KINDS)}")
    more = scores_a[:, column].astype(float) - scores_b[:, column]
    if kind == "differ most":
        rows, by = np.flatnonzero(np.abs(more) > 0), np.abs(more)  # NaN, not learned, is no difference
    else:
        by = more if kind == "higher in A" else -more
        rows = np.flatnonzero((labels[:, column] > 0) & (by > 0))
    return rows[np.argsort(-by[rows], kind="stable")][:count]


def select(
    a: Scores,
    b: Scores | None,
    column: int,
    kind: str,
    count: int | None = None,
    threshold: float = F1_THRESHOLD,
) -> np.ndarray:
    """Rows (k,) by a kind of one run, which is a, or of two. RunError where two are needed and b is None."""
    if kind not in PAIR_KINDS:
        return top_images(a.scores, a.labels, column, kind, count, threshold)
    if b is None:
        raise RunError(f"Images that {kind!r} need two runs: choose a second one, or one of {', '.join(KINDS)}.")
    return disagreements(a.scores, b.scores, a.labels, column, count, kind)


def scores_of(run: Run, session: int) -> Scores:
    """`Run.scores`, kept for the next question."""
    path = run.session_folder(session) / "scores.npz"
    return _kept(run, session, path.stat().st_mtime_ns) if path.is_file() else run.scores(session)


@lru_cache(maxsize=16)  # of COCO's size each holds 16 MB
def _kept(run: Run, session: int, changed: int) -> Scores:
    return run.scores(session)


def paired(run_a: Run, run_b: Run, session: int) -> tuple[Scores, Scores, int]:
    """The scores of two runs for the same images, both with the columns of run_a, and the session of run_b.

    A run that has fewer sessions is taken after its last. Classes that run_b has not learned by then are NaN. Of a run
    that has grown and the one it grew from it is the images on which both were tested. Raises RunError where the runs
    were not tested on the same images with the same labels: ids alone may be mere numbers.
    """
    session_b = min(session, run_b.finished_sessions - 1)
    a, b = scores_of(run_a, session), scores_of(run_b, session_b)
    names_a, names_b = run_a.protocol.classes, run_b.protocol.classes
    if grown := run_a.experiment.data.added != run_b.experiment.data.added:
        a, b = _of_both(a, b)
    comparable = grown or set(names_a) == set(names_b)
    if a is not b and not (comparable and _tested_alike(a, b, names_a, names_b)):
        (data_a, _), (data_b, _) = setting_of(run_a), setting_of(run_b)
        raise RunError(
            f"{run_a.folder.name} ({data_a}) and {run_b.folder.name} ({data_b}) were not tested on the same images, "
            "classes and labels: choose two runs of one data set."
        )
    scores = b.scores
    if names_a != names_b or scores.shape[1] != a.scores.shape[1]:
        place = {name: column for column, name in enumerate(names_b[: scores.shape[1]])}
        scores = np.full(a.scores.shape, np.nan, np.float32)
        known = [column for column, name in enumerate(names_a[: scores.shape[1]]) if name in place]
        scores[:, known] = b.scores[:, [place[names_a[column]] for column in known]]
    return a, Scores(b.ids, scores, a.labels), session_b


def _of_both(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Those of the first data that both have: images that were added are of one of them alone."""
    ids = a.ids[np.isin(a.ids, b.ids) & (arrived_of(a.ids) == 0)]
    return a.on(ids), b.on(ids)


def _tested_alike(a: Scores, b: Scores, names_a: Sequence[str], names_b: Sequence[str]) -> bool:
    """The same images, with the same labels as far as both know them."""
    if not len(a.ids) or not np.array_equal(a.ids, b.ids):
        return False
    both = [name for name in names_a if name in names_b]
    of_a, of_b = (y[:, [names.index(name) for name in both]] for y, names in ((a.labels, names_a), (b.labels, names_b)))
    return bool(both) and bool(((of_a == of_b) | (of_a < 0) | (of_b < 0)).all())


def check_learned(run: Run, session: int, column: int) -> None:
    """RunError where the class of a column is still to come after ``session``."""
    sessions = run.protocol.sessions
    if column >= sessions[session].stop:
        own = next(s.index for s in sessions if s.start <= column < s.stop)
        raise RunError(
            f"{run.protocol.classes[column]} is learned in session {own + 1} of {run.folder.name}: after session "
            f"{session + 1} it has no score yet."
        )


def said(
    scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], threshold: float = F1_THRESHOLD
) -> list[tuple[str, str, float]]:
    """What is said of one image: (verdict, class, score), predicted ones first, each by falling score.

    scores (C seen,), labels (at least C seen,). Verdicts: "right" (predicted and there), "wrong" (predicted, not
    there), "missed" (there, not predicted), "unknown" (predicted, and nobody knows). What is none of these is left out,
    and so are classes without a score (NaN).
    """
    predicted, shown = scores > threshold, labels[: len(scores)] > 0
    order = [c for c in np.argsort(-scores, kind="stable").tolist() if predicted[c] or (shown[c] and scores[c] >= 0)]
    verdict = {(True, True): "right", (True, False): "wrong", (False, True): "missed"}
    told = {c: "unknown" if labels[c] < 0 else verdict[bool(predicted[c]), bool(shown[c])] for c in order}
    return [(word, classes[c], float(scores[c])) for c, word in told.items()]


def images_table(
    run: Run, session: int, column: int, rows: np.ndarray, threshold: float = F1_THRESHOLD, run_b: Run | None = None
) -> pd.DataFrame:
    """A line per image: its id, the score for the class, the classes it shows, those that are predicted with their
    scores; with ``run_b`` score and predictions of both and the difference."""
    classes = run.protocol.classes
    if run_b is None:
        a, sides = scores_of(run, session), {"": scores_of(run, session)}
    else:
        a, b, _ = paired(run, run_b, session)
        sides = {" A": a, " B": b}
    table = pd.DataFrame({"image": a.ids[rows].astype(str)})
    for side, scores in sides.items():
        table[f"score{side}"] = scores.scores[rows, column].astype(float)
    if run_b is not None:
        table["A − B"] = table["score A"] - table["score B"]
    table["shows"] = [", ".join(classes[c] for c in np.flatnonzero(a.labels[row] > 0)) for row in rows]
    for side, scores in sides.items():
        table[f"predicted{side}"] = [
            ", ".join(
                f"{name} {score:.2f}"
                for verdict, name, score in said(scores.scores[row], a.labels[row], classes, threshold)
                if verdict != "missed"
            )
            for row in rows
        ]
    return table
