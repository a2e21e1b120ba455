"""Trainings in the background and the view that starts, watches and stops them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from matplotlib.figure import Figure

from krt_core.errors import ConfigError, RunError
from krt_core.lab.explorers import background
from krt_core.lab.explorers import training as view_module
from krt_core.lab.explorers.background import PROCESS, TRAINING, find, start, stop
from krt_core.lab.explorers.poller import Poller
from krt_core.lab.explorers.training import TrainingView
from krt_core.lab.figures.training import training_progress
from krt_core.runs.folder import Run
from krt_core.session import train


def of_test(home) -> list[int]:
    """Ids of the processes that a test has begun in the background."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TRAINING, "").startswith(str(home)):
                found.append(process.pid)
        except psutil.Error:
            pass
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(home, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    for thread in threading.enumerate():
        if isinstance(thread, Poller):
            thread.end()
    for pid in of_test(home):
        os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def lines(folder) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture
def pretend(monkeypatch):
    """Trainings that do nothing but sleep, so that what is around them can be tried in no time."""
    code = "import time, sys; print('begun', flush=True); time.sleep(60)"

    def use(code=code):
        original = subprocess.Popen

        def popen(command, **options):
            if "krt_core.cli" in command:
                command = [sys.executable, "-c", code]
            return original(command, **options)

        monkeypatch.setattr(subprocess, "Popen", popen)

    use()
    return use


# ---- processes ----


def test_one_training_at_a_time_and_none_left(tiny, home, pretend):
    folder = home / "run"
    assert find(folder) is None and not stop(folder)
    training = start(tiny(), folder, device="cpu")
    assert find(folder) == training and training.own and training.device == "cpu"
    assert os.getsid(training.pid) == training.pid != os.getsid(0)  # neither the kernel's group nor its terminal
    with pytest.raises(RunError, match=f"trained already .process {training.pid}.*wait for it or stop it"):
        start(tiny(), folder)
    with pytest.raises(RunError, match="holds another experiment"):
        start(tiny(seed=1), folder)
    assert stop(folder) and find(folder) is None and not of_test(home)
    assert not (folder / PROCESS).exists() and not background.failed(folder)


def test_what_does_not_listen_is_killed_with_its_children(tiny, home, pretend):
    pretend(
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True);"
        "print('ready', flush=True); time.sleep(60)"
    )
    folder = home / "run"
    start(tiny(), folder)
    wait_for(lambda: background.last_words(folder) == "ready")
    (folder / ".resume.pt.x.tmp").write_bytes(b"half")
    assert len(of_test(home)) == 2
    assert stop(folder, grace=0.3) and not of_test(home) and not list(folder.glob(".*.tmp"))


def test_a_stale_record_is_not_taken_for_a_training(tiny, home, pretend):
    folder = home / "run"
    training = start(tiny(), folder)
    record = json.loads((folder / PROCESS).read_text())
    assert set(record) == {"pid", "create_time", "host", "device"}
    stop(folder)
    for changed in ({"pid": os.getpid()}, {"pid": training.pid}):  # the number is another process's now, or nobody's
        (folder / PROCESS).write_text(json.dumps({**record, **changed}))
        assert find(folder) is None and background.failed(folder) and not stop(folder)  # which would end this test
    (folder / PROCESS).write_text("{half")
    assert find(folder) is None


def test_a_training_on_another_machine_counts_while_it_gives_signs(tiny, home):
    folder = Run.create(tiny(), home / "run").folder
    record = {"pid": 1, "create_time": 1.0, "host": "elsewhere", "device": None}
    (folder / PROCESS).write_text(json.dumps(record))
    assert find(folder).host == "elsewhere"
    with pytest.raises(RunError, match="process 1 on elsewhere.*stop it where it was started"):
        stop(folder)
    with pytest.raises(RunError, match="trained already"):
        start(tiny(), folder)
    os.utime(folder / PROCESS, (1, 1))
    assert find(folder) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/locks")
def test_a_training_started_elsewhere_is_found_by_its_lock_and_left_alone(tiny, home):
    run = Run.create(tiny(), home / "run")
    with run.lock():
        training = find(run.folder)
        assert training.pid == os.getpid() and not training.own
        with pytest.raises(RunError, match="not started from here"):
            stop(run.folder)
    assert find(run.folder) is None


# ---- the view ----


def test_the_queue_starts_one_after_another(tiny, home, pretend):
    pretend("import time; time.sleep(1)")
    view = TrainingView([tiny(seed=s) for s in (0, 1, 2)], "outputs/demo")
    start_all, _, first, _, third = view.buttons
    assert list(view.table().state) == ["waiting"] * 3 and view.table()["mAP seen (%)"].isna().all()
    began = time.monotonic()
    start_all.click()
    assert time.monotonic() - began < 1
    most = 0

    def over():
        nonlocal most
        states = list(view.table().state)
        most = max(most, len(of_test(home)))
        return states == ["failed"] * 3  # as nothing was trained

    wait_for(lambda: third.description == "Cancel")
    wait_for(over, 30)
    wait_for(lambda: view.message.value == "3 failed", 10)
    assert most == 1 and first.description == "Try again" and "Try again: krt, seed 0" in first.tooltip
    assert "ended without a word" in view.notes.value
    view.close()
    assert not view._poller.is_alive() and first.disabled
    with pytest.raises(RunError, match="closed"):
        view.start_all()


def test_two_at_once_cancel_and_stop_all(tiny, home, pretend):
    view = TrainingView([tiny(seed=s) for s in range(4)], "outputs/demo", at_once=2)
    view.start_all()
    wait_for(lambda: list(view.table().state) == ["running", "running", "queued", "queued"])
    wait_for(lambda: view.buttons[5].description == "Cancel")
    view.buttons[5].click()
    assert list(view.table().state)[3] == "waiting"
    drawn = view.picture.drawn
    view.buttons[1].click()
    wait_for(lambda: not of_test(home))
    wait_for(lambda: "4 waiting" in view.message.value)  # none of them had come to anything
    assert view.picture.drawn <= drawn + 1


def test_a_new_view_takes_over_the_old_ones_queue(tiny, home, pretend):
    experiments = [tiny(seed=s) for s in (0, 1, 2)]
    old = TrainingView(experiments, "outputs/demo")
    old.start_all()
    wait_for(lambda: find(old.rows[0].folder))
    new = TrainingView(experiments, "outputs/demo")
    assert not old._poller.is_alive() and old.buttons[0].disabled and "newer view" in old.message.value
    assert list(new.table().state) == ["running", "queued", "queued"]
    assert [t.view for t in threading.enumerate() if isinstance(t, Poller)] == [new]
    new.widget.close()
    new._poller.look.set()
    wait_for(lambda: not new._poller.is_alive(), 10)
    assert find(new.rows[0].folder)  # the training itself goes on


def test_a_refused_start_and_wrong_numbers_are_said(tiny, home, pretend):
    view = TrainingView([tiny()], "outputs/demo")
    Run.create(tiny(seed=7), view.rows[0].folder)
    view.start_all()
    wait_for(lambda: "holds another experiment" in view.notes.value)
    assert list(view.table().state) == ["failed"] and "holds another" in view.table().note[0]
    with pytest.raises(ConfigError, match="at_once must be at least 1"):
        TrainingView([tiny()], at_once=0)
    with pytest.raises(RunError, match="No training is done yet"):
        view.finished()


def test_headless_it_shows_table_and_figure(tiny, home, monkeypatch):
    shown = []
    monkeypatch.setattr(view_module, "display", shown.append)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    view = TrainingView([tiny(), tiny(method="finetune")], "outputs/demo")
    view._ipython_display_()
    assert list(shown[0].run) == ["krt, seed 0", "finetune, seed 0"] and isinstance(shown[1], Figure)
    assert view._poller is None
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    view._ipython_display_()
    assert shown[2] is view.widget and view._poller.is_alive()


def test_begin_watches_in_a_live_notebook_and_else_trains_here(tiny, home, monkeypatch):
    shown = []
    monkeypatch.setattr(view_module, "display", shown.append)
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    view = TrainingView([tiny(train__epochs=1, method=m) for m in ("finetune", "joint")], "outputs/demo")
    view.begin(watch=True)
    assert shown == [view] and not list(home.glob("outputs/demo/runs/*"))
    monkeypatch.delenv("JPY_SESSION_NAME")
    view.begin(watch=True)
    assert [run.experiment.method for run in view.finished()] == ["finetune", "joint"] and len(shown) == 1


def test_progress_of_runs_in_every_state(tiny, home):
    assert "no epoch" in training_progress([]).get_suptitle()
    begun = Run.create(tiny(seed=1), home / "begun")
    done = train(tiny(train__evaluate_every=1), show="none")
    short = train(tiny(seed=2, train__epochs=1, method="joint"), show="none")
    partly = Run.create(tiny(seed=3), home / "partly")
    partly.append_epoch({"session": 0, "epoch": 0, "loss": 3.0, "images_per_second": 1.0})
    partly.write_json("progress.json", {"session": 0, "sessions": 4, "epoch": 1, "epochs": 2})
    loss, mean_ap = training_progress([begun, done, partly]).axes
    assert [len(line.get_xdata()) for line in loss.lines[:3]] == [0, 4, 1]
    assert loss.get_xlim()[1] > 8 and "seen classes (%)" in mean_ap.get_ylabel() and "epoch" in mean_ap.get_xlabel()
    after = mean_ap.lines[3]
    np.testing.assert_allclose(after.get_ydata(), done.curve())
    assert list(after.get_xdata()) == [2, 4] and after.get_markersize() > mean_ap.lines[2].get_markersize()
    separators = [line for line in loss.lines[3:] if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in separators] == [2.5, 4.5, 6.5]
    assert training_progress([done, short]).axes[1].get_xlabel() == "session"  # two epochs each and one


# ---- real trainings ----


@pytest.mark.slow
def test_start_stop_resume_equals_an_uninterrupted_run(tiny, home, tmp_path):
    experiment = tiny(train__epochs=25, replay__per_class=2)
    view = TrainingView([experiment], "outputs/demo")
    folder, button = view.rows[0].folder, view.buttons[2]
    button.click()
    wait_for(lambda: lines(folder) >= 3)
    assert view.table().state[0] == "running" and view.table().session[0] == "1/2"
    again = TrainingView([experiment], "outputs/demo")  # as after a restart of the kernel
    line = again.table().iloc[0]
    assert line.state == "running" and line["images/s"] > 0
    again._watch()
    button = again.buttons[2]
    wait_for(lambda: button.description == "Stop")
    button.click()
    wait_for(lambda: again.table().state[0] == "stopped")
    assert not of_test(home) and 3 <= lines(folder) < 50 and not list(folder.rglob("*.tmp"))
    assert "interrupted: start the same experiment again" in (folder / "log.txt").read_text()
    wait_for(lambda: button.description == "Resume")
    button.click()
    wait_for(lambda: again.table().state[0] == "done")
    wait_for(lambda: button.description == "Done" and button.disabled)
    assert "continuing at" in (folder / "log.txt").read_text() and not of_test(home)
    assert again.table().session[0] == "2/2" and again.finished()[0].folder == folder
    assert again.picture.png.startswith(b"\x89PNG") and again.picture.drawn > 1
    whole, parts = train(experiment, tmp_path / "whole", show="none"), Run(folder)
    for t in range(2):
        a, b = whole.model_state(t), parts.model_state(t)
        assert all(torch.equal(a[k], b[k]) for k in a) and (whole.scores(t).scores == parts.scores(t).scores).all()
    assert [e["loss"] for e in whole.epochs] == [e["loss"] for e in parts.epochs]
    assert start(experiment, folder) is None and again.table()["mAP seen (%)"][0] == round(whole.curve()[-1], 2)


@pytest.mark.slow
def test_a_training_that_fails_says_why_and_one_in_two_processes_is_stopped(tiny, home):
    experiments = [tiny(train__base_lr=1e30), tiny(train__epochs=200)]
    view = TrainingView(experiments, "outputs/demo", processes=2)
    background.start(experiments[0], view.rows[0].folder)
    wait_for(lambda: view.table().state[0] == "failed")
    assert "loss became no finite number" in view.table().note[0] and "lower train.base_lr" in view.table().note[0]
    view.start(view.rows[1])
    wait_for(lambda: "loss became no finite number" in view.notes.value)
    folder = view.rows[1].folder
    wait_for(lambda: lines(folder) >= 1)
    assert len(of_test(home)) >= 4  # krt, torchrun and two of it
    view.stop_all()
    wait_for(lambda: view.table().state[1] == "stopped")
    assert not of_test(home) and not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_a_training_outlives_the_kernel_that_started_it(tiny, home):
    experiment = tiny(train__epochs=100)
    (home / "e.yaml").write_text(experiment.to_yaml())
    code = (
        "import os, sys; from krt_core.lab.explorers.background import start;"
        "from krt_core.config import load_experiment;"
        "start(load_experiment(sys.argv[1]), sys.argv[2]); os.kill(os.getpid(), 9)"
    )
    folder = home / "run"
    subprocess.run([sys.executable, "-c", code, str(home / "e.yaml"), str(folder)], check=False)
    assert find(folder)
    wait_for(lambda: lines(folder) >= 2)
    (folder / PROCESS).unlink()  # as if the kernel had died before it wrote this
    assert find(folder).own and stop(folder) and not of_test(home)


def test_a_run_of_a_newer_version_hides_no_other(tiny, home):
    experiments = [tiny(train__epochs=1, method="finetune"), tiny(method="joint")]
    view = TrainingView(experiments, "outputs")
    done, newer = (row.folder for row in view.rows)
    train(experiments[0], done, show="none")
    Run.create(experiments[1], newer)
    (newer / "environment.json").write_text('{"versions": {"krt-core": "99.1.0"}}')
    assert [run.folder for run in view.finished()] == [done] and view.figure().axes
    table = view.table()
    assert table["state"].tolist() == ["done", "failed"] and "was written by version 99.1.0" in table["note"][1]
