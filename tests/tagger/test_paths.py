"""Relative paths are meant from home in every command, whatever the folder it is typed in."""

import shutil

import numpy as np
import pytest
from conftest import write_coco

from krt_core.cli import main
from krt_core.tagger.photos import find
from krt_core.tagger.tagger import Tagger

pytest_plugins = ("tag_world",)


@pytest.fixture
def away(mine, photos, tmp_path, monkeypatch):
    """A run and photos in home, by their relative names; the user is in another folder."""
    run = mine("ridge", model__freeze="first")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    return f"outputs/{run.folder.name}"


@pytest.mark.parametrize("words, made", [
    ("predict RUN photos --csv new/t.csv", ["new/t.csv"]),
    ("predict RUN photos/*.png --json new/t.json", ["new/t.json"]),
    pytest.param("export RUN new/m.pt2", ["new/m.pt2", "new/m.pt2.md"], marks=pytest.mark.exports),
    ("report RUN --csv new/t.csv --html new/r.html --latex new/t.tex", ["new/t.csv", "new/r.html", "new/t.tex"]),
    ("report RUN --beside table.csv", []),
    ("methods ridge --csv new/m.csv --json new/m.json", ["new/m.csv", "new/m.json"]),
    ("inspect RUN/session_00/model.safetensors", []),
    ("extend RUN march --folder new/run dataset=coco", ["new/run/DONE"]),
    ("data digits --root new/digits", ["new/digits/annotations"]),
])  # fmt: skip
def test_a_command_reads_and_writes_from_home(away, tmp_path, words, made, capsys):
    if "march" in words:
        write_coco(tmp_path / "march", train=30, test=12, seed=5)
    if "--beside" in words:
        assert main(["report", away, "--csv", "table.csv"]) == 0
    assert main(words.replace("RUN", away).split()) == 0, capsys.readouterr().err
    assert all((tmp_path / name).exists() for name in made) and not list((tmp_path / "away").iterdir())


def test_photos_keep_the_names_that_were_typed(away, tmp_path, capsys):
    assert main(["predict", away, "photos/*.png", "photos/deep"]) == 0
    names = [line.rsplit("  ", 1)[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["photos/a.png", "photos/c [1].png", "photos/deep/d.png"]
    tagger = Tagger(away)
    whole, named = tagger([tmp_path / "photos" / "a.png", "photos/a.png"])
    np.testing.assert_array_equal(whole.scores, named.scores)


def test_where_a_shell_completes_names_it_is_said_from_where_they_are_meant(away, tmp_path, capsys):
    shutil.copy(tmp_path / "photos" / "a.png", tmp_path / "away" / "mine.png")
    assert main(["predict", away, "mine.png"]) == 2
    assert f"mine.png: there is no such file or folder in {tmp_path}, from where relative" in capsys.readouterr().err
    assert [str(path) for path in find([tmp_path / "away"]).photos] == [str(tmp_path / "away" / "mine.png")]


def test_help_says_so(capsys):
    for command in ([], ["predict"], ["extend"], ["export"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "meant from the workbench's home" in " ".join(capsys.readouterr().out.split())


def test_a_search_takes_its_earlier_trials_from_home(tmp_path, monkeypatch):
    from krt_core.lab.bench.search import recorded_trials

    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    (tmp_path / "trials.csv").write_text("run,average_mAP,last_mAP\n")
    assert recorded_trials("trials.csv") == {}
