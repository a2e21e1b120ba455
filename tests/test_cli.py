import gc
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from krt_core import __version__
from krt_core.cli import main
from krt_core.config import preset_names
from krt_core.machine.loading import loading
from krt_core.session import train

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "pandas", "matplotlib", "IPython", "papermill", "nbformat"}


def test_train_report_and_inspect(tiny, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(tiny(method="finetune", train__epochs=1).to_yaml())
    for seed in (0, 1):
        assert main(["train", str(tmp_path / "mine.yaml"), f"seed={seed}"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "outputs"), "--csv", str(tmp_path / "t.csv")]) == 0
    out = capsys.readouterr().out
    assert "finetune" in out and "±" in out and "max − last" in out
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3
    run = next((tmp_path / "outputs").iterdir())
    assert main(["inspect", str(run / "session_01" / "model.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "krt-workbench" in out and "ant, bee, cat, dog" in out and "4" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits_dmo"], "Did you mean 'digits_demo'"),
        (["train", "digits_demo", "train.epoch=2"], "Did you mean 'epochs'"),
        (["data", "coco2041"], "Did you mean 'coco2014'"),
        (["report", "nowhere"], "no folder nowhere"),
        (["inspect", "nowhere.pth"], "no weights file"),
        (["train", "coco_b0c10"], "krt data coco2014"),
    ],
)
def test_errors_are_one_line_with_a_way_out(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_report_leaves_out_what_is_unfinished(tiny, tmp_path, capsys):
    train(tiny(method="finetune", train__epochs=1), show="none", max_steps=1)
    assert main(["report", str(tmp_path / "outputs")]) == 2
    assert "not finished" in capsys.readouterr().err


def test_presets_are_listed_and_shown_in_full(capsys):
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())
    assert main(["presets", "digits_demo", "train.epochs=3"]) == 0
    assert "epochs: 3" in capsys.readouterr().out


def test_digits_are_made_by_command(tmp_path, capsys):
    assert main(["data", "digits"]) == 0
    assert (tmp_path / "data/digits/annotations/instances_train2014.json").is_file()


def processor_seconds(*arguments: str) -> tuple[float, subprocess.CompletedProcess]:
    """Of Python in a process of its own, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: krt"),
        (["--help"], "run (or continue) an experiment"),
        (["--version"], f"krt {__version__}"),
        (["presets"], "digits_demo"),
        (["train", "digits_demo", "train.epoch=3"], "Did you mean 'epochs'"),
        (["bench", "digits", "--gpus-per-run", "0"], "gpus_per_run must be at least 1"),
        (["import", "voc_b0c4", "x.pth", "--set", "trian.lr=1"], "Did you mean 'train'"),
    ],
)
def test_what_needs_no_torch_answers_at_once(arguments, words):
    """Of other packages it loads those that read settings, and it takes a fraction of what PyTorch takes to load, both
    measured now: a busy machine counts more seconds for the same work."""
    said = processor_seconds("-X", "importtime", "-m", "krt_core.cli", *arguments)[1]
    loaded = set(re.findall(r"^import time:.*\|\s+(\w+)$", said.stderr, re.MULTILINE))
    assert words in said.stdout + said.stderr and not loaded & HEAVY and "krt_core" in loaded
    for _ in range(3):  # a moment in which something else took the processor does not count
        ours, torch = processor_seconds("-m", "krt_core.cli", *arguments), processor_seconds("-c", "import torch")
        if ours[0] < 0.2 * torch[0]:
            return
    pytest.fail(f"{ours[0]:.2f} s of processor time; PyTorch alone takes {torch[0]:.2f} s")


def test_a_command_leaves_without_taking_python_apart():
    """With PyTorch loaded that is a second of every run. What is registered for the end is done all the same."""
    said = processor_seconds(
        "-c",
        "import atexit, sys\n"
        "class Late:\n"
        "    def __del__(self):\n"
        "        print('taken apart')\n"
        "late = Late()\n"
        "atexit.register(print, 'registered')\n"
        "sys.argv = ['krt', 'presets']\n"
        "from krt_core.cli import main\n"
        "main()",
    )[1]
    assert said.returncode == 0 and said.stdout.endswith("\nregistered\n"), said.stderr


def test_nothing_is_looked_through_while_packages_load():
    assert gc.isenabled()
    with pytest.raises(ImportError), loading():
        assert not gc.isenabled()
        import no_such_package  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_what_a_command_loads_is_looked_through_only_at_the_end():
    said = processor_seconds(
        "-c",
        "import atexit, gc\n"
        "atexit.register(lambda: print('at the end', gc.get_freeze_count()))\n"  # the first of all is called last
        "from krt_core.machine.loading import be_command, loading\n"
        "with loading():\n"
        "    import decimal\n"
        "print(gc.get_freeze_count())\n"  # in a notebook nothing is hidden: garbage would stay with it
        "be_command()\n"
        "with loading():\n"
        "    import decimal\n"
        "print(gc.get_freeze_count())\n"  # there already
        "with loading():\n"
        "    import wave\n"
        "print(gc.get_freeze_count() > 1000)",
    )[1]
    assert said.stdout.splitlines() == ["0", "0", "True", "at the end 0"], said.stderr
