"""Settings chosen on validation images: what ``search:`` in a matrix says, what is tried, and which setting has won."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from ...errors import ConfigError, KRTError, did_you_mean
from ...machine.home import resolve
from ...options import LISTED, STRICT, Number, Seed

if TYPE_CHECKING:
    import numpy as np

Setting = dict[str, Any]  # dotted key → value
THRESHOLDS = ("CF1_threshold", "OF1_threshold")  # of a trial: the best on its validation images
SET_BY_IT = ("name", "method", "seed", "data.validation", "data.test", "protocol.")  # by matrix and search


@dataclass(frozen=True, config=STRICT)
class Search:
    """Every method tries settings on validation images; the best is trained on all training images and tested."""

    how: Literal["grid", "random"] = "grid"  # every combination of the values, or so many drawn from them
    trials: Number = 8  # settings that each method may try, the same for all
    seed: Seed = 0  # of the draws
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), LISTED] = (0,)  # of the trials; their mean counts
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of the training images that trials are tested on
    by: Literal["average_mAP", "last_mAP"] = "average_mAP"
    keys: dict = field(default_factory=dict)  # key → values, for all methods; {from: 1e-5, to: 1e-3}: log-uniform draws
    methods: dict = field(default_factory=dict)  # method → keys of its own

    def check(self, methods: Sequence[str], where: str) -> None:
        """ConfigError for a key that is the matrix' own, values that are none, and a method that is not there."""
        known = {name for method in methods for name in (method, method.split()[0])}
        for name, own in self.methods.items():
            if name not in known:
                raise ConfigError(f"{where}: search.methods: {name!r} does not run here.{did_you_mean(name, known)}")
            if not isinstance(own, dict):
                raise ConfigError(f"{where}: search.methods.{name} must be a section of keys, found {own!r}.")
        for place, keys in (("keys", self.keys), *((f"methods.{name}", own) for name, own in self.methods.items())):
            for key, values in keys.items():
                self._check(str(key), values, f"{where}: search.{place}.{key}")
        if not any((self.keys, *self.methods.values())):
            raise ConfigError(f"{where}: search needs keys, such as keys: {{train.lr: [1e-4, 3e-4]}}.")

    def _check(self, key: str, values: Any, where: str) -> None:
        if any(key == own or (own.endswith(".") and key.startswith(own)) for own in SET_BY_IT):
            raise ConfigError(f"{where}: that is not searched for: the matrix and its search say it.")
        if isinstance(values, list) and values:
            return
        if not isinstance(values, dict) or values.keys() != {"from", "to"}:
            raise ConfigError(f"{where} must be a list of values, or {{from: 1e-5, to: 1e-3}}; found {values!r}.")
        if self.how == "grid":
            raise ConfigError(f"{where}: from and to need how: random; a grid takes a list of values.")
        low, high = (_number(values[end]) for end in ("from", "to"))
        if not 0 < low < high < math.inf:
            raise ConfigError(f"{where}: from must be a number above 0, and to a larger one; found {values!r}.")

    def settings(self, method: str) -> Iterator[Setting]:
        """What a method may try, in order and perhaps twice: the grid, or draws that go on for long. A key's draws hang
        on no other key, so all methods draw the same, and more trials begin with those of fewer."""
        own = self.methods.get(method.split()[0], {})
        keys = {**self.keys, **own, **self.methods.get(method, {})}
        if self.how == "grid":
            yield from (dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values()))
            return
        import numpy as np  # here, as it takes longer to load than all that `krt bench` needs to answer

        drawers = {key: np.random.default_rng([self.seed, zlib.crc32(str(key).encode())]) for key in keys}
        for _ in range(100 * self.trials):
            yield {key: _drawn(values, drawers[key]) for key, values in keys.items()}


def _number(value: Any) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-4 as text
    return math.nan


def _drawn(values: Any, rng: np.random.Generator) -> Any:
    """One of a list, or a number whose logarithm is uniform: with three digits, or whole where both ends are."""
    if isinstance(values, list):
        return values[int(rng.integers(len(values)))]
    low, high = _number(values["from"]), _number(values["to"])
    drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    return round(drawn) if all(type(end) is int for end in values.values()) else float(f"{drawn:.3g}")


class Score(NamedTuple):
    """Of one trial: what its run says on the validation images."""

    average_mAP: float
    last_mAP: float
    seconds: float


class Recorded(NamedTuple):
    """Of a trial that was made elsewhere: its score, and the best thresholds of CF1 and OF1 where they are known."""

    score: Score
    thresholds: tuple[float, float] | None


class Contest:
    """The trials of one method on one preset. trials: of each setting its jobs, one per seed; none where there is but
    one setting, and nothing to choose."""

    def __init__(
        self, preset: str, method: str, search: Search, settings: list[Setting], trials: list[list[Any]],
        replicates: list[tuple[int, int | None]], changes: Setting, recorded: dict[str, Recorded],
    ):  # fmt: skip
        self.preset, self.method, self.search, self.settings, self.trials = preset, method, search, settings, trials
        self.replicates = replicates  # seed and class order of the runs that the winner is trained in
        self.changes = changes  # to the preset, whatever the setting
        self.recorded = recorded  # trials by the id of their job; see `recorded_trials`
        self.asked = True  # are its runs to be made? Not if single runs of other methods are

    @property
    def name(self) -> str:
        variant = f" with {said(self.changes)}" if self.changes else ""
        return f"{self.method} on {Path(self.preset).stem}{variant}"

    @cached_property
    def scores(self) -> list[list[Score | None]]:
        """By setting and seed, as far as trials are done."""
        told = {name: one.score for name, one in self.recorded.items()}
        return [[told.get(job.id) or score_of(job.run_folder) for job in jobs] for jobs in self.trials]

    @cached_property
    def winner(self) -> int | None:
        """Of all settings the one with the best mean score, the quickest of equals, the first of those; None until all
        trials are done."""
        if not self.trials:
            return 0
        if not all(all(scores) for scores in self.scores):
            return None
        means = [Score(*map(statistics.fmean, zip(*scores, strict=True))) for scores in self.scores]
        return min(range(len(means)), key=lambda i: (-round(getattr(means[i], self.search.by), 6), means[i].seconds, i))

    @property
    def chosen(self) -> Setting | None:
        return None if self.winner is None else self.settings[self.winner]

    @property
    def score(self) -> float | None:
        """Of the winner on the validation images, in percent."""
        if self.winner is None or not self.trials:
            return None
        return statistics.fmean(getattr(score, self.search.by) for score in self.scores[self.winner] if score)

    @cached_property
    def thresholds(self) -> tuple[float, float] | None:
        """Of CF1 and OF1 the best ones on the validation images of the winner's trials, mean over their seeds."""
        if self.winner is None or not self.trials:
            return None
        found = [self._thresholds_of(job) for job in self.trials[self.winner]]
        if None in found:
            return None
        cf1, of1 = zip(*found, strict=True)
        return statistics.fmean(cf1), statistics.fmean(of1)

    def _thresholds_of(self, job: Any) -> tuple[float, float] | None:
        from ...runs.folder import Run

        if job.id in self.recorded:
            return self.recorded[job.id].thresholds
        with contextlib.suppress(KRTError, ValueError):  # its scores were deleted, or its images show no class
            return Run(job.run_folder).best_thresholds()
        return None

    def told(self, reasons: dict[str, str]) -> str:
        """How far it is, in words. reasons: of trials that failed, by their id."""
        asked = f"{len(self.settings)} settings" if len(self.settings) > 1 else "1 setting"
        few = f" (all it has, of {self.search.trials} allowed)" if len(self.settings) < self.search.trials else ""
        if self.chosen is not None:
            score = f", {self.search.by.replace('_', ' ')} {self.score:.2f} on validation" if self.trials else ""
            if any(job.id in self.recorded for jobs in self.trials for job in jobs):
                score += " (trials recorded elsewhere)"
            return f"{self.name}: {said(self.chosen)} chosen of {asked}{few}{score}; {len(self.replicates)} runs"
        jobs = [job for jobs in self.trials for job in jobs]
        done = sum(score is not None for scores in self.scores for score in scores)
        failed = [f"{job.id} failed ({reasons[job.id]})" for job in jobs if job.id in reasons]
        waits = f"; {', '.join(failed)}: --retry-failed starts it again" if failed else ""
        runs = f"its {len(self.replicates)} runs wait{waits}"
        return f"{self.name}: {done} of {len(jobs)} trials of {asked}{few} are done; {runs}"

    def rows(self, states: dict[str, str], folder: Path) -> Iterator[dict[str, Any]]:
        """A row for each trial; states: by the id of its job; folder: of the matrix."""
        for i, jobs in enumerate(self.trials):
            for job, score in zip(jobs, self.scores[i], strict=True):
                e = job.experiment
                found = score._asdict() if score else dict.fromkeys(Score._fields)
                chosen = i == self.winner
                unseen = "recorded" if job.id in self.recorded else "done" if score else "not made"
                thresholds = (self._thresholds_of(job) if chosen else None) or (None, None)
                yield {
                    "contest": self.name, "setting": i + 1,
                    **{key: str(value) if isinstance(value, (list, dict)) else value
                       for key, value in self.settings[i].items()},
                    "seed": e.seed, "class_order": e.protocol.order_name, "state": states.get(job.id, unseen),
                    **found, "chosen": chosen, **dict(zip(THRESHOLDS, thresholds, strict=True)),
                    "run": Path(job.run_folder).relative_to(folder).as_posix(),
                }  # fmt: skip


def recorded_trials(path: str | Path) -> dict[str, Recorded]:
    """The finished trials of a trials.csv by the names of their runs. ConfigError where it is none."""
    import pandas as pd

    try:
        table = pd.read_csv(resolve(path))
        table = table[table["average_mAP"].notna()]
        found = {}
        for _, row in table.iterrows():
            score = Score(*(float(row[key]) for key in Score._fields))
            thresholds = tuple(float(row.get(key, math.nan)) for key in THRESHOLDS)
            known = all(map(math.isfinite, thresholds))
            found[Path(row["run"]).name] = Recorded(score, thresholds if known else None)
        return found
    except OSError as error:
        raise ConfigError(f"There is no table of trials {path} ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no trials.csv of krt bench: {error}.") from None


def score_of(folder: str) -> Score | None:
    """What a finished run says; None where it is not finished."""
    from ...runs.folder import Run

    with contextlib.suppress(KRTError):
        summary = Run(folder).summary
        if summary is not None:
            return Score(*(float(summary[key]) for key in Score._fields))
    return None


def said(setting: Setting) -> str:
    """As in "train.lr=0.001, ridge.old=soft"."""
    return ", ".join(f"{key}={value}" for key, value in setting.items()) or "the preset"
