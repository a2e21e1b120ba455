"""KRT workbench: multi-label class-incremental learning (MLCIL) with Knowledge Restore and Transfer.

What notebooks and scripts need is under one name, and each part is loaded when it is first used::

    import krt_core as krt

    run = krt.train("digits_demo", {"train.epochs": 3}, method="finetune")  # starts, continues, or finds it done
    run.curve()  # mAP (%) of the seen classes after each session
    krt.figures.session_curves(krt.find_runs("outputs"))

Letters used in every shape comment of this package:

====  ==========================================================
n     images of a data set
B     images of a batch
C     classes seen so far (columns run in learning order)
T     sessions so far
N     patches of the feature map (7 x 7 = 49 at 224 px)
D     embedding width of the tokens
H     attention heads
hd    width of one head, D / H
====  ==========================================================

Paper: Dong et al., *Knowledge Restore and Transfer for Multi-label Class-Incremental Learning*, ICCV 2023.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `_PLACES` says, for editors and type checkers
    from collections.abc import Mapping
    from pathlib import Path

    from .config import Data
    from .config import Experiment as Experiment
    from .config import load_experiment as load_experiment
    from .config import load_experiments as load_experiments
    from .config import preset_names as preset_names
    from .data import MultiLabelDataset
    from .data.dataset import Split
    from .errors import KRTError as KRTError
    from .lab import analysis as analysis
    from .lab import figures as figures
    from .lab import report as report
    from .lab.explorers.attention import AttentionExplorer as AttentionExplorer
    from .lab.explorers.forgetting import ForgettingExplorer as ForgettingExplorer
    from .lab.explorers.gallery import Gallery as Gallery
    from .lab.explorers.leaderboard import Leaderboard as Leaderboard
    from .lab.explorers.pseudo_labels import LabelInspector as LabelInspector
    from .lab.explorers.tag_editor import TagEditor as TagEditor
    from .lab.explorers.training import TrainingView as TrainingView
    from .methods.base import Method as Method
    from .protocol import Protocol
    from .runs.folder import Run as Run
    from .runs.folder import find_runs as find_runs
    from .tagger.extend import extend as extend
    from .tagger.tagger import Tagger as Tagger
    from .weights.convert import load_model as load_model

__version__ = "0.2.0"

_PLACES = {  # name → module, or module:attribute
    "Experiment": "config:Experiment",
    "load_experiment": "config:load_experiment",
    "load_experiments": "config:load_experiments",
    "preset_names": "config:preset_names",
    "KRTError": "errors:KRTError",
    "Method": "methods.base:Method",
    "Run": "runs.folder:Run",
    "find_runs": "runs.folder:find_runs",
    "load_model": "weights.convert:load_model",
    "extend": "tagger.extend:extend",
    "Tagger": "tagger.tagger:Tagger",
    "analysis": "lab.analysis",
    "figures": "lab.figures",
    "report": "lab.report",
    "AttentionExplorer": "lab.explorers.attention:AttentionExplorer",
    "ForgettingExplorer": "lab.explorers.forgetting:ForgettingExplorer",
    "Gallery": "lab.explorers.gallery:Gallery",
    "Leaderboard": "lab.explorers.leaderboard:Leaderboard",
    "LabelInspector": "lab.explorers.pseudo_labels:LabelInspector",
    "TagEditor": "lab.explorers.tag_editor:TagEditor",
    "TrainingView": "lab.explorers.training:TrainingView",
}
__all__ = ["__version__", "open_dataset", "open_protocol", "open_run", "train", *_PLACES]


def train(
    experiment: str | Path | Experiment,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    processes: int = 1,
    device: str | None = None,
    show: str = "auto",
    allow_leak: bool = False,
    max_steps: int | None = None,
    **keys: Any,
) -> Run:
    """Run (or continue) an experiment and return its run folder; what is done already is not repeated.

    experiment: one that is loaded, or a preset (a shipped name or a YAML file) with changes: ``overrides`` as for
    `load_experiment`, and whole keys as keywords (``method="pod", seed=1, replay={"per_class": 20}``). folder: default
    ``outputs/<run name>``. processes: that share every batch, one GPU each. show: "auto", "bar", "lines" or "none";
    several processes always show lines. allow_leak, max_steps: see `krt_core.session.train`. Raises ConfigError,
    DataError, CheckpointError or RunError.

    >>> krt.train("digits_demo", method="finetune", seed=1).folder.name
    'digits_demo-finetune-026cd363-s1'
    """
    from .launch import launch

    experiment = _experiment(experiment, {**(overrides or {}), **keys})
    return launch(experiment, folder, processes, device, allow_leak, max_steps, show=show)


def open_run(folder: str | Path) -> Run:
    """The run in a folder, relative ones from the workbench's home; RunError where there is none.

    >>> krt.open_run("outputs/demo/runs/digits_demo-krt-a5afaa25-s0").curve().round(1)
    array([96.9, 71.4, 62. , 57.3, 52.3])
    """
    from .runs.folder import Run

    return Run(folder)


def open_dataset(source: str | Path | Experiment | Run | Data, split: Split = "train") -> MultiLabelDataset:
    """Images and labels, "train", "test" or "validation", of a preset, an experiment, its section ``data``, or a run.

    Raises DataError, with the command that gets the data, where they are not there.

    >>> krt.open_dataset("digits_demo", "test").labels.shape  # (n, C)
    (600, 10)
    """
    from .config import Data
    from .data import open_dataset

    return open_dataset(source if isinstance(source, Data) else _experiment(source).data, split)


def open_protocol(source: str | Path | Experiment | Run) -> Protocol:
    """Which classes arrive when, by a preset or an experiment and the classes of its training set, or as a run had it
    (for the columns and images of that set, where it is there).

    >>> [krt.open_protocol("digits_demo").class_names(t) for t in (0, 1)]
    [('eight', 'five'), ('four', 'nine')]
    """
    import contextlib

    from .errors import DataError
    from .protocol import protocol_of
    from .runs.folder import Run

    if isinstance(source, Run):
        with contextlib.suppress(DataError):
            return source.protocol.on(open_dataset(source))
        return source.protocol
    experiment = _experiment(source)
    dataset = open_dataset(experiment)
    return protocol_of(experiment.protocol, dataset.classes, len(experiment.data.added)).on(dataset)


def _experiment(source: str | Path | Experiment | Run, changes: Mapping[str, Any] | None = None) -> Experiment:
    from pathlib import Path

    from .config import Experiment, load_experiment
    from .errors import ConfigError

    if isinstance(source, (str, Path)):
        return load_experiment(source, changes)
    if changes:
        raise ConfigError(f"A loaded experiment is trained as it is: give {', '.join(changes)} to krt.load_experiment.")
    return source if isinstance(source, Experiment) else source.experiment


if not TYPE_CHECKING:  # for which a name that is not listed above is an error

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            from .errors import did_you_mean

            raise AttributeError(f"{__name__} has no {name!r}.{did_you_mean(name, __all__)}")
        module, _, attribute = _PLACES[name].partition(":")
        found = import_module(f"{__name__}.{module}")
        globals()[name] = getattr(found, attribute) if attribute else found
        return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
