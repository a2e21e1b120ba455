"""Every file of a run folder, emptied, cut to half and filled with something else: it is made again, or named with the
way out, and the way out works."""

import errno
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, write_coco
from interrupted import begun, log_of

from benchmarks.made_up_runs import finished
from krt_core.cli import main
from krt_core.config import load_experiment
from krt_core.errors import KRTError, RunError
from krt_core.lab.report import collect
from krt_core.lab.report.html import html_report
from krt_core.runs.folder import Run
from krt_core.session import train

HARM = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "foreign": lambda content: b"\x93NUMPY\x00\xff\xfe garbage {" * 20,
    "zip": lambda content: b"PK\x03\x04" + b"\x00" * 200,
}
IN_SESSIONS = ("state.json", "scores.npz", "ap.npz", "ahead.npz", "model.safetensors", "method.safetensors")
AROUND = ("experiment.yaml", "environment.json", "log.txt", "progress.json", "metrics.jsonl", "resume.pt", "DONE")
KEPT = """
import torch
from krt_core.methods.krt import KRT

class Keeps(KRT):
    def state(self):
        return {**super().state(), "kept": torch.arange(3.0)}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run and an interrupted one (in its third session), of a method that keeps tensors."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "mylab7.py").write_text(KEPT)
    data = write_coco(root / "data" / "tiny", train=24, test=12)
    changes = {"method": "mylab7:Keeps", "train.evaluate_every": 0, "protocol.base": 2, "protocol.increment": 1,
               "train.epochs": 3, "replay.per_class": 1}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRT_HOME", str(root))
        patch.syspath_prepend(str(root))
        experiment = load_experiment("digits_demo", {**TINY, **changes, "data.root": str(data)})
        train(experiment, root / "finished", show="none", device="cpu")
        begun(experiment, root / "interrupted", at=(2, 1))
    return root, experiment


@pytest.fixture
def folders(world, tmp_path, monkeypatch):
    root, experiment = world
    monkeypatch.setenv("KRT_HOME", str(root))
    monkeypatch.syspath_prepend(str(root))
    return lambda kind: shutil.copytree(root / kind, tmp_path / kind), experiment


def _harm(path, kind):
    path.write_bytes(HARM[kind](path.read_bytes()))


def _look_at_everything(run):
    """As the lab does, where errors may only be of our own kind."""
    run.experiment, run.done, run.environment, run.leak, run.progress, run.epochs, run.mixed, run.data  # noqa: B018
    for t in range(run.finished_sessions):
        run.session_state(t), run.scores(t), run.ahead(t), run.model_state(t), run.method_state(t)
    run.ap_tables, run.curve()


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("place", [*AROUND[:-2], "DONE", *(f"session_01/{name}" for name in IN_SESSIONS)])
def test_a_finished_run(folders, place, harm):
    copy, experiment = folders
    folder = copy("finished")
    whole = Run(folder).summary["mAP_per_session"]
    _harm(folder / place, harm)
    try:
        _look_at_everything(Run(folder))
    except KRTError as error:
        assert str(folder / place) in str(error) and re.search("again|delete", str(error)), error
    else:
        assert place in ("log.txt", "progress.json", "metrics.jsonl", "session_01/ap.npz", "DONE"), place
    runs, left_out = collect([folder])
    assert len(runs) + len(left_out) == 1
    if left_out and place.startswith("session"):
        shutil.rmtree(folder / "session_01")  # as it says
    if left_out and place == "environment.json":
        (folder / place).unlink()
    run = train(experiment, folder, show="none", device="cpu")
    assert run.done and run.summary["mAP_per_session"] == whole
    assert collect([folder])[0]
    if left_out:
        _look_at_everything(Run(folder))


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("place", [*AROUND[:-1], *(f"session_01/{name}" for name in IN_SESSIONS)])
def test_an_interrupted_run(folders, world, place, harm):
    copy, experiment = folders
    folder = copy("interrupted")
    _harm(folder / place, harm)
    needed = ("environment.json", "session_01/state.json", "session_01/model.safetensors",
              "session_01/method.safetensors")  # fmt: skip
    if place in needed:
        with pytest.raises(RunError, match=f"{re.escape(str(folder / place))} is damaged .*delete") as error:
            train(experiment, folder, show="none", device="cpu")
        assert "\n" not in str(error.value)
        (folder / place).unlink() if place == "environment.json" else shutil.rmtree(folder / "session_01")
    run = train(experiment, folder, show="none", device="cpu")
    assert run.done and run.summary["mAP_per_session"] == pytest.approx(
        Run(world[0] / "finished").summary["mAP_per_session"], abs=1e-3
    )
    if place == "metrics.jsonl" and harm in ("foreign", "zip"):
        assert "metrics.jsonl is damaged: the lines up to the damage are kept" in log_of(folder)
    if place == "resume.pt":
        assert re.search(r"resume\.pt is damaged \(.*\): the session it belongs to starts anew", log_of(folder))


def test_an_empty_resume_file_starts_the_session_anew(folders):
    copy, experiment = folders
    folder = copy("finished")
    shutil.rmtree(folder / "session_02")
    (folder / "DONE").unlink()
    (folder / "resume.pt").write_bytes(b"")
    assert train(experiment, folder, show="none", device="cpu").done
    assert "resume.pt is damaged (it is empty)" in log_of(folder)


def test_later_sessions_do_not_outlive_one_that_is_taken_out(folders, monkeypatch):
    copy, experiment = folders
    folder = copy("finished")
    shutil.rmtree(folder / "session_01")
    begun(experiment, folder, at=(1, 1))  # interrupted while it is made again
    assert Run(folder).finished_sessions == 1 and not Run(folder).done
    assert train(experiment, folder, show="none", device="cpu").done


def test_a_shortened_configuration_is_never_another_experiment(folders):
    """A YAML file that ends early is still YAML: what is missing would stand at its default."""
    copy, experiment = folders
    folder = copy("finished")
    lines = (folder / "experiment.yaml").read_text().splitlines(keepends=True)
    for stop in range(len(lines)):
        (folder / "experiment.yaml").write_text("".join(lines[:stop]))
        with pytest.raises(RunError, match="experiment.yaml is damaged"):
            Run(folder).experiment  # noqa: B018
    with pytest.raises(RunError, match="experiment.yaml is damaged"):  # of another experiment it is not written
        Run.create(load_experiment("digits_demo"), folder)


def test_no_traceback_for_whoever_types(folders, capsys):
    copy, _ = folders
    folder = copy("interrupted")
    for place in ("session_01/state.json", "environment.json"):
        content = (folder / place).read_bytes()
        _harm(folder / place, "cut")
        assert main(["train", str(folder / "experiment.yaml"), "--folder", str(folder)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("krt: ") and place in said and said.count("\n") == 1
        (folder / place).write_bytes(content)


def test_a_state_without_what_is_needed_is_named(folders):
    copy, experiment = folders
    folder = copy("interrupted")
    path = folder / "session_00/state.json"
    state = json.loads(path.read_text())
    del state["memory"]
    path.write_text(json.dumps(state))
    with pytest.raises(RunError, match=r"session_00.state\.json lacks memory: delete the folder"):
        train(experiment, folder, show="none", device="cpu")


ODD_STATES = {
    "its metrics lack mAP_seen": lambda state: state["metrics"].pop("mAP_seen"),
    "it is of session 1": lambda state: state.update(session=0),
    "lacks the AP of": lambda state: state["metrics"]["AP_seen"].popitem(),
}


@pytest.mark.parametrize("words", ODD_STATES)
def test_a_state_without_its_numbers_is_named_by_the_report(folders, words):
    copy, _ = folders
    folder = copy("finished")
    path = folder / "session_02/state.json"
    state = json.loads(path.read_text())
    ODD_STATES[words](state)
    path.write_text(json.dumps(state))
    runs, left_out = collect([folder])
    assert not runs and words in left_out[0].reason and f"{path}" in left_out[0].reason
    assert "delete the folder" in left_out[0].reason


def test_an_ap_that_is_null_is_a_number_in_tables(folders):
    copy, _ = folders
    folder = copy("finished")
    path = folder / "session_02/state.json"
    state = json.loads(path.read_text())
    state["metrics"]["AP_seen"] = dict.fromkeys(state["metrics"]["AP_seen"])
    path.write_text(json.dumps(state))
    assert html_report(collect([folder])[0], [])


@pytest.mark.parametrize("name", ["ap.npz", "scores.npz", "ahead.npz"])
@pytest.mark.parametrize("content", ["bytes", "shapes", "kinds"])
def test_archives_of_something_else_are_named(folders, name, content):
    """Whole archives, with the right names in them."""
    copy, _ = folders
    path = copy("finished") / "session_01" / name
    with np.load(path) as stored:
        arrays = dict(stored)
    if content == "bytes":
        with zipfile.ZipFile(path, "w") as archive:
            for key in arrays:
                archive.writestr(key, b"no array")
    else:
        odd = {"shapes": lambda one: one[..., None], "kinds": lambda one: np.full(one.shape, "x")}[content]
        np.savez(path, **{key: odd(array) for key, array in arrays.items()})
    run = Run(path.parents[1])
    try:
        run.scores(1), run.ahead(1), run.ap_tables
    except RunError as error:
        assert f"{path} is damaged" in str(error), error
    else:
        assert name == "ap.npz"  # the scores tell it too


def test_the_loss_of_a_training_that_runs_away_damages_nothing(tmp_path):
    """A line that was taken for damage would end the curve there, and be gone for good when the run goes on."""
    run = finished(images=12, folder=str(tmp_path / "run"))
    (run.folder / "metrics.jsonl").unlink(missing_ok=True)
    for epoch, loss in enumerate((1.0, 3e25, -4e18, None)):
        run.append_epoch({"session": 0, "epoch": epoch, "loss": loss})
    assert [line["epoch"] for line in run.epochs] == [0, 1, 2, 3]


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["resume.pt", "session_01/model.safetensors", "session_01/method.safetensors"])
def test_a_bit_that_the_disk_has_turned_is_seen(folders, world, place):
    """The file is as long as it was, and every library reads it."""
    copy, experiment = folders
    folder = copy("interrupted")
    path = folder / place
    if place == "resume.pt":
        content = path.read_bytes()
        tensors = Run(folder).load_resume()["model"].values()
        weights = max((one for one in tensors if one.dim() == 1), key=len)
        _flip(path, content.index(weights.numpy().tobytes()) + 40)
        run = train(experiment, folder, show="none", device="cpu")
        assert re.search(r"resume\.pt is damaged \(.*not as it was written\): the session it belongs", log_of(folder))
    else:
        _flip(path, path.stat().st_size - 2)
        with pytest.raises(RunError, match=f"{re.escape(str(path))} is damaged .its numbers are not those that were"):
            train(experiment, folder, show="none", device="cpu")
        shutil.rmtree(folder / "session_01")  # as it says
        run = train(experiment, folder, show="none", device="cpu")
    whole = Run(world[0] / "finished")
    assert run.done and (run.scores(2).scores == whole.scores(2).scores).all()


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_full_disk_is_told_with_the_file_that_was_added_to(folders, name, monkeypatch, capsys):
    """Unlike an error of opening, one of writing has no name of its own."""
    copy, _ = folders
    folder, opened = copy("interrupted"), Path.open

    def full(self, mode="r", *arguments, **options):
        if self.name == name and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    assert main(["train", str(folder / "experiment.yaml"), "--folder", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"krt: {folder / name}: No space left on device. Results go elsewhere with --folder" in said


def test_scores_of_another_session_are_named(tmp_path):
    """The file of an earlier session, put where that of a later one should be, has fewer classes."""
    run = finished(folder=str(tmp_path / "run"))
    shutil.copy(run.session_folder(1) / "scores.npz", run.session_folder(2) / "scores.npz")
    with pytest.raises(RunError, match=r"session_02/scores.npz is damaged \(it must hold scores of 6 classes\)"):
        Run(run.folder).scores(2)
