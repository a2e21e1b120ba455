"""Metrics: numpy in, numbers out. Scores are probabilities (n, C) in learning order; every result is in percent.

Labels (n, C) are bool, or numbers: 1, 0 and, for unknown, -1. Pairs of image and class that are unknown are left out.
Formulas and sources stand in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .machine.cpu import falling_order

Sessions = Sequence[int] | np.ndarray  # (C,) the session in which each class was learned, from 0
F1_THRESHOLD = 0.8  # as published; later papers use others, so the value is stored beside every F1
BINS = 15  # of calibration errors, as in Guo et al., ICML 2017


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AP of each class: the mean, over its positives, of the precision at that positive's rank. (C,) in percent.

    Ties keep the order of the images. A class without positives counts 0.

    >>> average_precision(np.array([[0.9], [0.8], [0.1]]), np.array([[True], [False], [True]])).round(2)
    array([83.33])
    """
    columns, present = np.ascontiguousarray(scores.T), np.ascontiguousarray(labels.T)
    return np.array([precision_in_order(y[falling_order(s)]) for s, y in zip(columns, present, strict=True)])


def precision_in_order(labels: np.ndarray) -> float:
    """AP in percent of one class from its labels (n,) in falling order of the scores."""
    if labels.dtype != bool:
        labels = labels[labels >= 0] > 0
    ranks = np.flatnonzero(labels) + 1
    return float(100 * (np.arange(1, len(ranks) + 1) / ranks).mean()) if len(ranks) else 0.0


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """mAP: the mean of AP over classes."""
    return float(average_precision(scores, labels).mean())


def precision_recall_f1(
    scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray = F1_THRESHOLD
) -> dict[str, float]:
    """CP, CR, CF1 (means over classes) and OP, OR, OF1 (over all decisions) at ``scores > threshold``: one for all
    classes, or (C,) one for each.

    CF1 is the mean of the per-class F1, as in the published code; a class without true positives counts 0 in CP, CR and
    CF1. OP is NaN when nothing is predicted.
    """
    predicted, shown = (scores > threshold) & (labels >= 0), labels > 0
    true = (predicted & shown).sum(axis=0)
    named, present = predicted.sum(axis=0), shown.sum(axis=0)
    precision, recall = true / np.maximum(named, 1), true / np.maximum(present, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    op = true.sum() / named.sum() if named.sum() else float("nan")
    overall_recall = true.sum() / max(present.sum(), 1)
    of1 = 2 * true.sum() / max(named.sum() + present.sum(), 1)
    values = dict(CP=precision.mean(), CR=recall.mean(), CF1=f1.mean(), OP=op, OR=overall_recall, OF1=of1)
    return {key: float(100 * value) for key, value in values.items()}


def best_threshold(scores: np.ndarray, labels: np.ndarray, metric: str = "OF1") -> float:
    """The threshold of the highest CF1 or OF1: the lowest of the best among 200 quantiles of the scores of what these
    images show. Meant for validation images: on test images it would tell what nobody can know beforehand.

    Raises ValueError where the labels show nothing.

    >>> best_threshold(np.array([[0.9], [0.6], [0.5], [0.1]]), np.array([[True], [True], [False], [False]])) >= 0.5
    True
    """
    shown = scores[labels > 0]
    if not len(shown):
        raise ValueError("Labels that show no class have no best threshold.")
    quantiles = np.quantile(shown.astype(np.float64), np.linspace(0, 1, 200))
    candidates = np.unique(np.nextafter(quantiles.astype(np.float32), np.float32(-1)))  # the score itself must pass
    f1 = [precision_recall_f1(scores, labels, float(threshold))[metric] for threshold in candidates]
    return float(candidates[int(np.argmax(f1))])


def calibration_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Expected calibration error (C,) of each class, in points; NaN for one of which nothing is known.

    The images of a class are parted by their probability into `BINS` bins of equal mass, equal probabilities in one;
    ECE = Σ_b |bin b| / n · |share of b that shows the class − mean probability of b|. Sources: Guo et al., *On
    Calibration of Modern Neural Networks*, ICML 2017; of equal mass: Nixon et al., *Measuring Calibration in Deep
    Learning*, CVPR workshops 2019.

    >>> calibration_errors(np.array([[0.9], [0.9], [0.2], [0.2]]), np.array([[1], [0], [0], [-1]])).round(2)
    array([33.33])
    """
    pairs = zip(probabilities.T, labels.T, strict=True)
    return np.array([calibration_error(p, y) if (y >= 0).any() else np.nan for p, y in pairs])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """As `calibration_errors`, of all pairs of image and class together: arrays of any one shape."""
    said, shown, count = reliability_curve(probabilities, labels)
    return float(100 * (count * np.abs(said - shown)).sum() / count.sum())


def reliability_curve(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS, mass: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share that is right, and number of pairs of each bin that holds any: three arrays (≤ bins,).

    Arrays of any one shape; mass: bins between quantiles, so that each holds as many pairs, or else of equal width.
    A probability on an edge is of the bin below it. Raises ValueError where no label is known.
    """
    known = labels >= 0
    p, right = probabilities[known].astype(np.float64), labels[known] > 0
    if not len(p):
        raise ValueError("Labels that tell nothing have no calibration.")
    places = np.linspace(0, 1, bins + 1)
    edges = np.quantile(p, places) if mass else places
    of = np.searchsorted(edges[1:-1], p)
    count = np.bincount(of, minlength=bins)
    any_in = count > 0
    sums = np.bincount(of, p, minlength=bins), np.bincount(of, right, minlength=bins)
    said, shown = (total[any_in] / count[any_in] for total in sums)
    return said, shown, count[any_in]


def forgetting_per_class(ap: np.ndarray, first: Sessions, kind: str = "max") -> np.ndarray:
    """How much AP each class lost: (C,) points, NaN for classes of the last session.

    ap (T, C) AP after each session, first (C,) session in which a class was learned. kind "max": highest AP after any
    earlier session − last AP; "first": AP after the class's own session − last AP. Negative values are gains.
    Source: Chaudhry et al., ECCV 2018 (max); Lopez-Paz and Ranzato, NeurIPS 2017 (first: backward transfer, negated).

    >>> forgetting_per_class(np.array([[80., np.nan], [85., 60.], [70., 50.]]), [0, 1])
    array([15., 10.])
    """
    if kind not in ("max", "first"):
        raise ValueError(f"kind must be 'max' or 'first', not {kind!r}")
    last = len(ap) - 1
    lost = np.full(ap.shape[1], np.nan)
    for column, session in enumerate(first):
        if session < last:
            best = ap[session:last, column].max() if kind == "max" else ap[session, column]
            lost[column] = best - ap[last, column]
    return lost


def task_table(ap: np.ndarray, first: Sessions) -> np.ndarray:
    """(T, C) AP of classes → (T, T) mean AP of the classes of each task (column) after each session (row)."""
    own = np.asarray(first)
    return np.stack([ap[:, own == task].mean(axis=1) for task in range(own.max() + 1)], axis=1)


def forgetting(tables: dict[str, np.ndarray], first: Sessions) -> dict[str, float]:
    """Every named definition of forgetting, in points.

    tables: pool name → AP table (T, C), NaN where a class was not yet learned. The pools are ``fixed`` (the whole test
    set after every session), ``seen`` (test images with a class seen so far, a pool that grows) and ``own`` (test
    images with a class of the scored class's own session). Keys read ``<max|first>_<class|task>_<pool>``; the
    headline is ``max_class_fixed``. Empty for a single session.
    """
    out = {}
    tasks = np.arange(np.max(first) + 1)
    for pool, ap in tables.items():
        if len(ap) < 2:
            continue
        for kind in ("max", "first"):
            out[f"{kind}_class_{pool}"] = float(np.nanmean(forgetting_per_class(ap, first, kind)))
            out[f"{kind}_task_{pool}"] = float(np.nanmean(forgetting_per_class(task_table(ap, first), tasks, kind)))
    return out
