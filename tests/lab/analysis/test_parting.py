"""Whether two runs are the same to the last bit, where they part first, how far apart they end, and why."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, write_coco
from safetensors.torch import load_file, save_file

import krt_core as krt
from krt_core.cli import main
from krt_core.config import load_experiment
from krt_core.errors import RunError
from krt_core.lab.analysis import compared
from krt_core.runs.folder import Run
from krt_core.session import train

pytest_plugins = ("grow_world",)
SETTING = {**TINY, "data.validation": 0.4, "replay.per_class": 2, "krt.mean_labels": 1.9}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """KRT in two sessions of two epochs, with exemplars and calibration; not to be changed."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRT_HOME", str(home))
        torch.set_num_threads(1)
        experiment = load_experiment("digits_demo", {**SETTING, "data.root": str(write_coco(home / "data" / "tiny"))})
        return train(experiment, home / "run", show="none", device="cpu")


@pytest.fixture
def two(made, tmp_path):
    """The run, and a copy to be changed."""
    return made, Run(shutil.copytree(made.folder, tmp_path / "copy"))


def edit(run, name, change):
    path = run.folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add(run, name, key, place, by):
    """Add to one number of an npz file."""
    path = run.folder / name
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[key][place] += by
    np.savez(path, **arrays)


def add_to_weights(run, session, name, by):
    path = run.session_folder(session) / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[0] += by
    save_file(tensors, path)


def set_loss(run, line, by):
    path = run.folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[line])
    record["loss"] += by
    lines[line] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def said(found):
    return str(found.first), found.words()


# ---- the same ----


def test_a_copy_is_the_same_whatever_its_times_say(two, capsys):
    one, copy = two
    edit(copy, "session_00/state.json", lambda state: state.update(seconds=99.0, peak_memory_mb=1.0))
    edit(copy, "environment.json", lambda about: about["starts"][0].update(at="2001-01-01T00:00:00"))
    found = compared(one, copy.folder)
    assert found.same and found.first is None and not found.causes and not found.lacking
    assert main(["compare", str(one.folder), str(copy.folder)]) == 0
    assert "They are the same to the last bit." in capsys.readouterr().out


def test_runs_of_one_configuration_are_the_same(made):
    """NaN, as of OP where nothing is predicted, equals NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRT_HOME", str(made.folder.parent))
        again = train(made.experiment, made.folder.parent / "again", show="none", device="cpu")
    assert compared(made, again).same


def test_what_is_recorded_differently_is_said_of_equal_runs_too(two):
    one, copy = two
    edit(copy, "environment.json", lambda about: [s["hardware"].update(threads=7) for s in about["starts"]])
    found = compared(one, copy)
    assert found.same and found.causes == ["threads: 1 and 7"]
    assert "what is recorded differs all the same:\n  threads: 1 and 7" in found.words()


# ---- where they part ----


PARTINGS = {
    "loss": (lambda run: set_loss(run, 3, 0.25), "session 2, epoch 2: loss: ", 0.25),
    "threshold": (
        lambda run: edit(run, "session_01/state.json", lambda s: s["method"]["thresholds"]["1"].update(threshold=9.0)),
        "session 2: thresholds: ", None),
    "weights": (lambda run: add_to_weights(run, 1, "heads.1.head.bias", 0.5),
                r"session 2: weights: 1 of \d+ differ, most heads.1.head.bias: 1 of 2 numbers by up to 0.5", 0.5),
    "scores": (lambda run: add(run, "session_00/scores.npz", "scores", (3, 1), -0.125),
               "session 1: scores: 1 of 48 numbers by up to 0.12", 0.125),
    "labels": (lambda run: add(run, "session_00/scores.npz", "labels", 0, 128), "session 1: labels of test images: ",
               None),
    "metrics": (lambda run: edit(run, "session_01/state.json", lambda s: s["metrics"].update(mAP_new=1.0)),
                "session 2: metrics: ", None),
    "AP": (lambda run: add(run, "session_01/ap.npz", "own", 2, 3.0), "session 2: AP: .*own", 3.0),
    "calibration": (lambda run: edit(run, "session_00/calibration.json", lambda c: c.update(a=[2 * a for a in c["a"]])),
                    "session 1: calibration: .* a: ", None),
    "exemplars": (lambda run: edit(run, "session_00/state.json", lambda s: s["exemplar_ids"][0].pop()),
                  "session 1: exemplars: 4 and 3 images, 3 of them in both", 1),
    "ahead": (lambda run: add(run, "session_00/ahead.npz", "scores", (0, 0), 0.5),
              "session 1: scores of the images to come: ", 0.5),
}  # fmt: skip


@pytest.mark.parametrize("what", PARTINGS)
def test_they_part_where_one_was_changed(two, what, capsys):
    one, copy = two
    change, words, size = PARTINGS[what]
    change(copy)
    found = compared(one, copy)
    first, whole = said(found)
    assert re.match(words, first), first
    assert not found.same and not found.lacking
    assert size is None or found.first.size == pytest.approx(size, rel=1e-5)
    assert f"They part in {first}" in whole and "nothing recorded differs" in whole
    assert main(["compare", str(one.folder), str(copy.folder)]) == 1
    assert capsys.readouterr().out == whole


def test_the_first_of_several_is_told_and_a_table_has_the_rest(two):
    one, copy = two
    set_loss(copy, 2, 1.0)
    add_to_weights(copy, 0, "heads.0.head.bias", 0.25)
    add(copy, "session_01/scores.npz", "scores", (0, 0), 0.5)
    found = compared(one, copy)
    assert (found.first.session, found.first.epoch, found.first.quantity) == (0, None, "weights")
    assert found.table.loc[1, ["loss", "weights", "scores"]].tolist() == pytest.approx([0, 0.25, 0])
    assert found.table.loc[2, ["loss", "weights", "scores"]].tolist() == pytest.approx([1.0, 0, 0.5])
    assert found.table["mAP A"].tolist() == one.curve().tolist()
    assert "After session 2, the last that both have, scores are up to 0.5 apart" in found.words()


def test_the_last_bit_counts(two):
    one, copy = two
    name = "session_01/scores.npz"
    add(copy, name, "scores", (0, 0), 0)
    assert compared(one, copy).same
    with np.load(copy.folder / name) as stored:
        arrays = dict(stored)
    arrays["scores"][0, 0] = np.nextafter(arrays["scores"][0, 0], np.float32(9))
    np.savez(copy.folder / name, **arrays)
    found = compared(one, copy)
    assert found.first.quantity == "scores" and 0 < found.first.size < 1e-6


def test_statistics_of_a_method_are_compared(tiny, tmp_path):
    one, other = (
        train(tiny(method="ridge", seed=0, ridge__penalty=p), tmp_path / str(p), show="none") for p in (0.1, 0.2)
    )
    found = compared(one, other)
    parts = [d.quantity for d in found.differences if d.session == 0]
    assert parts[0] == "weights" and "statistics" in parts and "ridge.penalty: 0.1 and 0.2" in found.causes
    path = other.session_folder(1) / "method.safetensors"
    shutil.copytree(one.folder, tmp_path / "copy")
    copy = Run(tmp_path / "copy")
    tensors = load_file(path := copy.session_folder(1) / "method.safetensors")
    name = next(name for name in tensors if name.endswith("Q"))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path)
    first = str(compared(one, copy).first)
    assert first.startswith("session 2: statistics: ") and name in first


# ---- why ----


def test_configuration_and_seed(tiny, tmp_path):
    quick = dict(method="finetune", train__epochs=1)
    one = train(tiny(**quick), tmp_path / "one", show="none")
    other = train(tiny(**quick, seed=3, train__lr=0.001, train__eval_batch_size=7), tmp_path / "two", show="none")
    found = compared(one, other)
    wanted = ["seed: 0 and 3", "train.lr: 0.003 and 0.001", "train.eval_batch_size: 128 and 7 (decides no result)"]
    assert set(wanted) == set(found.causes) and (found.first.session, found.first.epoch) == (0, 0)


def test_another_method_or_other_exemplars(tiny, tmp_path):
    one = train(tiny(train__epochs=1, replay__per_class=2), tmp_path / "one", show="none")
    other = train(tiny(train__epochs=1, method="finetune"), tmp_path / "two", show="none")
    found = compared(one, other)
    assert "method: 'krt' and 'finetune'" in found.causes and "replay.per_class: 2 and 0" in found.causes
    assert not any(cause.startswith("krt.") for cause in found.causes)
    assert main(["compare", str(one.folder), str(other.folder)]) == 1


RECORDS = {
    "threads: 1 and 2": lambda start: start["hardware"].update(threads=2),
    "CPU capability": lambda start: start["hardware"].update(capability="DEFAULT"),
    "torch: ": lambda start: start["versions"].update(torch="1.0"),
    "commit: ": lambda start: start.update(commit="abc", code={"krt_core": "1"}),
    "precision: float32 and bfloat16": lambda start: start["made_with"].update(precision="bfloat16"),
    "processes: 1 and 2": lambda start: start["reasons"].update(processes="2"),
    "machine: ": lambda start: start.update(host="elsewhere"),
    "variables: none and MKL_CBWR=AVX2": lambda start: start.update(steered={"MKL_CBWR": "AVX2"}),
}


@pytest.mark.parametrize("words", RECORDS)
def test_what_the_starts_record(two, words):
    one, copy = two
    add(copy, "session_01/scores.npz", "scores", (0, 0), 0.5)
    edit(copy, "environment.json", lambda about: [RECORDS[words](start) for start in about["starts"]])
    found = compared(one, copy)
    assert len(found.causes) == 1 and found.causes[0].startswith(words)
    assert f"why, as far as records tell:\n  {words}" in found.words()


def test_what_an_older_folder_does_not_record_is_said(two):
    one, copy = two
    set_loss(copy, 0, 1)

    def older(about):
        for start in about["starts"]:
            del start["steered"], start["hardware"]["capability"]

    edit(copy, "environment.json", older)
    found = compared(one, copy)
    assert not found.causes and found.remarks == ["B does not record: CPU capability, variables."]
    (copy.folder / "environment.json").unlink()
    assert compared(one, copy).causes == ["record: there and lost"]


def test_starts_of_different_kinds_and_starts_that_came_later(two):
    one, copy = two

    def twice(about):
        about["starts"].append(json.loads(json.dumps(about["starts"][0])))
        about["starts"][1]["hardware"]["threads"] = 2

    edit(copy, "environment.json", twice)
    edit(copy, "session_01/state.json", lambda state: state.update(starts=[0, 1]))
    set_loss(copy, 3, 1)
    found = compared(one, copy)
    assert found.causes[0] == "threads: 1 and 1, then 2" and found.causes[1].startswith("starts: 1 and 2 (by itself no")
    assert "B was made by starts that differ: threads 1, then 2." in found.remarks
    set_loss(copy, 0, 1)  # in the first session, which the second start had no part in
    assert [cause.split(":")[0] for cause in compared(one, copy).causes] == ["starts"]


def test_other_data(tiny, coco_root, tmp_path):
    quick = dict(method="finetune", train__epochs=1)
    one = train(tiny(**quick), tmp_path / "one", show="none")
    other = write_coco(tmp_path / "other", seed=9, test=20)
    two = train(tiny(**quick, data__root=str(other)), tmp_path / "two", show="none")
    found = compared(one, two)
    assert any(cause.startswith("labels, ids or classes of the data: ") for cause in found.causes)
    assert "image files: their sizes or contents differ" in found.causes
    assert found.first.quantity in ("train images", "test images")
    assert np.isfinite(found.table["scores"]).all()  # of the images that both have
    assert any(d.quantity == "test images" and "20 of them in both" in d.words for d in found.differences)


def test_other_classes(tiny, tmp_path):
    quick = dict(method="finetune", train__epochs=1, protocol__increment=1)
    one = train(tiny(**quick, data__classes=["ant", "bee", "cat"]), tmp_path / "one", show="none")
    two = train(tiny(**quick, data__classes=["bee", "cat", "dog"]), tmp_path / "two", show="none")
    found = compared(one, two)
    assert str(found.first) == "session 1: classes: ant and bee"
    assert found.table["scores"].isna()[1] and found.table["scores"].notna()[2:].all()
    assert found.words() and main(["compare", str(one.folder), str(two.folder)]) == 1


# ---- runs of different length ----


def test_one_that_is_not_finished(two):
    one, copy = two
    (copy.folder / "DONE").unlink()
    shutil.rmtree(copy.session_folder(1))
    found = compared(one, copy)
    assert not found.same and found.first is None and found.sessions == (2, 1)
    assert "the same to the last bit as far as both go, through session 1; A has session 2 more." in found.words()
    assert "not finished: 1 of 2 sessions" in found.words()
    set_loss(copy, 3, 1)  # of the session in work
    assert str(compared(one, copy).first).startswith("session 2, epoch 2: loss")


def test_both_not_finished(two, tmp_path):
    one, copy = two
    (copy.folder / "DONE").unlink()
    shutil.rmtree(copy.session_folder(1))
    other = Run(shutil.copytree(copy.folder, tmp_path / "third"))
    found = compared(copy, other)
    assert found.same and "the same to the last bit, as far as they have got" in found.words()
    for run in (copy, other):
        shutil.rmtree(run.session_folder(0))
        (run.folder / "metrics.jsonl").unlink()
    assert "Neither has begun." in compared(copy, other).words()
    assert "One of them has finished no session; A has sessions 1 to 2 more." in compared(one, copy).words()


def test_one_that_has_grown_from_the_other(own, march):
    run = own("ridge")
    grown = krt.extend(run, march, show="none")
    found = compared(run, grown)
    assert found.first is None and not found.lacking and found.sessions == (3, 4)
    words = found.words()
    assert (
        "through session 3; B has session 4 more" in words and f"B: {grown.folder} (grown from {run.folder})" in words
    )
    again = krt.extend(run, march, folder="outputs/again", show="none")
    assert compared(grown, again).same


# ---- what is missing or damaged ----


def test_what_cannot_be_compared_is_said(two):
    one, copy = two
    (copy.session_folder(1) / "scores.npz").unlink()
    found = compared(one, copy)
    assert not found.same and found.first is None and len(found.lacking) == 1
    words = found.words()
    assert "Nothing that both have differs, but not all of it is there." in words
    assert "not compared: scores of session 2: B: " in words
    (copy.session_folder(1) / "scores.npz").write_bytes(b"PK")
    weights = copy.session_folder(0) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    (copy.session_folder(0) / "ahead.npz").unlink()
    lacking = compared(one, copy).lacking
    assert len(lacking) == 3 and "damaged" in lacking[0] and lacking[1] == "ahead.npz of session 1: B has none"


def test_no_run(two, tmp_path, capsys):
    with pytest.raises(RunError, match="is no run folder"):
        compared(two[0], tmp_path)
    assert main(["compare", str(two[0].folder), str(tmp_path / "nowhere")]) == 2
    (two[1].session_folder(0) / "state.json").write_text("{")
    assert main(["compare", str(two[0].folder), str(two[1].folder)]) == 2
    assert "state.json is damaged" in capsys.readouterr().err
