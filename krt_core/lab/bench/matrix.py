"""From a matrix in YAML to jobs with stable names."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ...config import Experiment, kind_of, load_experiments, parse_yaml, preset_names
from ...errors import ConfigError, did_you_mean
from ...machine.home import resolve
from ...options import LISTED, STRICT, Count, Names, Number, Seed, is_dotted, short_name
from ...presets import merge, nested
from ...presets.checking import convert
from ...presets.reading import read_text
from .notebooks import check_parameters, parameters_of
from .search import Contest, Recorded, Search, Setting, recorded_trials

TRAINING = "02_train_sessions"
AXES = ("presets", "methods", "seeds", "class_orders", "overrides")


@dataclass(frozen=True, config=STRICT)
class Slurm:
    """What each run asks of Slurm; empty or 0: the cluster's default."""

    partition: str = ""
    minutes: Number = 720  # a run that needs longer is requeued and goes on
    gpus: Count = 1
    cpus_per_run: Number = 8
    memory_gb: Annotated[float, Field(ge=0)] = 0
    at_once: Number = 64  # tasks of the job array that may run at the same time
    requeues: Count = 20  # how often the time limit may requeue a run
    options: dict = field(default_factory=dict)  # further sbatch options, such as {"account": "lab"}


@dataclass(frozen=True, config=STRICT)
class Matrix:
    """Every combination of presets, methods, seeds, class orders and overrides is a run."""

    presets: Names  # shipped names, or YAML files beside the matrix
    methods: Names = ("krt",)  # a method, and what to change for it: "krt replay.per_class=20"
    seeds: Annotated[tuple[Seed, ...], LISTED] = (0,)
    class_orders: Annotated[tuple[Seed | None, ...], LISTED] = (None,)  # null: alphabetical; a number: that shuffle
    overrides: Annotated[tuple[dict, ...], LISTED] = ()  # variants of every run; one: a change to all
    also: Annotated[tuple[Any, ...], LISTED] = ()  # more combinations: any of the five keys above
    folder: str = ""  # where everything goes; empty: outputs/<name of the matrix>
    analysis: Names = ("03_forgetting_analysis", "04_attention_maps")  # notebooks for each group of runs
    gpus_per_run: Number = 1  # more: its processes share every batch; without GPUs each is a share of the cores
    workers: Count = 0  # runs at once on a machine without GPUs; 0: one per core
    time_limit: str = ""  # of each run, such as 90m or 12h; empty: none
    launch: Literal["local", "slurm"] = "local"
    slurm: Slurm = Slurm()
    search: Search | None = None  # choose settings on validation images first
    trials: str = ""  # a trials.csv of the same search, made elsewhere: what stands in it is not tried again
    only: Names = ()  # of the runs these alone, by name, and no analysis; none: all


@dataclasses.dataclass(frozen=True)
class Job:
    """One notebook to be executed: the training of one run, or an analysis of the runs of one group."""

    id: str  # names its files; the same in every start
    group: str  # data set, protocol and class order: what can be analysed together
    notebook: str
    parameters: dict[str, Any]
    run_folder: str = ""  # training only
    needs: tuple[str, ...] = ()  # ids of the trainings an analysis reads
    experiment: Experiment | None = field(default=None, compare=False)
    trial: bool = False  # of a setting, on validation images

    @property
    def trains(self) -> bool:
        return bool(self.run_folder)


def matrix_names() -> list[str]:
    files = resources.files("krt_core.lab.bench.matrices").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".yaml"))


def load_matrix(source: str | Path, **changes: Any) -> Matrix:
    """Read a matrix (a shipped name or a YAML file). ConfigError names what is wrong. changes: keys to set; None is
    left out."""
    path = Path(source)
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        content, place = parse_yaml(read_text(path), str(path)), path.resolve().parent
    elif str(source) in matrix_names():
        place = Path(str(resources.files("krt_core.lab.bench.matrices")))
        content = parse_yaml(read_text(place / f"{path.stem}.yaml"), f"matrix {path.stem}")
    else:
        hint = " (a YAML file ends in .yaml)" if path.is_file() else did_you_mean(path.stem, matrix_names())
        raise ConfigError(f"There is no matrix file {source} and no shipped matrix of that name.{hint}")
    content.update({key: value for key, value in changes.items() if value is not None})
    if "presets" not in content:
        raise ConfigError(f"{source}: a matrix needs the key presets, such as presets: [digits_demo].")
    also = content.pop("also", None) or []
    if not isinstance(also, list) or not all(isinstance(block, dict) for block in also):
        raise ConfigError(
            f"{source}: also must be a list of combinations, such as also: [{{methods: [joint]}}], found {also!r}."
        )
    for block in also:
        for key in block.keys() - AXES:
            raise ConfigError(f"{source}: also cannot change {key!r}.{did_you_mean(key, AXES)}")
    if content.get("search") is not None:
        content["search"] = convert(Search, content["search"], "search", str(source))
    blocks = [_block({**content, **block}, place, str(source)) for block in ({}, *also)]
    if blocks[0].search:
        blocks[0].search.check([method for block in blocks for method in block.methods], str(source))
    return replace(blocks[0], also=tuple(blocks[1:]), folder=str(resolve(blocks[0].folder or f"outputs/{path.stem}")))


def _block(content: dict[str, Any], place: Path, source: str) -> Matrix:
    """One block of a matrix, checked, with presets that can be found from anywhere."""
    if isinstance(content.get("overrides"), dict):
        content["overrides"] = [content["overrides"]]
    if content.get("launch") == "torchrun" or {"nnodes", "rendezvous"} & content.keys():
        raise ConfigError(
            f"{source}: launch: torchrun, nnodes and rendezvous are no more; each run has one machine. For runs that "
            "several share, start krt train --nnodes N --rendezvous HOST:PORT on each of them (docs/benchmark.md)."
        )
    matrix = convert(Matrix, content, "", source)
    seconds_of(matrix.time_limit, f"{source}: time_limit")
    return replace(matrix, presets=tuple(_preset(preset, place, source) for preset in matrix.presets))


def _preset(preset: str, place: Path, source: str) -> str:
    """A preset as the notebook can find it from anywhere: a shipped name or a whole path."""
    if preset in preset_names():
        return preset
    if (place / preset).is_file():
        return str(place / preset)
    raise ConfigError(f"{source}: there is no preset {preset!r}.{did_you_mean(preset, preset_names())}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a matrix comes to, as far as that is known: runs of a chosen setting are, once its trials are done."""

    jobs: list[Job]  # trainings first, trials before others
    contests: list[Contest]  # of a matrix with ``search``

    @property
    def open(self) -> list[Contest]:
        """Those whose trials are to be made and not all done."""
        return [contest for contest in self.contests if contest.asked and contest.winner is None]


def expand(matrix: Matrix) -> list[Job]:
    """Every job of a matrix that is known, trainings first."""
    return plan(matrix).jobs


def plan(matrix: Matrix) -> Plan:
    """All configurations and notebook parameters are checked here."""
    if matrix.trials and not matrix.search:
        raise ConfigError("trials says what a search has tried, and this matrix has no search: leave it out.")
    recorded = recorded_trials(matrix.trials) if matrix.trials else {}
    contests = list(_contests(matrix, recorded)) if matrix.search else []
    if matrix.only and contests:
        _ask(matrix, contests)
    if recorded and not any(job.id in recorded for contest in contests for jobs in contest.trials for job in jobs):
        raise ConfigError(f"{matrix.trials} has no trial of this matrix: leave it out to make all of them.")
    trials = [job for contest in contests if contest.asked for jobs in contest.trials for job in jobs]
    trials = [job for job in trials if job.id not in recorded]
    runs = [job for contest in contests for job in final_runs(matrix, contest)]
    if not matrix.search:
        runs = [job for _, job in runs_by_variant(matrix)]
    jobs: dict[str, Job] = {}
    for job in (*trials, *runs):
        if job.trial or not matrix.only or job.id in matrix.only:
            jobs.setdefault(job.id, job)
    made = Plan(list(jobs.values()), contests)
    for name in matrix.only:
        if name not in jobs and not made.open:
            hint = did_you_mean(name, [job.id for job in runs])
            raise ConfigError(f"The matrix has no run {name!r}.{hint} --dry-run lists all that it has.")
    if not made.open and not matrix.only:  # an analysis is of all methods
        made.jobs.extend(_analyses(matrix, [job for job in made.jobs if not job.trial]))
    for notebook in sorted({job.notebook for job in made.jobs}):
        first = next(job for job in made.jobs if job.notebook == notebook)
        check_parameters(notebook, first.parameters)
    return made


def _ask(matrix: Matrix, contests: list[Contest]) -> None:
    """Of single runs the trials of their own methods alone: whose trials' names begin as theirs. ConfigError for a run
    that none of them can come to."""
    begins = [
        _begin(contest.trials[0][0] if contest.trials else next(final_runs(matrix, contest))) for contest in contests
    ]
    for name in matrix.only:
        if not name.startswith(tuple(begins)):
            hint = did_you_mean(name, begins)
            raise ConfigError(f"The matrix has no run {name!r}.{hint} --dry-run lists all that it has.")
    for contest, begin in zip(contests, begins, strict=True):
        contest.asked = any(name.startswith(begin) for name in matrix.only)


def _begin(job: Job) -> str:
    return f"{job.experiment.name}-{short_name(job.experiment.method)}-"


def runs_by_variant(matrix: Matrix) -> Iterator[tuple[dict, Job]]:
    """Every run of a matrix without a search, with the variant of the overrides that it is of; a run that two variants
    come to stands there twice."""
    for combination in _combinations(matrix):
        yield combination[3], _training(matrix, *combination)


def _training(
    matrix: Matrix, preset: str, seed: int, order: int | None, changes: dict, method: str, trial: bool = False
) -> Job:
    changes = {**changes, **({} if order is None else {"protocol.order_seed": order})}
    (experiment,) = load_experiments(preset, [method], [seed], changes)
    if experiment.train.batch_size < matrix.gpus_per_run:
        raise ConfigError(f"gpus_per_run must not be more than train.batch_size of {preset}.")
    group = ("trials/" if trial else "") + _group(experiment)
    folder, name = Path(matrix.folder) / group, experiment.run_name()
    run_folder = folder / "runs" / name
    parameters = {
        "preset": preset, "methods": [method], "seeds": [seed], "overrides": changes, "folder": str(folder),
        "figures": str(run_folder / "figures"), "processes": matrix.gpus_per_run,
    }  # fmt: skip
    return Job(name, group, TRAINING, parameters, str(run_folder), (), experiment, trial)


# ---- settings that are searched for ----


def _contests(matrix: Matrix, recorded: dict[str, Recorded]) -> Iterator[Contest]:
    """One for each method on each preset with each variant of the overrides, whatever seeds and class orders."""
    entries: dict[str, dict[tuple, None]] = {}
    for preset, seed, order, changes, method in _combinations(matrix):
        entry = json.dumps([preset, changes, method], sort_keys=True)
        entries.setdefault(entry, {})[preset, seed, order, method] = None
    for entry, runs in entries.items():
        changes = json.loads(entry)[1]
        (preset, _, order, method), *_ = runs
        replicates = [(seed, order) for _, seed, order, _ in runs]
        yield Contest(
            preset,
            method,
            matrix.search,
            *_trials(matrix, preset, order, changes, method),
            replicates,
            changes,
            recorded,
        )


def _trials(
    matrix: Matrix, preset: str, order: int | None, changes: dict, method: str
) -> tuple[list[Setting], list[list[Job]]]:
    """The settings that a method tries and, of each, a job per seed, on the first class order. ConfigError for a grid
    that is too large; settings that come to the same experiment are one."""
    search = matrix.search
    held_out = {"data.validation": search.validation, "data.test": "validation"}
    found: dict[str, tuple[Setting, list[Job]]] = {}
    for setting in search.settings(method):
        with_it = _merged(changes, setting, held_out)
        jobs = [_training(matrix, preset, seed, order, with_it, method, trial=True) for seed in search.seeds]
        data = jobs[0].experiment.data
        if (data.validation, data.test) != (search.validation, "validation"):
            raise ConfigError(f"{method}: search says data.validation and data.test, the method must not.")
        if jobs[0].experiment.train.report == "best":
            raise ConfigError(
                f"{method}: train.report=best would choose the winner's epochs on the test images: set it to last, and "
                "search for train.epochs."
            )
        found.setdefault(jobs[0].experiment.hash(), (setting, jobs))
        if len(found) > search.trials:
            raise ConfigError(
                f"The grid of {method} has more than search.trials = {search.trials} settings: allow more, shorten the "
                "lists, or draw from them (search.how: random)."
            )
        if len(found) == search.trials and search.how == "random":
            break
    settings, trials = (list(part) for part in zip(*found.values(), strict=True))
    return settings, trials if len(settings) > 1 else []


def final_runs(matrix: Matrix, contest: Contest) -> Iterator[Job]:
    """Those of the setting that has won: on all training images, and on the test images once after each session."""
    if contest.chosen is None:
        return
    whole = {"data.validation": 0.0, "data.test": "test", "train.evaluate_every": 0}
    changes = _merged(contest.changes, contest.chosen, whole)
    for seed, order in contest.replicates:
        yield _training(matrix, contest.preset, seed, order, changes, contest.method)


def _merged(*changes: dict) -> dict[str, Any]:
    """Changes on top of one another, in sections, whether they came dotted or not."""
    return functools.reduce(merge, (nested(one, kind_of) for one in changes), {})


def _combinations(matrix: Matrix) -> Iterator[tuple]:
    """(preset, seed, class order, changes, method) of every run, some perhaps twice."""
    for block in (matrix, *matrix.also):
        yield from itertools.product(
            block.presets, block.seeds, block.class_orders, block.overrides or ({},), block.methods
        )


def _group(experiment: Experiment) -> str:
    data, protocol = experiment.data, experiment.protocol
    name = data.dataset if data.dataset not in ("coco", "voc", "table") else Path(data.root).name or data.dataset
    if is_dotted(name):
        name = Path(data.root).name or short_name(name)
    order = "" if protocol.order_name == "alphabetical" else f"-order{protocol.order_name.split()[-1]}"
    return f"{name}-{protocol.name.replace(' ', '-')}{order}"


def _analyses(matrix: Matrix, trainings: list[Job]) -> Iterator[Job]:
    for group in dict.fromkeys(job.group for job in trainings):
        members = [job for job in trainings if job.group == group]
        for notebook in matrix.analysis:
            method = parameters_of(notebook).get("method")  # one that looks at a method's runs needs one of them
            needed = method[1] if method else None
            if needed is None or any(job.experiment.method == needed for job in members):
                parameters = {"folder": str(Path(matrix.folder) / group)}
                yield Job(f"{group}-{notebook}", group, notebook, parameters, "", tuple(job.id for job in members))


def seconds_of(limit: str, where: str = "time limit") -> float | None:
    """Seconds of a duration such as 45s, 90m, 12h or 2d; None for an empty one."""
    if not limit:
        return None
    factors = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = limit[:-1], limit[-1]
    try:
        seconds = float(number) * factors[unit]
    except (ValueError, KeyError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{where} must be a number above 0 with s, m, h or d, such as 90m; found {limit!r}.")
    return seconds
