"""`krt methods`: every shipped method says where it is from and what it keeps; bytes are those it really keeps."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from krt_core.cli import main
from krt_core.config import load_experiment
from krt_core.errors import ConfigError
from krt_core.lab.report.methods import about, kept, methods_table, shown
from krt_core.methods import METHODS, Method
from krt_core.options import options_of
from krt_core.session import train
from krt_core.weights.convert import network_of

MYLAB = Path(__file__).parents[2] / "methods" / "mylab.py"


@pytest.fixture
def mylab(home, monkeypatch):
    shutil.copy(MYLAB, home)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(MYLAB.parent)])
    monkeypatch.delitem(sys.modules, "mylab", raising=False)
    options_of.cache_clear()
    yield home
    options_of.cache_clear()


@pytest.mark.parametrize("name", list(METHODS))
def test_every_shipped_method_says_its_paper_and_what_it_stores(name):
    """Who stores nothing need not say so; that it is true is counted below."""
    assert METHODS[name].paper and METHODS[name].stores and not Method.paper


def test_what_a_method_needs_is_read_from_it(mylab):
    table = methods_table(["krt", "pod", "finetune", "joint", "ridge", "mylab:Ridge"]).set_index("method")
    assert table.old_network.tolist() == [True, True, False, False, False, False]
    assert table.maps.tolist() == [True, False, False, False, False, False]
    assert table.learns_by.tolist() == ["gradients"] * 4 + ["closed form"] * 2
    assert table["head"]["krt"] == "ica or linear" and table["head"]["pod"] == "linear or ica"
    assert table["head"].tolist()[-2:] == ["linear", "linear or ica"]
    assert table.replays.tolist() == ["used", "used", "used", "", "used", "used"]
    assert table.unknown_labels.tolist() == [True] * 5 + [False]
    assert methods_table(["er", "icarl", "derpp"]).replays.tolist() == ["needed"] * 3
    assert table.sees["joint"] == "all labels at once: a bound"
    assert table.oracle.tolist() == ["krt.oracle=true", *[""] * 5]


@pytest.mark.parametrize("name", list(METHODS))
def test_who_keeps_nothing_says_so_and_who_says_so_keeps_nothing(tiny, home, name):
    (home / "tiny.yaml").write_text(tiny(model__expand=0).to_yaml())
    found = kept(name, str(home / "tiny.yaml"), ["replay.per_class=3", "replay.selection=herding"])
    assert not found["note"], found["note"]
    assert found["exemplars"] == (12 if METHODS[name].replays else 0)
    assert bool(found["state_bytes"]) <= (METHODS[name].stores != "nothing")


@pytest.mark.parametrize(("name", "changes"), [("ridge", []), ("l3a", ["l3a.expand=24"]), ("krt", [])])
def test_bytes_on_made_up_images_are_those_of_a_run(tiny, home, name, changes):
    (home / "tiny.yaml").write_text(tiny().to_yaml())
    run = train(load_experiment(home / "tiny.yaml", [f"method={name}", *changes]), show="none")
    found = kept(name, str(home / "tiny.yaml"), changes)
    assert found["state_bytes"] == run.summary["method_bytes"] and found["exemplars"] == 0
    assert bool(found["state_bytes"]) == (name != "krt")


def test_a_preset_whose_data_are_elsewhere_has_the_classes_of_its_papers(home):
    changes = ["model.backbone=test_resnet", "model.stride=8"]
    found = kept("ridge", "coco_sub", changes)
    assert found["note"] == "its data are not at hand: counted with 80 classes"
    d = network_of(load_experiment("coco_sub", changes)).backbone.channels
    assert found["state_bytes"] == 8 * (80 + d * 80 + 1 + d + d * d + 25)  # Σy, Σφyᵀ, n, Σφ, Σφφᵀ, errors by λ


def test_a_preset_that_a_method_refuses_says_why(tiny, home):
    (home / "tiny.yaml").write_text(tiny().to_yaml())
    found = kept("krt", str(home / "tiny.yaml"), ["krt.head=linear"])
    assert found["state_bytes"] is None and "krt.head=linear has no tokens" in found["note"]
    table = methods_table(["krt"], str(home / "tiny.yaml"), ["krt.head=linear"])
    assert "refused" in shown(table, 160)


def test_the_command_prints_and_writes(mylab, tiny, capsys, tmp_path):
    assert main(["methods", "--csv", str(tmp_path / "m.csv"), "--json", str(tmp_path / "m.json")]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in METHODS) and "ORACLE with" in out
    lines = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert [line["method"] for line in lines] == list(METHODS)
    assert [line["paper"] for line in json.loads((tmp_path / "m.json").read_text())] == [x["paper"] for x in lines]
    (mylab / "tiny.yaml").write_text(tiny().to_yaml())
    assert main(["methods", "mylab:Ridge", "--preset", str(mylab / "tiny.yaml"), "replay.per_class=1"]) == 0
    out = capsys.readouterr().out
    assert "Ridge" in out and "+ 4 images" in out and "finetune" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods", "rigde"], "no method 'rigde'. Did you mean 'ridge'"),
        (["methods", "mylab:Rigde"], "no 'Rigde'. Did you mean 'Ridge'"),
        (["methods", "seed=1"], "name it with --preset"),
        (["methods", "--preset", "digits_dmo"], "Did you mean 'digits_demo'"),
    ],
)
def test_what_is_not_there_is_named(mylab, capsys, arguments, words):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_about_needs_no_data():
    assert about("l3a")["place"] == "l3a"
    with pytest.raises(ConfigError, match="no method"):
        methods_table(["nothing"])
