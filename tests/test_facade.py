"""`import krt_core as krt`: what it offers, and that nothing heavy is loaded before it is used."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import krt_core as krt
from krt_core.data import MultiLabelDataset
from krt_core.errors import ConfigError, RunError

PACKAGE = Path(krt.__file__).parent
HEAVY = ("torch", "pandas", "matplotlib", "numpy", "ipywidgets", "yaml")
SECONDS = 0.4  # of CPU, with Python's own start


def cost(code: str) -> tuple[float, list[str]]:
    """CPU seconds of a fresh Python with this code, and what heavy it has loaded."""
    code += (
        f"\nimport json, sys, time\nprint(json.dumps([time.process_time(), [m for m in {HEAVY} if m in sys.modules]]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import krt_core as krt; krt.__version__; dir(krt); krt.train; krt.open_run",
        "import krt_core.cli\ntry: krt_core.cli.main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_loaded_before_it_is_used(code):
    seconds, loaded = cost(code)
    assert not loaded and seconds < SECONDS


def test_every_name_is_there_and_known_to_editors():
    for name in krt.__all__:
        assert getattr(krt, name) is not None
    assert set(krt.__all__) <= set(dir(krt))
    typed = next(node for node in ast.parse(Path(krt.__file__).read_text()).body if isinstance(node, ast.If))
    for_editors = {
        alias.asname: f"{node.module}.{alias.name}" if node.module == "lab" else f"{node.module}:{alias.name}"
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert for_editors == krt._PLACES


def test_no_name_is_also_a_module_which_would_take_its_place_when_imported():
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(krt.__all__)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="Did you mean 'load_experiment'"):
        krt.load_experimnt  # noqa: B018
    assert not hasattr(krt, "load_experimnt")


def test_train_and_open(tiny, home, capsys):
    run = krt.train(tiny(method="finetune", train__epochs=1), show="none")
    assert run.done and capsys.readouterr().out == ""
    opened = krt.open_run(run.folder)
    assert opened.summary == run.summary and [found.folder for found in krt.find_runs("outputs")] == [run.folder]
    assert krt.open_protocol(run.experiment) == krt.open_protocol(opened) == run.protocol
    for source in (run, run.experiment, run.experiment.data, run.folder / "experiment.yaml"):
        dataset = krt.open_dataset(source, "test")
        assert isinstance(dataset, MultiLabelDataset) and dataset.split == "test"
    assert krt.open_dataset(run).split == "train"
    assert len(krt.load_model(run, 1).session_sizes) == 2
    with pytest.raises(RunError, match=r"no experiment\.yaml"):
        krt.open_run("nowhere")


def test_train_takes_a_preset_with_changes(tiny, home):
    (home / "mine.yaml").write_text(tiny().to_yaml())
    run = krt.train(
        home / "mine.yaml",
        {"train.epochs": 1},
        method="finetune",
        seed=3,
        folder="outputs/one",
        show="none",
        max_steps=1,
    )
    assert run.folder == home / "outputs/one" and not run.done and len(run.epochs) == 2
    assert (run.experiment.method, run.experiment.seed, run.experiment.train.epochs) == ("finetune", 3, 1)
    with pytest.raises(ConfigError, match=r"give seed to krt\.load_experiment"):
        krt.train(run.experiment, seed=4)
    with pytest.raises(ConfigError, match="Did you mean"):
        krt.train("digits_dmo")
