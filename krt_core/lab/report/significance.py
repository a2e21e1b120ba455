"""Which differences between methods hold: paired tests over the seeds and class orders that all of them have.

A class order moves the average mAP of all methods alike, by more than the methods differ. So runs are compared in
pairs: two methods at the same seed and class order. Demšar, *Statistical Comparisons of Classifiers over Multiple Data
Sets*, JMLR 2006, for ranks and their picture; Holm, *A simple sequentially rejective multiple test procedure*, 1979.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...errors import RunError
from ...options import METHODS, short_name
from ...runs.folder import Run
from .definitions import LEVEL
from .paper_table import HIGHER_IS_BETTER, Line, Setting, settings_of

COLUMNS = ("better", "worse", "difference", "std", "pairs", "p", "p_holm")


def replicates(lines: Sequence[Line], key: str = "average_mAP") -> pd.DataFrame:
    """A metric by replicate (class order, seed) and label, for the replicates that all lines have. Where a line has
    several runs of one replicate, their mean."""
    columns = {}
    for line in lines:
        found: dict[tuple[str, int], list[float]] = {}
        for place, value in zip(line.places, line.told(key), strict=True):
            if np.isfinite(value):
                found.setdefault(place, []).append(value)
        columns[line.label] = pd.Series({place: float(np.mean(values)) for place, values in found.items()}, dtype=float)
    return pd.DataFrame(columns).dropna()


def paired_tests(values: pd.DataFrame, higher_is_better: bool = True) -> pd.DataFrame:
    """A line for each pair of columns of ``values`` (replicates, methods): which is better on average and by how much
    (mean ± std of the differences, n − 1), the p value of the two-sided paired t test, and `holm`'s of all pairs.

    p is NaN for fewer than two replicates, and where all differences are the same number, which leaves a t test nothing
    to measure them by; for no difference at all it is 1.
    """
    from scipy.stats import ttest_1samp

    rows = []
    for first, second in itertools.combinations(values.columns, 2):
        difference = (values[first] - values[second]).to_numpy()
        if (difference.mean() > 0) != higher_is_better and difference.any():
            first, second, difference = second, first, -difference
        spread = difference.std(ddof=1) if len(difference) > 1 else np.nan
        p = np.nan
        if not difference.any() and len(difference) > 1:
            p = 1.0
        elif spread > 1e-9:
            p = float(ttest_1samp(difference, 0.0).pvalue)
        rows.append((first, second, float(difference.mean()), spread, len(difference), p, np.nan))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["p_holm"] = holm(table["p"].to_numpy(dtype=float))
    return table.sort_values("p_holm", kind="stable", ignore_index=True)


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected for their number, NaN left out: the smallest times n, the next times n − 1, ..., rising."""
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        out[i] = highest
    return out


def mean_ranks(values: pd.DataFrame, higher_is_better: bool = True) -> pd.Series:
    """Mean rank of each column over the replicates, 1 is best; ties share the mean of their ranks."""
    return values.rank(axis=1, ascending=not higher_is_better).mean().sort_values(kind="stable")


def not_told_apart(tests: pd.DataFrame, ranks: pd.Series, level: float = LEVEL) -> list[tuple[str, str]]:
    """The longest stretches of neighbours by rank, first and last of each, of which no pair differs at ``level``."""
    names = list(ranks.index)
    apart = {frozenset((t.better, t.worse)) for t in tests.itertuples() if t.p_holm < level}
    stretches: list[tuple[int, int]] = []
    for start in range(len(names)):
        stop = start
        while stop + 1 < len(names) and all(
            frozenset((names[i], names[stop + 1])) not in apart for i in range(start, stop + 1)
        ):
            stop += 1
        if stop > start and not any(a <= start and stop <= b for a, b in stretches):
            stretches.append((start, stop))
    return [(names[a], names[b]) for a, b in stretches]


@dataclass(frozen=True)
class Judged:
    """A metric of several methods at the seeds and class orders that all of them have, and what tests say of it."""

    values: pd.DataFrame  # see `replicates`
    tests: pd.DataFrame  # see `paired_tests`
    ranks: pd.Series  # see `mean_ranks`
    stretches: list[tuple[str, str]]  # see `not_told_apart`


def judged(lines: Sequence[Line], key: str) -> Judged | None:
    """None where there are no two methods with two replicates in common. Lines of one run, and those whose first
    weights had seen the labels, are not compared; upper bounds are."""
    values = replicates([line for line in lines if len(line.places) > 1 and not line.leak], key)
    if len(values.columns) < 2 or len(values) < 2:
        return None
    tests, ranks = paired_tests(values, HIGHER_IS_BETTER[key]), mean_ranks(values, HIGHER_IS_BETTER[key])
    return Judged(values, tests, ranks, not_told_apart(tests, ranks))


def against_best(setting: Setting, key: str, found: Judged | None) -> tuple[str, list[dict[str, str]]]:
    """Our best method by a metric, upper bounds aside, and the cells of a row for each other method: how far it is
    behind, and whether that holds. Without rows where nothing was compared."""
    if found is None:
        return "", []
    means = found.values.mean()
    ours = means.drop([line.label for line in setting.lines if line.bound], errors="ignore")
    ours = ours if len(ours) else means
    best = ours.idxmax() if HIGHER_IS_BETTER[key] else ours.idxmin()
    rows = []
    for test in found.tests.itertuples():
        if best in (test.better, test.worse):
            ahead, other = (1, test.worse) if test.better == best else (-1, test.better)
            spread = f" ± {test.std:.1f}" if np.isfinite(test.std) else ""
            difference = f"{ahead * test.difference:.1f}".replace("-", "−") + spread
            rows.append(
                {"against": other, "ahead by": difference, "pairs": str(test.pairs), "p": _p(test.p),
                 "p, Holm": _p(test.p_holm)}
            )  # fmt: skip
    return best, rows


def _p(value: float) -> str:
    return "–" if not np.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def table_of_tests(settings: Sequence[Setting], keys: Sequence[str] = ("average_mAP", "last_mAP")) -> pd.DataFrame:
    """`paired_tests` of every setting and metric in one table."""
    parts = [pd.DataFrame(columns=["dataset", "protocol", "metric", *COLUMNS])]
    for setting, key in itertools.product(settings, keys):
        if found := judged(setting.lines, key):
            parts.append(found.tests.assign(dataset=setting.dataset, protocol=setting.protocol, metric=key))
    return pd.concat(parts[1:] or parts, ignore_index=True)[list(parts[0])]


# ---- a factor of a study ----


def at_a_level(runs: Sequence[Run], key: str, level: str = "") -> pd.DataFrame:
    """A metric by replicate and method, of runs that differ in nothing but method and replicate: at one level of a
    factor. RunError where they are of several settings, or of two forms of one method."""
    settings = settings_of(runs)
    if len(settings) != 1:
        names = ", ".join(setting.name for setting in settings)
        raise RunError(f"{level}: runs of one level must have one setting, found {names or 'none'}.")
    lines = {line.label: short_name(line.runs[0].experiment.method) for line in settings[0].lines}
    if len(set(lines.values())) < len(lines):
        raise RunError(f"{level}: a method stands there in two forms ({'; '.join(lines)}): take one.")
    values = replicates(settings[0].lines, key).rename(columns=lines)
    return values[sorted(values, key=lambda name: list(METHODS).index(name) if name in METHODS else len(METHODS))]


def factor_table(
    levels: Mapping[str, Sequence[Run]], keys: Sequence[str] = ("average_mAP", "last_mAP"),
    against: Sequence[str] = ("masked", "joint"),
) -> pd.DataFrame:  # fmt: skip
    """What a factor does to each method: a line for each metric, level and method, with mean and std over the seeds and
    class orders that all methods of the level have (``pairs``), and, for each method of ``against`` that is there, the
    difference from it as ``over_masked``: its mean, ``_std`` (n − 1), and the p value of the paired t test, Holm's over
    the levels.

    levels: name of a level → its runs, see `at_a_level`.
    """
    rows = []
    for key, (level, runs) in itertools.product(keys, levels.items()):
        values = at_a_level(runs, key, level)
        for method in values if len(values) else ():
            own = values[method]
            row = {"metric": key, "level": level, "method": method, "mean": own.mean(), "std": own.std(ddof=1)}
            row["pairs"] = len(own)
            for other in (name for name in against if name in values and name != method):
                (test,) = paired_tests(values[[method, other]]).itertuples()
                difference = own - values[other]
                row |= {f"over_{other}": difference.mean(), f"over_{other}_std": difference.std(ddof=1)}
                row[f"over_{other}_p"] = test.p
            rows.append(row)
    table = pd.DataFrame(rows)
    for column in [f"over_{other}_p" for other in against if f"over_{other}_p" in table]:
        table[column] = table.groupby(["metric", "method"])[column].transform(lambda p: holm(p.to_numpy(dtype=float)))
    return table
