"""``krt predict``: what is found, read, named and written, and what is said of the rest."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tag_world import calibrate, own_photos

from krt_core.cli import main
from krt_core.tagger.photos import find
from krt_core.tagger.tagger import Tagger

pytest_plugins = ("tag_world",)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_has_a_row_a_photo(mine, tmp_path, capsys):
    run = mine()
    calibrate(run)
    paths, _ = own_photos(run)
    assert main(["predict", str(run.folder), str(paths[0].parent), "--csv", str(tmp_path / "t.csv")]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "t.csv")] and not said.err
    head, *rows = table(tmp_path / "t.csv")
    classes = list(run.protocol.classes)
    assert head == ["path", "tags", *classes] and sorted(row[0] for row in rows) == sorted(map(str, paths))
    tagger = Tagger(run)
    for path, tags, *probabilities in rows:
        wanted = tagger(path)
        assert tags.split("|") == list(wanted.named) or (not tags and not wanted.named)
        np.testing.assert_allclose(np.array(probabilities, float), [wanted[name] for name in classes], atol=1e-5)


def test_top_has_a_row_for_each_of_the_most_probable(mine, tmp_path, photos):
    run = mine()
    file = tmp_path / "t.csv"
    assert main(["predict", str(run.folder), str(photos / "a.png"), "--top", "3", "--csv", str(file)]) == 0
    head, *rows = table(file)
    assert head == ["path", "rank", "tag", "probability", "threshold", "named"]
    wanted = Tagger(run)(photos / "a.png")
    assert [row[1:3] for row in rows] == [[str(i + 1), wanted.names[i]] for i in range(3)]
    assert [row[5] == "1" for row in rows] == [name in wanted.named for name in wanted.names[:3]]


def test_json_is_a_list_of_objects(trained, tmp_path, photos):
    run, file = trained("ridge"), tmp_path / "new" / "t.json"
    assert main(["predict", str(run.folder), str(photos / "a.png"), str(photos / "b.JPG"), "--json", str(file)]) == 0
    first, second = json.loads(file.read_text())
    assert first["path"].endswith("a.png") and set(first["probabilities"]) == set(run.protocol.classes)
    assert second["tags"] == list(Tagger(run)(photos / "b.JPG").named)
    assert main(["predict", str(run.folder), str(photos / "a.png"), "--json", str(file), "--top", "1"]) == 0
    assert len(json.loads(file.read_text())[0]["probabilities"]) == 1


def test_a_table_is_printed(trained, photos, capsys):
    run = trained("ridge")
    assert main(["predict", str(run.folder), str(photos / "a.png"), "--threshold", "0", "--session", "1"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith(str(photos / "a.png")) and all(name in line for name in run.protocol.classes[:2])
    assert main(["predict", str(run.folder), str(photos / "a.png"), "--threshold", "1", "--top", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith(")")  # not named


def test_what_cannot_be_read_is_listed_at_the_end(trained, tmp_path, photos, capsys):
    run, file = trained("ridge"), tmp_path / "t.csv"
    (photos / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    names = [str(photos), str(photos / "a.png"), str(photos / "gone.jpg"), "--csv", str(file)]
    assert main(["predict", str(run.folder), *names]) == 0
    said = capsys.readouterr().err.splitlines()
    assert sorted(os.path.basename(row[0]) for row in table(file)[1:]) == ["a.png", "b.JPG", "c [1].png", "d.png"]
    assert said[0] == "left out, as no images by their names: 1"
    assert said[1] == "named more than once, and tagged once: 1"
    assert said[2].startswith("not tagged:") and "gone.jpg: there is no such file" in said[2]
    assert "broken.jpg cannot be read" in said[3] and "annotations" not in said[3]
    assert "HEIC photo: save it as JPEG" in said[4] and len(said) == 5
    assert main(["predict", str(run.folder), str(photos / "broken.jpg"), "--csv", str(file)]) == 2
    assert len(table(file)) == 1


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["*.png"], ["a.png", "c [1].png"]),
        (["**/*.png"], ["a.png", "c [1].png", "deep/d.png"]),
        (["c [1].png"], ["c [1].png"]),  # a name that could be a pattern is a name
        (["[ab].*"], ["a.png", "b.JPG"]),
        (["d*"], ["deep/d.png"]),  # a folder by a pattern
        (["deep", "deep/d.png", "./deep/../deep/d.png"], ["deep/d.png"]),
        (["link"], ["link/d.png"]),
    ],
)
def test_photos_are_found_by_name_folder_and_pattern(photos, monkeypatch, names, found):
    monkeypatch.setenv("KRT_HOME", str(photos))
    if names == ["link"]:
        (photos / "link").symlink_to(photos / "deep")
        (photos / "deep" / "round").symlink_to(photos / "deep")  # a circle ends
    assert [str(path) for path in find(names).photos] == found


def test_nothing_found_is_an_error_that_names_what_was_looked_for(trained, tmp_path, capsys):
    run = str(trained("ridge").folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    for name, words in (
        (str(tmp_path / "empty"), "empty: the folder holds no image (looked for .jpg, .jpeg"),
        (str(tmp_path / "nowhere"), "nowhere: there is no such file or folder."),
        (str(tmp_path / "*.jpg"), "*.jpg: there is no such file or folder, and no file is named by this pattern"),
        ("a\0b", "there is no such file"),
    ):
        assert main(["predict", run, name]) == 2
        said = capsys.readouterr()
        assert words in said.err and not said.out


def test_a_place_that_cannot_be_written_is_said_first(trained, tmp_path, photos, capsys, monkeypatch):
    monkeypatch.setattr("krt_core.tagger.tagger.Tagger.stream", None)  # would be an error of another kind
    run = str(trained("ridge").folder)
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "t.csv"):
        assert main(["predict", run, str(photos), "--csv", str(place)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    assert main(["predict", run, str(photos), "--csv", "a.csv", "--json", "a.json"]) == 2
    assert "choose one" in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(trained, tmp_path, photos, monkeypatch):
    run, file = trained("ridge"), tmp_path / "t.csv"
    file.write_text("old")

    def broken(self, images, evidence=False):
        yield from [Tagger.__call__(self, str(photos / "a.png")) for _ in ()]
        raise KeyboardInterrupt

    monkeypatch.setattr("krt_core.tagger.tagger.Tagger.stream", broken)
    assert main(["predict", str(run.folder), str(photos), "--csv", str(file)]) == 130
    assert file.read_text() == "old" and not list(tmp_path.glob(".*"))


def test_what_a_run_cannot_do_is_one_line(trained, mine, tmp_path, photos, capsys):
    run = mine()
    for arguments, words in (
        ([str(tmp_path), str(photos)], "no run folder"),
        ([str(run.folder), str(photos), "--session", "3"], "has no session 3: finished are 1 to 2"),
        ([str(run.folder), str(photos), "--threshold", "much"], "calibrated"),
        ([str(run.folder), str(photos), "--device", "cuda:9"], "cuda:9"),
    ):
        assert main(["predict", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and len(said.strip().splitlines()) == 1
    (run.session_folder(1) / "state.json").unlink()
    assert main(["predict", str(run.folder), str(photos / "a.png")]) == 0
    assert "not finished: it has 1 of 2 sessions" in capsys.readouterr().err


def test_a_leak_is_in_the_files(mine, tmp_path, photos, capsys):
    run = mine()
    environment = json.loads((run.folder / "environment.json").read_text())
    for start in (environment, *environment["starts"]):
        start["weights"] = {"leak": "it had seen COCO"}
    run.write_json("environment.json", environment)
    file, photo = tmp_path / "t.csv", str(photos / "a.png")
    assert main(["predict", str(run.folder), photo, "--csv", str(file)]) == 0
    assert "LEAK: it had seen COCO" in capsys.readouterr().err
    assert table(file)[0][-1] == "leak" and table(file)[1][-1] == "it had seen COCO"
    assert main(["predict", str(run.folder), photo, "--json", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())[0]["leak"] == "it had seen COCO"


def test_names_that_are_no_text_can_be_tagged(trained, tmp_path, photos):
    place = os.path.join(os.fsencode(photos), b"caf\xe9.png")
    os.rename(os.fsencode(photos / "a.png"), place)
    done = subprocess.run(
        [sys.executable, "-m", "krt_core.cli", "predict", str(trained("ridge").folder), place, "--csv", "t.csv"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in (tmp_path / "t.csv").read_text()
