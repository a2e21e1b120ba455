"""What pseudo labels restore, counted against the true labels that the session hides.

The numbers are those of the threshold search: the old model's scores of the session's training images, without
augmentation, as it was when the session began. In training the same old model labels each *augmented* image anew with
the same threshold, so what the loss saw differs a little from epoch to epoch. The truth comes from the data set; the
training never sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ...data import MultiLabelDataset
from ...errors import DataError, RunError, did_you_mean
from ...memory import memory_of
from ...protocol import session_view
from ...runs.folder import Run
from .datasets import opened_once

GRID = 200  # thresholds of `PseudoLabels.curve`
KINDS = {  # of all old classes together
    "right": "only right labels, the most certain first",
    "wrong": "a wrong label, the most certain first",
    "missed": "a label missed, the least certain first",
    "unknown": "a label of which nobody knows whether it is right, the most certain first",
}
KINDS_OF_ONE = {  # of one class: the labels of the others do not matter
    "right": "its label is right, the most certain first",
    "wrong": "its label is wrong, the most certain first",
    "missed": "its label is missed, the least certain first",
    "unknown": "it has the label, and nobody knows whether that is right, the most certain first",
}
NOBODY = "Nobody has annotated these images with old classes: which of their pseudo labels are right is not known."


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo labels of one session: n images, as often as the session shows them (its own first, then the replayed
    exemplars), and the C_old classes learned before, in learning order.

    rows (n,) of the training set ``dataset``; scores (n, C_old) float32; thresholds (C_old,); truth (n, C_old) bool,
    or int8 with -1 where it is unknown; visible (n, C_old) bool: labels that the session shows anyway (exemplars have
    some; of images that were added all that are annotated, absent ones too). A pseudo label on one of these changes
    nothing, and of one whose truth is unknown nobody can say whether it is right, so they count neither as given nor as
    hidden: ``unknown`` has the latter.
    """

    run: Run
    session: int
    dataset: MultiLabelDataset
    rows: np.ndarray
    own: int  # the first `own` images are the session's, the rest are exemplars
    scores: np.ndarray
    thresholds: np.ndarray
    truth: np.ndarray
    visible: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        return self.run.protocol.classes[: self.scores.shape[1]]

    @property
    def ids(self) -> np.ndarray:
        """(n,) ids of the images."""
        return self.dataset.ids[self.rows]

    @cached_property
    def judged(self) -> np.ndarray:
        """(n, C_old) where pseudo labels are counted."""
        return ~self.visible & (self.truth >= 0)

    @cached_property
    def hidden(self) -> np.ndarray:
        """(n, C_old) labels to be restored: true, and not shown."""
        return (self.truth > 0) & self.judged

    @cached_property
    def given(self) -> np.ndarray:
        """(n, C_old) labels that they add. On an exemplar they may overrule a class that it shows as absent, as in
        training."""
        return (self.scores > self.thresholds) & self.judged

    @cached_property
    def right(self) -> np.ndarray:
        return self.given & self.hidden

    @cached_property
    def wrong(self) -> np.ndarray:
        return self.given & ~self.hidden

    @cached_property
    def missed(self) -> np.ndarray:
        return self.hidden & ~self.given

    @cached_property
    def unknown(self) -> np.ndarray:
        """(n, C_old) labels that they add where nobody knows the truth."""
        return (self.scores > self.thresholds) & ~self.visible & (self.truth < 0)

    def per_class(self) -> pd.DataFrame:
        """A line per old class: class, learned (its session, from 1), threshold, hidden, given, right, and precision,
        recall and F1 in percent, NaN where undefined."""
        counts = np.stack([part.sum(axis=0) for part in (self.hidden, self.given, self.right)])
        learned = self.run.first_session[: len(self.classes)] + 1
        head = {"class": self.classes, "learned": learned, "threshold": self.thresholds.astype(float)}
        return pd.DataFrame({**head, **_counted(counts)})

    def images(self, kind: str, column: int | None = None) -> np.ndarray:
        """Places (k,) among the n images of one of `KINDS`, in its order; for one old class, or for any.

        For one class, the labels of the others do not matter. Raises RunError for an unknown kind.
        """
        if kind not in KINDS:
            raise RunError(f"There are no images of kind {kind!r}.{did_you_mean(kind, KINDS)}")
        some = slice(None) if column is None else slice(column, column + 1)
        part = getattr(self, kind)[:, some]
        fits = part.any(axis=1)
        if kind == "right" and column is None:
            fits &= ~self.wrong.any(axis=1) & ~self.missed.any(axis=1)
        rows, sign = np.flatnonzero(fits), 1 if kind == "missed" else -1
        by = np.where(part[rows], sign * self.scores[rows, some], np.inf).min(axis=1, initial=np.inf)
        return rows[np.argsort(by, kind="stable")]

    def curve(self, column: int | None = None) -> pd.DataFrame:
        """Precision and recall (%, all labels together) had the threshold been another, from 0 in steps of 1 / `GRID`.

        column: of one old class only. Columns: threshold, precision, recall.
        """
        some = slice(None) if column is None else slice(column, column + 1)
        bins = np.minimum((self.scores[:, some] * GRID).astype(np.int64), GRID - 1)
        above = [
            np.bincount(bins[part[:, some]], minlength=GRID)[::-1].cumsum()[::-1] for part in (self.hidden, self.judged)
        ]
        table = _counted(np.stack([np.full(GRID, self.hidden[:, some].sum()), above[1], above[0]]))
        return pd.DataFrame(
            {"threshold": np.arange(GRID) / GRID, "precision": table["precision"], "recall": table["recall"]}
        )


def gives_pseudo_labels(run: Run) -> bool:
    """Has a finished session of the run recorded thresholds?"""
    last = run.finished_sessions - 1
    return last > 0 and bool(run.session_state(last).get("method", {}).get("thresholds"))


def pseudo_labels(run: Run, session: int, train_set: MultiLabelDataset | None = None) -> PseudoLabels:
    """The pseudo labels of ``session`` (from 1 on: the first has no old classes).

    train_set: None opens the one of the run's configuration and keeps what was made last. Raises RunError where the run
    gave no pseudo labels or its ahead.npz is missing, DataError where the data set is no longer the one it was trained
    on.
    """
    record = threshold_record(run, session)
    if train_set is not None:
        return _found(run, session, record, train_set)
    return _kept(str(run.folder), session, _changed(run, session))


def quality(run: Run, train_set: MultiLabelDataset | None = None, class_name: str | None = None) -> pd.DataFrame:
    """How good the pseudo labels of each session were; index: session, from 2.

    Columns: threshold (the mean where classes have their own); converged: did the search meet its band, 1 or 0, NaN
    where that is not known; per image: expected, found (what the search counted, shown labels included), hidden and
    given, NaN where nobody knows what the images hide; precision, recall and F1 in percent over all labels together
    (micro) and as means over those classes for which they are defined (macro). class_name: of one class alone, for the
    sessions in which it is old; without expected and found, which are totals over all classes, and micro and macro are
    the same. Raises as `pseudo_labels`.
    """
    lines = {}
    for session in sessions_with_old(run):
        record, old = threshold_record(run, session), run.protocol.sessions[session].start
        if class_name is not None and class_name not in run.protocol.classes[:old]:
            continue
        images, counts = _counts_of(run, session, train_set)
        line = {"threshold": record["threshold"], "converged": float(record["converged"])}
        if class_name is None:
            line |= {"expected": record["target"], "found": record["found"]}
        else:
            column = run.protocol.classes.index(class_name)
            counts = counts[:, column : column + 1]
            if record["per_class"]:
                line["threshold"] = record["per_class"][column]
                if not record["converged"]:  # the search of some class failed, of this one or of another
                    line["converged"] = float("nan")
        known = images or float("nan")
        line |= {"hidden": counts[0].sum() / known, "given": counts[1].sum() / known}
        lines[session + 1] = line | averages(counts)
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("session")


def class_quality(run: Run, train_set: MultiLabelDataset | None = None) -> dict[str, np.ndarray]:
    """precision and recall (%), each (T - 1, C_old of the last session): a row per session from the second, NaN where
    undefined or not yet learned. Raises as `pseudo_labels`."""
    sessions = sessions_with_old(run)
    width = run.protocol.sessions[sessions[-1]].start
    tables = {key: np.full((len(sessions), width), np.nan) for key in ("precision", "recall")}
    for row, session in enumerate(sessions):
        _, counts = _counts_of(run, session, train_set)
        for key, table in tables.items():
            table[row, : counts.shape[1]] = _counted(counts)[key]
    return tables


def sessions_with_old(run: Run) -> range:
    """The finished sessions that have old classes. RunError where there is none (any more)."""
    sessions = range(1, run.finished_sessions)
    if not sessions:
        raise RunError(f"{run.folder} has no finished session after the first: train it on, or choose another run.")
    return sessions


def averages(counts: np.ndarray) -> dict[str, float]:
    """precision, recall and F1 (%) as micro and macro averages; counts (3, C): hidden, given, right per class.

    Macro: the mean over the classes for which the number is defined. NaN where there is none.

    >>> averages(np.array([[4, 0], [2, 2], [1, 0]]))["precision macro"]
    25.0
    """
    per_class, together = _counted(counts), _counted(counts.sum(axis=1, keepdims=True))
    out = {}
    for key in ("precision", "recall", "F1"):
        defined = per_class[key][np.isfinite(per_class[key])]
        out[f"{key} micro"] = float(together[key][0])
        out[f"{key} macro"] = float(defined.mean()) if len(defined) else float("nan")
    return out


def threshold_record(run: Run, session: int) -> dict:
    """How the session's threshold was found, as `krt_core.dpl.ThresholdRecord` writes it. RunError where there is
    none."""
    if not session:
        raise RunError("Session 1 has no old classes to restore: choose a session from 2 on.")
    record = run.session_state(session).get("method", {}).get("thresholds", {}).get(str(session))
    if record is None:
        raise RunError(
            f"{run.folder.name} (method {run.experiment.method}) gave no pseudo labels in session {session + 1}: "
            "choose a run of method krt with krt.pseudo_labels=true."
        )
    return record


# ---- from run and data set to numbers ----


def rows_of(dataset: MultiLabelDataset, ids: Sequence[str], run: Run) -> np.ndarray:
    """Rows of the images with these ids. DataError naming the first that is not there."""
    place = {image: row for row, image in enumerate(dataset.ids.tolist())}
    ids = np.asarray(ids).tolist()
    if gone := [image for image in ids if image not in place]:
        raise DataError(
            f"Image {gone[0]!r} of {run.folder.name} is not in {dataset.name} {dataset.split} ({dataset.root}): the "
            "data set has changed since that training. Restore it, or train again in a new folder."
        )
    return np.array([place[image] for image in ids], dtype=np.int64)


def _found(run: Run, session: int, record: dict, dataset: MultiLabelDataset) -> PseudoLabels:
    _ahead_file(run, session)
    protocol, ahead = run.protocol.on(dataset), run.ahead(session - 1)
    rows = rows_of(dataset, ahead.ids, run)
    columns = [dataset.classes.index(name) for name in protocol.classes if name in dataset.classes]
    labels = dataset.truth[:, columns]
    memory, before = memory_of(run.experiment.replay), run.session_state(session - 1)
    if "memory" in before:
        memory.load_state(before["memory"])
    if run.experiment.data.validation or run.experiment.data.added:  # its rows count those held out, or other images
        memory.renumber([rows_of(dataset, ids, run).tolist() for ids in before["exemplar_ids"]])
    stored = int(memory.images.max(initial=-1))
    view = None
    if len(columns) == len(protocol.classes) and stored < len(dataset):
        view = session_view(protocol, labels, session, memory, "session")
    if view is None or view.rows.tolist() != rows.tolist():
        raise DataError(
            f"{dataset.name} {dataset.split} ({dataset.root}) does not give session {session + 1} the images that "
            f"{run.folder.name} trained on: images or labels have changed. Restore it, or train again in a new folder."
        )
    old = slice(0, ahead.scores.shape[1])
    # Compared as the search and the training compare: in the precision of the scores.
    thresholds = np.broadcast_to(np.array(record["per_class"] or record["threshold"], ahead.scores.dtype), old.stop)
    visible = view.labels[:, old] > 0
    if protocol.arrival(session):
        visible[: view.own] = view.labels[: view.own, old] >= 0
    return PseudoLabels(run, session, dataset, rows, view.own, ahead.scores, thresholds, labels[rows, old], visible)


def _ahead_file(run: Run, session: int) -> Path:
    """Raises RunError where it is missing."""
    path = run.session_folder(session - 1) / "ahead.npz"
    if not path.is_file():
        raise RunError(
            f"{path} is missing: it holds what the old model said to the images of session {session + 1}. Copy it from "
            f"where the run was trained, or train again in a new folder."
        )
    return path


def _changed(run: Run, session: int) -> tuple[int, int]:
    """When the files were written from which the pseudo labels of a session follow."""
    state = run.session_folder(session) / "state.json"
    return _ahead_file(run, session).stat().st_mtime_ns, state.stat().st_mtime_ns


@lru_cache(maxsize=8)  # all sessions of a run; of COCO they take some 150 MB
def _kept(folder: str, session: int, changed: tuple[int, int]) -> PseudoLabels:
    run = Run(folder)
    return _found(run, session, threshold_record(run, session), opened_once(run.experiment.data, "train"))


def _counts_of(run: Run, session: int, train_set: MultiLabelDataset | None) -> tuple[int, np.ndarray]:
    if train_set is not None:
        return _counts(pseudo_labels(run, session, train_set))
    threshold_record(run, session)  # so that a run without any is named as such, whatever files it has
    return _kept_counts(str(run.folder), session, _changed(run, session))


@lru_cache(maxsize=512)
def _kept_counts(folder: str, session: int, changed: tuple[int, int]) -> tuple[int, np.ndarray]:
    return _counts(_kept(folder, session, changed))


def _counts(found: PseudoLabels) -> tuple[int, np.ndarray]:
    """Number of images, 0 where nobody knows what they hide; hidden, given and right labels per class: (3, C_old)."""
    return len(found.rows) * bool(found.judged.any()), np.stack(
        [part.sum(axis=0) for part in (found.hidden, found.given, found.right)]
    )


def _counted(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts (3, C) of hidden, given and right labels with what follows from them, in percent."""
    hidden, given, right = counts
    return {
        "hidden": hidden,
        "given": given,
        "right": right,
        "precision": _percent(right, given),
        "recall": _percent(right, hidden),
        "F1": _percent(2 * right, given + hidden),
    }


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)
