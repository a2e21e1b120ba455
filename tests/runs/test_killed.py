"""What a process that was killed leaves behind: nothing in the way, nothing for ever, nothing that is taken for more
than it is. `benchmarks.torture` kills for real; here is each thing that it found."""

import fcntl
import os
import random
import shutil
import threading

import numpy as np
import pytest
import torch
from grow_world import annotated
from interrupted import stopped_after
from safetensors import safe_open

from krt_core.data import open_dataset
from krt_core.data.store import ImageStore
from krt_core.lab.figures.figure import new_figure, save
from krt_core.learn import Learner
from krt_core.machine.home import atomic_write, sweep
from krt_core.methods.finetune import Finetune
from krt_core.runs.files import write_tensors
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.tagger.extend import extend

pytest_plugins = ("grow_world",)
QUICK = dict(method="finetune", train__epochs=3, train__evaluate_every=0)


# ---- files that were half written ----


def test_half_a_file_is_swept_up_by_who_writes_the_file_again(tmp_path):
    for name in (".a.json.0123abcd.tmp", ".b.json.0123abcd.tmp", ".a.json.4567abcd.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / ".a.json.4567abcd.tmp").open("rb") as held:  # somebody is at it
        fcntl.flock(held, fcntl.LOCK_EX)
        atomic_write(tmp_path / "a.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".a.json.4567abcd.tmp", ".b.json.0123abcd.tmp"}


def test_nobody_is_disturbed_by_who_sweeps(tmp_path):
    over = threading.Event()

    def sweeping():
        while not over.is_set():
            sweep(tmp_path, deep=True)

    threads = [threading.Thread(target=sweeping) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(300):
            atomic_write(tmp_path / f"{i % 3}.txt", str(i), flush=False)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["297", "298", "299"]


def test_a_training_sweeps_up_its_folder(tiny, tmp_path):
    experiment = tiny(**QUICK)
    with stopped_after(1, 1):
        train(experiment, tmp_path / "run", show="none")
    left = tmp_path / "run" / ".resume.pt.0123abcd.tmp", tmp_path / "run" / "session_00" / ".ap.npz.0123abcd.tmp"
    for path in left:
        path.write_bytes(b"half")
    train(experiment, tmp_path / "run", show="none")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_resume_file_does_not_outlive_the_run(tiny, tmp_path, monkeypatch):
    """Half a gigabyte, where a start is killed between the last session and DONE."""

    def killed(self):
        if self.finished_sessions == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "clear_resume", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(**QUICK), tmp_path / "run", show="none")
    monkeypatch.undo()
    monkeypatch.setenv("KRT_HOME", str(tmp_path))
    assert (tmp_path / "run" / "resume.pt").is_file()
    assert train(tiny(**QUICK), tmp_path / "run", show="none").done
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_what_is_learned_without_gradients_after_epochs_is_told_once(tiny, tmp_path, monkeypatch):
    """A start that breaks off between the line about it and the end of its session."""
    experiment = tiny(**{**QUICK, "method": "ridge", "model__freeze": "first"})
    whole = [(e["session"], e["epoch"], e.get("loss")) for e in train(experiment, tmp_path / "a", show="none").epochs]
    assert [line[:2] for line in whole] == [(0, 0), (0, 1), (0, 2), (0, 0), (1, 0)]

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_session", broken)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "b", show="none")
    monkeypatch.undo()
    monkeypatch.setenv("KRT_HOME", str(tmp_path))
    again = train(experiment, tmp_path / "b", show="none")
    assert [(e["session"], e["epoch"], e.get("loss")) for e in again.epochs] == whole


def test_checksums_of_decoded_images_that_are_none_are_made_again(tiny, tmp_path):
    dataset = open_dataset(tiny().data, "train")
    ImageStore(dataset, 32)
    (sums,) = (tmp_path / "data" / "cache").glob("images-*.done")
    written = sums.read_bytes()
    sums.write_bytes(b"of a build by an older version that was killed as it was done")
    assert ImageStore(dataset, 32).rows(np.arange(3)).any() and sums.read_bytes() == written


def test_the_same_weights_are_the_same_bytes(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor([1], dtype=torch.int64)}
    about = {"format": "pt", "krt": '{"é": 1}', **{str(i): "x" for i in range(8)}}
    for i in range(4):
        write_tensors(tmp_path / f"{i}.safetensors", tensors, about)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(4)}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert about.items() <= file.metadata().items() and torch.equal(file.get_tensor("b"), tensors["b"])
        assert file.get_tensor("a").item() == 1


def test_the_same_figure_is_the_same_bytes(tmp_path, monkeypatch):
    for second in ("1", "2"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", second)  # what matplotlib takes for the date
        figure, axes = new_figure(2, 2)
        axes.plot([1, 2])
        save(figure, tmp_path / second, "loss")
    for kind in ("png", "pdf"):
        assert (tmp_path / "1" / f"loss.{kind}").read_bytes() == (tmp_path / "2" / f"loss.{kind}").read_bytes()


# ---- a run that was being grown ----


def test_a_folder_that_was_being_grown_is_made_from_its_beginning(own, march, tmp_path):
    """Of what was begun there after three sessions nothing is taken for part of a run after one."""
    run, folder = own("ridge"), tmp_path / "grown"
    whole = extend(run, march, folder=tmp_path / "whole", session=1, show="none")
    for session in range(3):
        shutil.copytree(run.session_folder(session), folder / f"session_{session:02d}")
    (folder / "growing").write_text(str(run.folder))
    new = extend(run, march, folder=folder, session=1, show="none")
    assert new.finished_sessions == 2 == whole.finished_sessions and new.protocol.name == whole.protocol.name
    assert torch.equal(*(one.model_state(1)["heads.1.weight"] for one in (new, whole)))


def test_the_mark_of_growing_does_not_outlive_it(own, march):
    run = own("ridge")
    new = extend(run, march, show="none")
    before = (new.folder / "DONE").stat().st_mtime_ns
    (new.folder / "growing").write_text(str(run.folder))  # killed between the configuration and the mark's removal
    assert extend(run, march, show="none").folder == new.folder and not (new.folder / "growing").exists()
    assert (new.folder / "DONE").stat().st_mtime_ns == before


def test_half_a_mark_is_in_nobodys_way(own, march, tmp_path):
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown" / ".growing.0123abcd.tmp").write_text("/ho")
    assert extend(own("ridge"), march, folder=tmp_path / "grown", show="none").done


@pytest.mark.parametrize(("method", "replay"), [("ridge", {}), ("krt", {"replay__per_class": 2})], ids=["ridge", "krt"])
def test_a_grown_run_is_finished_though_it_was_killed_as_its_last_session_was(own, march, monkeypatch, method, replay):
    run = own(method, **replay)
    done = Run.write_done

    def killed(self, summary):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_done", killed)
    with pytest.raises(KeyboardInterrupt):
        extend(run, march, show="none")
    monkeypatch.setattr(Run, "write_done", done)
    assert extend(run, march, show="none").done


# ---- what is random ----


def drawn():
    """What whoever draws now would get, from each source; none of them moves on."""
    with torch.random.fork_rng(devices=()):
        by_torch = torch.rand(2).tolist()
    by_numpy, by_python = np.random.get_state(), random.getstate()
    found = by_torch, np.random.rand(2).tolist(), random.random()
    np.random.set_state(by_numpy)
    random.setstate(by_python)
    return found


def disturb():
    """A process with another history."""
    seed = int.from_bytes(os.urandom(4), "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.mark.parametrize("augment", ["published", "light"])
def test_what_a_step_sees_follows_from_seed_session_epoch_and_step(tiny, tmp_path, monkeypatch, augment):
    """Images, their pixels, labels and whatever is drawn (dropout, a transform of one's own), not what ran before."""
    seen, place = {}, []
    epoch, loss, start = Learner.epoch, Learner._loss, Finetune.start_session

    def noted(self, store, seed, *arguments):
        place[:] = [seed, 0]
        return epoch(self, store, seed, *arguments)

    def looked(self, batch):
        made = batch.rows.tolist(), batch.images.double().sum().item(), batch.labels.tolist(), drawn()
        assert seen.setdefault((where, *place), made) == made
        place[1] += 1
        torch.rand(3)  # as dropout would
        return loss(self, batch)

    def started(self, context):
        at = where, context.session.index
        assert seen.setdefault(at, drawn()) == drawn()
        start(self, context)

    monkeypatch.setattr(Learner, "epoch", noted)
    monkeypatch.setattr(Learner, "_loss", looked)
    monkeypatch.setattr(Finetune, "start_session", started)
    experiment = tiny(**QUICK, train__augment=augment, replay__per_class=2)
    where = "here"
    train(experiment, tmp_path / "whole", show="none", device="cpu")
    made = len(seen)
    for at in ((0, 0), (0, 2), (1, 1)):
        disturb()
        with stopped_after(*at):
            train(experiment, tmp_path / "parts", show="none", device="cpu")
    disturb()
    train(experiment, tmp_path / "parts", show="none", device="cpu")
    assert len(seen) == made > 2 * 3 * 2  # each step again, and none that was not there before
    steps = [value[3] for key, value in seen.items() if len(key) == 3]
    assert len({str(one) for one in steps}) == len(steps)  # and each draws something else


def test_what_is_drawn_where_no_class_is_added_follows_from_the_seed_too(own, tmp_path, march, monkeypatch):
    run, more, found, start = own("finetune"), annotated(march, ("cat",)), [], Finetune.start_session
    monkeypatch.setattr(Finetune, "start_session", lambda self, context: (found.append(drawn()), start(self, context)))
    for name in ("one", "two"):
        disturb()
        extend(run, more, folder=tmp_path / name, show="none")
    assert len(found) == 2 and found[0] == found[1]
