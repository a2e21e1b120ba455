"""What may change when a run is continued, what may not, and what is said of it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from interrupted import begun, log_of, stopped_after
from PIL import Image

import krt_core.runs.starts as starts_module
import krt_core.session as session_module
from krt_core.data import open_dataset
from krt_core.data.store import ImageStore
from krt_core.errors import RunError
from krt_core.evaluate import Tester
from krt_core.machine import device
from krt_core.machine.home import atomic_write
from krt_core.runs.folder import Run
from krt_core.runs.progress import Progress
from krt_core.session import train

QUICK = dict(method="finetune", train__epochs=3, train__evaluate_every=0)


def test_every_start_is_recorded_and_each_session_tells_its_own(tiny, tmp_path, monkeypatch):
    folder = begun(tiny(**QUICK), tmp_path / "run")
    monkeypatch.setattr(device, "git_commit", lambda: "another1234")
    run = train(tiny(**QUICK), folder, show="none", device="cpu")
    first, second = run.starts
    assert second["commit"] == "another1234" != first["commit"] and run.environment["commit"] == "another1234"
    assert {"at", "augmentation", "code", "made_with", "weights", "versions", "host"} <= first.keys()
    assert second["made_with"]["precision"] == "float32" and second["augmentation"] == "light"
    assert [run.session_state(t)["starts"] for t in (0, 1)] == [[0], [0, 1]]
    assert run.mixed == [f"commit: {first['commit']}, then another1234"] == run.summary["mixed"]
    assert f"marked as mixed: commit: {first['commit']}, then another1234" in log_of(folder)


def test_a_session_does_not_name_the_starts_of_the_one_before(tiny, tmp_path, monkeypatch):
    folder = begun(tiny(**QUICK), tmp_path / "run", at=(0, 1))
    monkeypatch.setattr(device, "git_commit", lambda: "another1234")
    run = train(tiny(**QUICK), folder, show="none", device="cpu")
    assert [run.session_state(t)["starts"] for t in (0, 1)] == [[0, 1], [1]]


def test_a_start_like_the_one_before_makes_no_mixture(tiny, tmp_path):
    run = train(tiny(**QUICK), begun(tiny(**QUICK), tmp_path / "run"), show="none", device="cpu")
    assert len(run.starts) == 2 and not run.mixed and "mixed" not in run.summary
    assert run.session_state(1)["starts"] == [0]


@pytest.mark.parametrize(
    ("target", "value", "said"),
    [
        ("platform.node", lambda: "elsewhere", "machine: "),
        ("cpu_name", lambda: "another CPU", "machine: "),
        ("platform.python_version", lambda: "3.99.0", "python: "),
        ("importlib.metadata.version", lambda name: "9.9", "torch: "),
        ("torch.get_num_threads", lambda: 3, "threads: 1, then 3"),
        ("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT", "CPU capability: "),
        ("os.environ", {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, "variables: none, then ONEDNN_MAX_CPU_ISA=AVX2"),
    ],
)
def test_another_machine_or_version_goes_on_and_is_marked(tiny, tmp_path, monkeypatch, target, value, said):
    folder = begun(tiny(**QUICK), tmp_path / "run", at=(0, 1))
    place, _, name = target.rpartition(".")
    owner = device
    for part in filter(None, place.split(".")):
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name, value)
    run = train(tiny(**QUICK), folder, show="none", device="cpu")
    assert any(line.startswith(said) for line in run.mixed), run.mixed


def test_changed_code_of_ones_own_is_marked(tiny, tmp_path, monkeypatch):
    (tmp_path / "mylab9.py").write_text("from krt_core.methods.base import Method\nclass Mine(Method): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {**QUICK, "method": "mylab9:Mine"}
    folder = begun(tiny(**changes), tmp_path / "run")
    with (tmp_path / "mylab9.py").open("a") as file:
        file.write("# changed\n")
    run = train(tiny(**changes), folder, show="none", device="cpu")
    assert len(run.mixed) == 1 and run.mixed[0].startswith("code of mylab9:Mine: ")


def test_another_precision_is_refused_and_the_way_out_works(tiny, tmp_path, monkeypatch):
    """Where it follows from the machine; asked for, it is another experiment."""
    auto = {**QUICK, "train__precision": "auto"}
    monkeypatch.setattr(device, "_cpu_flags", lambda: "avx512_bf16")
    folder = begun(tiny(**auto), tmp_path / "run")
    monkeypatch.setattr(device, "_cpu_flags", lambda: "")
    with pytest.raises(RunError, match=r"begun in bfloat16.* float32.*train\.precision=bfloat16 --folder"):
        train(tiny(**auto), folder, show="none", device="cpu")
    assert len(Run(folder).starts) == 1  # a start that was refused made nothing
    run = train(tiny(**{**auto, "train__precision": "bfloat16"}), folder, show="none", device="cpu")
    assert run.done and run.experiment.train.precision == "auto" and not run.mixed
    other = tmp_path / "other"
    with pytest.raises(RunError, match="holds another experiment"):
        train(tiny(**auto), begun(tiny(**QUICK), other), show="none", device="cpu")


def _replace_images(folder, colour, keep_time=False):
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        Image.new("RGB", (32, 32), colour).save(path)
        if keep_time:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_changed_images_are_refused_like_changed_labels(tiny, coco_root, tmp_path, cache, split):
    changes = {**QUICK, "data__cache": cache}
    folder = begun(tiny(**changes), tmp_path / "run")
    _replace_images(coco_root / split, "black")
    with pytest.raises(RunError, match="images have changed since this run began"):
        train(tiny(**changes), folder, show="none", device="cpu")


def test_images_of_the_same_size_are_looked_into(tiny, coco_root, tmp_path):
    for path in (coco_root / "train2014").iterdir():
        Image.open(path).save(path, format="BMP")  # whatever it shows, it has this size
    folder = begun(tiny(**QUICK), tmp_path / "run")
    for path in (coco_root / "train2014").iterdir():
        before = path.stat()
        Image.new("RGB", (32, 32)).save(path, format="BMP")
        assert path.stat().st_size == before.st_size
    with pytest.raises(RunError, match=r"images have changed .*\(contents of their files differ"):
        train(tiny(**QUICK), folder, show="none", device="cpu")


def test_data_copied_without_their_times_go_on(tiny, coco_root, tmp_path):
    folder = begun(tiny(**QUICK), tmp_path / "run")
    for path in coco_root.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    run = train(tiny(**QUICK), folder, show="none", device="cpu")
    assert run.done and run.mixed[0].startswith("times of the images: ")


def test_moved_data_are_taken_if_they_are_the_same(tiny, coco_root, tmp_path):
    folder = begun(tiny(**QUICK), tmp_path / "run")
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(coco_root, other)
    coco_root.rename(moved)
    path = other / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:-1]
    path.write_text(json.dumps(content))
    before = (folder / "experiment.yaml").read_bytes()
    with pytest.raises(RunError, match="data set has changed"):
        train(tiny(**QUICK, data__root=str(other)), folder, show="none", device="cpu")
    assert (folder / "experiment.yaml").read_bytes() == before
    run = train(tiny(**QUICK, data__root=str(moved)), folder, show="none", device="cpu")
    assert run.done and not run.mixed and run.experiment.data.root == str(moved)
    assert f"data.root: '{coco_root}' until now, '{moved}' from now on" in log_of(folder)


def test_what_decides_no_result_is_taken_as_asked_and_said(tiny, tmp_path, monkeypatch):
    folder = begun(tiny(**QUICK), tmp_path / "run")
    used = []
    original = Tester.__init__
    monkeypatch.setattr(Tester, "__init__", lambda self, *a: (used.append(a[-1]), original(self, *a))[1])
    changes = dict(train__eval_batch_size=5, data__workers=1, data__cache=False, train__callbacks=["mylab8:Told"])
    (tmp_path / "mylab8.py").write_text("from krt_core.runs.callbacks import Callback\nclass Told(Callback): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = train(tiny(**QUICK, **changes), folder, show="none", device="cpu")
    assert used == [5] and run.done
    again = Run(folder).experiment  # what the file says now
    assert (again.train.eval_batch_size, again.data.workers, again.data.cache) == (5, 1, False)
    said = log_of(folder)
    for line in ("train.eval_batch_size: 128 until now, 5 from now on", "data.workers: 0 until now, 1 from now on",
                 "data.cache: True until now, False from now on", "train.callbacks: [] until now"):  # fmt: skip
        assert line in said
    assert said.count("until now") == 4


def test_a_folder_keeps_its_name_and_a_running_training_its_configuration(tiny, tmp_path):
    run = Run.create(tiny(**QUICK), tmp_path / "run")
    before = (run.folder / "experiment.yaml").read_bytes()
    asked = dataclasses.replace(tiny(**QUICK, train__eval_batch_size=7), name="other")
    with run.lock(), pytest.raises(RunError, match="another process"):
        train(asked, run.folder, show="none")
    assert (run.folder / "experiment.yaml").read_bytes() == before
    assert train(asked, run.folder, show="none").experiment.name == "tiny"


def test_a_run_of_an_older_version_goes_on_without_what_it_does_not_tell(tiny, coco_root, tmp_path):
    folder = begun(tiny(**QUICK), tmp_path / "run", at=(1, 1))
    (folder / "resume.pt").unlink()
    state = json.loads((folder / "session_00/state.json").read_text())
    del state["starts"], state["made_with"]["images"], state["made_with"]["precision"]
    (folder / "session_00/state.json").write_text(json.dumps(state))
    old = Run(folder).environment
    for key in ("made_with", "code", "at", "augmentation"):
        del old[key]
    (folder / "environment.json").write_text(json.dumps(old))
    (folder / "session_00/ap.npz").unlink()
    _replace_images(coco_root / "val2014", "black")
    run = train(tiny(**QUICK), folder, show="none", device="cpu")
    assert run.done and len(run.starts) == 2 and not run.mixed
    assert set(run.session_state(1)["made_with"]) == {"inputs", "max_steps", "processes"}
    assert run.ap_tables["fixed"].shape == (2, 4)


# ---- resume.pt ----


@pytest.mark.parametrize(("every", "saved"), [(60.0, [(0, 1), (1, 1)]), (0.0, [(0, n) for n in (1, 2, 3, 4)] * 2)])
def test_resume_is_written_once_a_session_and_then_once_a_minute(tiny, tmp_path, monkeypatch, every, saved):
    found = []
    original = Run.save_resume
    monkeypatch.setattr(session_module, "RESUME_EVERY", every)
    monkeypatch.setattr(Run, "save_resume", lambda self, c: (found.append(c["epoch"]), original(self, c)))
    train(tiny(**{**QUICK, "train__epochs": 5}), tmp_path / "run", show="none", device="cpu")
    assert found == [epoch for _, epoch in saved]


def test_resume_from_between_saves_equals_an_uninterrupted_run(tiny, tmp_path):
    experiment = tiny(**{**QUICK, "train__epochs": 5}, replay__per_class=2)
    whole = train(experiment, tmp_path / "whole", show="none", device="cpu")
    parts = train(experiment, begun(experiment, tmp_path / "parts", at=(1, 3)), show="none", device="cpu")
    assert "continuing at session 2, epoch 4" in log_of(parts.folder)
    np.testing.assert_array_equal(whole.scores(1).scores, parts.scores(1).scores)
    assert [(e["session"], e["epoch"], e["loss"]) for e in whole.epochs] == [
        (e["session"], e["epoch"], e["loss"]) for e in parts.epochs
    ]


@pytest.mark.parametrize("replay", [0, 2])
def test_resume_over_three_sessions_carries_thresholds_and_records(tiny, tmp_path, replay):
    changes = dict(protocol__base=2, protocol__increment=1, krt__mean_labels=1.9, replay__per_class=replay)
    whole = train(tiny(**changes), tmp_path / "whole", show="none", device="cpu")
    folder = begun(tiny(**changes), tmp_path / "parts", at=(2, 0))  # the first epoch of the third session
    (folder / "resume.pt").unlink(missing_ok=True)
    parts = train(tiny(**changes), folder, show="none", device="cpu")
    one, two = (run.session_state(2)["method"]["thresholds"] for run in (whole, parts))
    assert set(one) == {"1", "2"} and one == two
    assert (whole.scores(2).scores == parts.scores(2).scores).all()
    tensors, others = whole.model_state(2), parts.model_state(2)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


# ---- what is stored ----


def test_ap_is_stored_with_each_session_and_scores_are_not_needed_again(tiny, tmp_path):
    run = train(tiny(), tmp_path / "run", show="none", device="cpu")
    tables = run.ap_tables
    for t in range(2):
        (run.session_folder(t) / "scores.npz").rename(tmp_path / f"{t}.npz")
    (run.folder / "DONE").unlink()
    again = train(tiny(), run.folder, show="none", device="cpu")
    assert again.done and again.summary["forgetting"] == run.final_summary()["forgetting"]
    assert "scores.npz" in log_of(run.folder)
    for t in range(2):
        (tmp_path / f"{t}.npz").rename(run.session_folder(t) / "scores.npz")
        (run.session_folder(t) / "ap.npz").unlink()
    for pool, table in Run(run.folder).ap_tables.items():  # from the scores, as in folders of older versions
        np.testing.assert_array_equal(table, tables[pool])


def test_json_has_null_where_there_is_no_number(tiny, tmp_path):
    run = train(tiny(**{**QUICK, "train__epochs": 1}), tmp_path / "run", show="none", device="cpu")
    for name in ("DONE", "session_00/state.json", "session_01/state.json"):
        text = (run.folder / name).read_text()
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        old = text.replace("null", "NaN")  # as older versions wrote it
        (run.folder / name).write_text(old)
    was = run.session_state(0)["metrics"]["OP"]
    state = json.loads((run.folder / "session_00/state.json").read_text())
    for value in (float("nan"), None):
        (run.folder / "session_00/state.json").write_text(
            json.dumps({**state, "metrics": {**state["metrics"], "OP": value}})
        )
        assert np.isnan(run.session_state(0)["metrics"]["OP"])
    assert isinstance(was, float)


def test_joint_training_is_tested_once(tiny, tmp_path, monkeypatch):
    calls = []
    import krt_core.evaluate as module

    original = module.predict
    monkeypatch.setattr(module, "predict", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    run = train(tiny(method="joint", train__epochs=1, train__evaluate_every=0), tmp_path / "run", show="none")
    assert len(calls) == 1 and run.scores(1).scores.shape == (24, 4)
    np.testing.assert_array_equal(run.scores(0).scores, run.scores(1).scores[:, :2])


def test_files_are_made_with_the_rights_of_any_new_file_without_touching_the_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask is of the whole process"))
    atomic_write(tmp_path / "a", "text")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_images_written_in_place_are_decoded_again(tiny, coco_root):
    dataset = open_dataset(tiny().data, "train")
    before = ImageStore(dataset, 32).rows(np.arange(2))
    _replace_images(coco_root / "train2014", (9, 9, 9))
    after = ImageStore(dataset, 32).rows(np.arange(2))
    assert (before != 9).any() and (after == 9).all()
    _replace_images(coco_root / "train2014", (8, 8, 8))  # of the same size
    assert (ImageStore(dataset, 32).rows(np.arange(2)) == 8).all()


def test_a_machine_without_utf8_trains_to_the_end(tiny, tmp_path):
    (tmp_path / "e.yaml").write_text(tiny(**{**QUICK, "train__epochs": 1}).to_yaml())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "krt_core.cli", "train", str(tmp_path / "e.yaml"), "--folder", str(tmp_path / "r")]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "max − last" in log_of(tmp_path / "r") and Run(tmp_path / "r").done


def test_the_record_of_a_start_names_the_code_it_ran(tiny):
    code = starts_module._code(tiny())
    assert set(code) == {"krt_core"} and len(code["krt_core"]) == 12


def test_an_interrupt_says_what_is_lost(tiny, tmp_path):
    with stopped_after(0, 0):
        train(tiny(**QUICK), tmp_path / "run", show="none")
    assert "to continue after the last finished epoch" in log_of(tmp_path / "run")


def test_the_training_does_not_wait_for_the_disk_to_tell_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda *_: pytest.fail("once a second, from the training thread"))
    progress = Progress(tmp_path, show="none")
    progress.step(session=0, epoch=0, loss=float("nan"))
    progress.write(force=True)
    assert json.loads((tmp_path / "progress.json").read_text(), parse_constant=pytest.fail)["loss"] is None
