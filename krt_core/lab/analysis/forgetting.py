"""What was forgotten, in detail: which classes fell in a session, what is said in their place, on which images.

Everything is computed from the test scores in run folders. Sessions count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ...errors import RunError
from ...metrics import F1_THRESHOLD
from ...runs.folder import Run


def falls(runs: Sequence[Run], session: int, pool: str = "fixed") -> pd.DataFrame:
    """How the AP of every class learned before ``session`` changed in it, the greatest fall first.

    runs: replicates with one class order, over which is averaged. pool: as in `runs.summary.ap_tables`. Columns: class,
    learned (its session, from 1), before, after (% AP), change and its std over runs (points; NaN for one run), column
    (in learning order). Raises RunError where the session is the first or not there, or the runs have different class
    orders.
    """
    protocol = runs[0].protocol
    if session >= min(run.finished_sessions for run in runs):
        raise RunError(f"Session {session + 1} is not there: nothing can be forgotten in it.")
    if session < 1:
        raise RunError("Nothing can be forgotten in the first session.")
    if any(run.protocol.classes != protocol.classes for run in runs):
        raise RunError("These runs learned their classes in different orders: look at them one by one.")
    known = protocol.sessions[session].start
    tables = np.stack([run.ap_tables[pool][:, :known] for run in runs])  # (R, T, known)
    before, after = tables[:, session - 1], tables[:, session]
    change = after - before
    spread = change.std(axis=0, ddof=1) if len(runs) > 1 else np.full(known, np.nan)
    table = pd.DataFrame(
        {
            "class": protocol.classes[:known],
            "learned": runs[0].first_session[:known] + 1,
            "before": before.mean(axis=0),
            "after": after.mean(axis=0),
            "change": change.mean(axis=0),
            "std": spread,
            "column": np.arange(known),
        }
    )
    return table.sort_values("change", kind="stable", ignore_index=True)


def confusions(run: Run, column: int, session: int) -> pd.DataFrame:
    """Why may a class have fallen in ``session``? A line for each class that the session taught, most suspect first.

    With c the fallen class, n the new one, and means over test images, in points of probability:
    *together*: share of the images with c that show n too (%);
    *said instead*: score of n after the session on images with c but not n, above its score on images with neither;
    *change with it*, *change without it*: of c's score in the session on images with c, with and without n;
    *change on it alone*: of c's score on images with n but not c, where a rise is a false alarm.
    NaN where there is no such image; images of which c or n is unknown are left out, and of the changes those that
    were not there before. Raises RunError if the class was not learned before.
    """
    taught = run.protocol.sessions[session]
    if column >= taught.start or not session:
        raise RunError(f"{run.protocol.classes[column]} was not learned before session {session + 1}.")
    now = run.scores(session)
    then = run.scores(session - 1).on(now.ids).scores
    n, c = now.labels[:, taught.columns], now.labels[:, column, None]  # (n, new), (n, 1)
    score, shift = 100 * now.scores[:, taught.columns], 100 * (now.scores[:, column] - then[:, column])
    with_both, with_c = (c > 0) & (n > 0), (c > 0) & (n == 0)
    with_n, neither = (c == 0) & (n > 0), (c == 0) & (n == 0)
    table = pd.DataFrame(
        {
            "new class": run.protocol.classes[taught.columns],
            "said instead": _means(score, with_c) - _means(score, neither),
            "together": _means(100.0 * (n > 0), with_both | with_c),
            "change with it": _means(shift[:, None], with_both),
            "change without it": _means(shift[:, None], with_c),
            "change on it alone": _means(shift[:, None], with_n),
            "column": np.arange(taught.start, taught.stop),
        }
    )
    return table.sort_values("said instead", ascending=False, kind="stable", ignore_index=True)


def _means(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(k,) means of values (n, k) or (n, 1), where they are known, over the chosen (n, k); NaN where there is none."""
    chosen = chosen & np.isfinite(values)
    count = chosen.sum(axis=0)
    total = np.where(chosen, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def lost_images(run: Run, column: int, session: int | None = None, threshold: float = F1_THRESHOLD) -> pd.DataFrame:
    """Test images that show a class, right once and wrong now, those whose score fell most first.

    Right once: score > threshold after the class's own session; wrong now: score ≤ threshold after ``session`` (None:
    the last finished); images that came later are none of them. Columns: image (id), before, now (probabilities), fall,
    row (of the scores).
    """
    session = run.finished_sessions - 1 if session is None else session
    now = run.scores(session)
    then = run.scores(int(run.first_session[column])).on(now.ids)
    before, after = then.scores[:, column], now.scores[:, column]
    rows = np.flatnonzero((now.labels[:, column] > 0) & (before > threshold) & (after <= threshold))
    rows = rows[np.argsort(after[rows] - before[rows], kind="stable")]
    table = {"image": now.ids[rows].astype(str), "before": before[rows], "now": after[rows]}
    return pd.DataFrame({**table, "fall": before[rows] - after[rows], "row": rows})
