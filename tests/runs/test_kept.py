"""Folders of every version since 0.2.0 (see keep.py; test_old_run.py has one of 0.1.0): they open, are reported, tag
photos, go on and grow, and so do their exports. Folders of newer versions are named as such."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from keep import SMALL, data, photos

import krt_core as krt
from krt_core import __version__
from krt_core.cli import main
from krt_core.config import load_experiment
from krt_core.data.images import load_image
from krt_core.errors import NewerError
from krt_core.lab.analysis import compared
from krt_core.lab.bench.matrix import Job
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.report import collect, runs_table
from krt_core.runs.folder import Run, find_runs
from krt_core.session import train

KEPT = Path(__file__).with_name("kept")
VERSIONS = sorted(path.name for path in KEPT.iterdir())
PARTS = ("resume.pt", "features")  # of the interrupted variant


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def old(version, tmp_path):
    """A copy of the run, with its data where it says."""
    data(tmp_path)
    folder = tmp_path / "outputs" / "run"
    shutil.copytree(KEPT / version / "run", folder, ignore=shutil.ignore_patterns(*PARTS))
    return Run(folder)


@pytest.fixture
def grown(version, old):
    """A copy of what has grown from it."""
    folder = old.folder.with_name("grown")
    shutil.copytree(old.folder, folder)
    shutil.copytree(KEPT / version / "grown", folder, dirs_exist_ok=True)
    return Run(folder)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# ---- old ones ----


def test_it_is_done_and_the_same_experiment(old):
    experiment = load_experiment("digits_demo", SMALL)
    assert old.complete and experiment.hash() == old.experiment.hash() == old.summary["config_hash"]
    before = files_of(old.folder)
    assert train(experiment, old.folder, show="none", device="cpu").folder == old.folder
    assert files_of(old.folder) == before


def test_its_numbers_come_out_as_they_were_written(old, grown):
    for run in (old, grown):
        written = json.loads((run.folder / "DONE").read_text())
        now = run.final_summary()
        assert {k: v for k, v in now.items() if k != "OP"} == {k: v for k, v in written.items() if k != "OP"}
    assert old.calibration(1).fitted.any() and old.calibration(1).curves
    assert grown.protocol.class_names(2) == ("dog",) and grown.session_state(0)["inherited"]


def test_they_are_reported_and_explored(old, grown, tmp_path, capsys):
    runs, left_out = collect([old.folder.parent])
    assert [run.folder for run in runs] == [old.folder, grown.folder] and not left_out
    assert len(runs_table(runs)) == 2
    assert main(["report", str(old.folder.parent), "--html", str(tmp_path / "report.html")]) == 0
    assert "left out" not in capsys.readouterr().err
    assert f"{old.summary['average_mAP']:.1f}" in (tmp_path / "report.html").read_text()
    explorers = [krt.ForgettingExplorer("outputs"), krt.AttentionExplorer("outputs"), krt.Gallery("outputs")]
    for explorer in [*explorers, krt.LabelInspector("outputs"), krt.Leaderboard("outputs")]:
        for title in explorer.views:
            shown, problem = explorer.result(title)
            fine = (shown and not problem) or problem.startswith("Choose a second run")  # which no setting here has
            assert fine, (type(explorer).__name__, title, problem)


def test_they_tag_photos_as_they_did(old, grown, tmp_path, capsys):
    stored, test = old.scores(1), krt.open_dataset(old, "test")
    row_of = {str(name): row for row, name in enumerate(test.ids)}
    paths = [test.path(row_of[str(name)]) for name in stored.ids]
    tagger = krt.Tagger(old)
    found = [[tags.scores[tags.names.index(name)] for name in tagger.classes] for tags in tagger(paths)]
    np.testing.assert_allclose(found, stored.scores, atol=1e-5)
    assert len(krt.Tagger(grown)(paths[0]).scores) == 4
    assert main(["predict", str(grown.folder), str(paths[0])]) == 0
    assert paths[0].name in capsys.readouterr().out


@pytest.mark.parametrize("where", ["between sessions", "inside a session"])
def test_it_goes_on_to_the_same_end(version, old, where):
    kept = Run(shutil.copytree(old.folder, old.folder.with_name("kept")))
    (old.folder / "DONE").unlink()
    shutil.rmtree(old.session_folder(1))
    if where == "inside a session":
        shutil.copy(KEPT / version / "run" / "resume.pt", old.folder)
        shutil.copytree(KEPT / version / "run" / "features", old.folder / "features")
    run = train(load_experiment("digits_demo", SMALL), old.folder, show="none", device="cpu")
    said = (run.folder / "log.txt").read_text().rsplit("continuing at ", 1)[1]
    assert said.startswith("session 2, epoch 2" if where == "inside a session" else "session 2, epoch 1")
    found = compared(kept, run)
    assert not found.lacking and found.table["exemplars"].max() == 0
    assert found.table["scores"].max() < 1e-3 and found.table["loss"].max() < 1e-3, found.words()


def test_they_grow(old, grown, tmp_path):
    new = photos(tmp_path)
    four = krt.extend(old, new, folder="outputs/again", show="none", device="cpu")
    assert four.done and four.protocol.class_names(2) == ("dog",)
    assert np.abs(four.scores(2).scores - grown.scores(2).scores).max() < 1e-3
    plain = {"replay.per_class": 0}  # the photos of its last exemplars are gone
    more = krt.extend(grown, new, plain, known="keep", folder="outputs/more", show="none", device="cpu")
    assert more.done and more.finished_sessions == 4


@pytest.mark.exports
def test_exports_open(version, old):
    photo = load_image(krt.open_dataset(old, "test").path(0), 32)
    images = photo.transpose(2, 0, 1)[None].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(KEPT / version / "tags.onnx")
    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    extra = {"metadata.json": ""}
    module = torch.export.load(KEPT / version / "tags.pt2", extra_files=extra).module()
    assert about == json.loads(extra["metadata.json"]) and about["krt_core"] == version
    tags = krt.Tagger(old)(photo)
    places = [tags.names.index(name) for name in about["classes"]]
    for answer in (session.run(None, {"images": images}), module(torch.from_numpy(images))):
        for said, own in zip(answer, (tags.probabilities, tags.scores), strict=True):
            np.testing.assert_allclose(np.asarray(said)[0], own[places], atol=1e-4)


def test_this_version_is_kept():
    """Whoever raises the version keeps a run of it: python tests/runs/keep.py."""
    assert __version__ in VERSIONS


# ---- newer ones ----


def of_tomorrow(folder, version="99.1.0", change=lambda text: text):
    """As a later version would write it."""
    about = json.loads((folder / "environment.json").read_text())
    for start in (about, *about["starts"]):
        start["versions"]["krt-core"] = version
    (folder / "environment.json").write_text(json.dumps(about))
    path = folder / "experiment.yaml"
    path.write_text(change(path.read_text()))
    return folder


CHANGES = {
    "a key": lambda text: text.replace("data:\n", "data:\n  hue: 1\n"),
    "a section": lambda text: text.replace("data:\n", "sky: {blue: 1}\ndata:\n"),
    "a value": lambda text: text.replace("freeze: first", "freeze: second"),
    "a method": lambda text: text.replace("method: krt", "method: krt2"),
    "nothing else": lambda text: text,
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("recorded", ["99.1.0", __version__])
def test_a_folder_of_a_newer_version_is_named(old, what, recorded, capsys):
    if (what, recorded) == ("nothing else", __version__):
        return
    of_tomorrow(old.folder, recorded, CHANGES[what])
    before = files_of(old.folder)
    with pytest.raises(NewerError) as told:
        _ = Run(old.folder).experiment
    said = str(told.value)
    assert str(old.folder) in said and recorded in said and f"{__version__}" in said
    assert re.search("Open it with (99.1.0 or a later|the newer) version", said)
    with pytest.raises(NewerError):  # and nothing is written to it
        train(load_experiment("digits_demo", SMALL), old.folder, show="none", device="cpu")
    photo = str(next((old.folder.parents[1] / "data/tiny/val2014").iterdir()))
    for command in (["predict", str(old.folder), photo], ["compare", str(old.folder), str(old.folder)],
                    ["export", str(old.folder), "a.onnx"], ["extend", str(old.folder), "x"]):  # fmt: skip
        assert main(command) == 2 and re.search("Open it with .* version", capsys.readouterr().err)
    assert files_of(old.folder) == before


def test_one_does_not_hide_the_others(old, tmp_path, capsys):
    of_tomorrow(Path(shutil.copytree(old.folder, old.folder.with_name("newer"))), change=CHANGES["a method"])
    runs, left_out = collect(["outputs"])
    assert [run.folder for run in runs] == [old.folder]
    assert [one.name for one in left_out] == ["newer"] and "was written by version 99.1.0" in left_out[0].reason
    with pytest.warns(UserWarning, match="left out: newer: .*was written by version 99.1.0"):
        assert [run.folder for run in find_runs("outputs")] == [old.folder]
    assert main(["report", "outputs"]) == 0
    assert "left out: newer" in capsys.readouterr().err
    assert krt.Leaderboard("outputs").views and krt.ForgettingExplorer("outputs").runs


def test_a_matrix_with_one_is_looked_at_all_the_same(old, tmp_path):
    of_tomorrow(old.folder)
    job = Job("run", "runs", "train", {}, str(old.folder), load_experiment("digits_demo", SMALL))
    files = JobFiles(tmp_path / "matrix", job)
    assert files.run is None and not files.finished


def test_the_next_number_of_a_version_changes_no_layout(old):
    first, second, *_ = __version__.split(".")
    of_tomorrow(old.folder, f"{first}.{second}.999")
    assert Run(old.folder).complete
    of_tomorrow(old.folder, "unknown")
    assert Run(old.folder).complete
    (old.folder / "environment.json").write_text("{")
    assert Run(old.folder).complete
