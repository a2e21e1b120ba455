"""Locks: one holder at a time, free when it is killed, and a file system that has none is named by whoever meets it."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.data.digits import make
from krt_core.data.pipeline import ImageStore
from krt_core.errors import ConfigError, RunError
from krt_core.lab.bench.matrix import Job
from krt_core.lab.bench.slots import Slots, take
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.explorers import background
from krt_core.machine.locks import holder, is_locked, only_one, try_lock
from krt_core.runs.folder import Run

HOLDS = """
import sys, time
from krt_core.machine.locks import only_one
with only_one(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path/lock."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_lets_go(tmp_path, other):
    path = tmp_path / "lock"
    with pytest.raises(RunError, match="taken"), only_one(path, RunError("taken")):
        pytest.fail("two hold it")
    with path.open() as file:
        assert not try_lock(file)
    assert is_locked(path) and not is_locked(tmp_path / "another")
    if sys.platform.startswith("linux"):
        assert holder(path) == other.pid
    threading.Timer(0.3, other.kill).start()
    began = time.monotonic()
    with only_one(path):  # waits
        assert 0.1 < time.monotonic() - began < 10
    assert path.exists() and not is_locked(path) and holder(path) is None


def test_the_lock_of_an_open_file_is_handed_on(tmp_path):
    path = tmp_path / "lock"
    with path.open("a") as file:
        assert try_lock(file)
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        process = subprocess.Popen(command, pass_fds=[file.fileno()])
    assert is_locked(path)  # though this process has closed it
    process.kill()
    process.wait()
    assert not is_locked(path)


def test_those_who_look_do_not_see_one_another(tmp_path, monkeypatch):
    path, seen = tmp_path / "lock", []
    path.touch()
    import fcntl

    real = fcntl.flock

    def look(file, how):
        real(file, how)
        monkeypatch.setattr(fcntl, "flock", real)
        seen.append(is_locked(path))  # another one, while the first looks

    monkeypatch.setattr(fcntl, "flock", look)
    assert not is_locked(path) and seen == [False]


def test_only_one_at_a_time(tmp_path):
    """Many threads through one lock: none meets another, and the file is there afterwards for the next."""
    inside, most = [], []

    def work():
        for _ in range(5):
            with only_one(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20 and max(most) == 1 and (tmp_path / "lock").exists()


# ---- a file system without locks ----


def a_run(tmp_path, tiny, coco_root):
    with Run.create(tiny(), tmp_path / "run").lock():
        pass


def a_training(tmp_path, tiny, coco_root):
    background.start(tiny(), tmp_path / "run")


def the_image_cache(tmp_path, tiny, coco_root):
    ImageStore(open_dataset(Data(dataset="coco", root=str(coco_root)), "train"), 32)


def the_digits(tmp_path, tiny, coco_root):
    make(tmp_path / "data" / "digits")


def a_slot(tmp_path, tiny, coco_root):
    take(Slots("cpu", ("0",), 1), 1)


def a_job(tmp_path, tiny, coco_root):
    JobFiles(tmp_path, Job("job", "group", "02_train_sessions", {}, str(tmp_path / "run"))).lock()


def a_look_at_a_job(tmp_path, tiny, coco_root):
    files = JobFiles(tmp_path, Job("job", "group", "02_train_sessions", {}, str(tmp_path / "run")))
    files.folder.mkdir(parents=True)
    (files.folder / "lock").touch()
    files.current()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize(
    ("user", "file"),
    [
        (a_run, r"run/\.lock"), (a_training, r"run/\.start\.lock"), (the_image_cache, r"cache/images-.*\.lock"),
        (the_digits, r"data/\.digits\.lock"), (a_slot, "krt-slots/cpu-0"), (a_job, "jobs/job/lock"),
        (a_look_at_a_job, "jobs/job/lock"),
    ],
)  # fmt: skip
def test_a_file_system_without_locks_is_named(tmp_path, tiny, coco_root, monkeypatch, user, file, code):
    def without(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setenv("KRT_SLOTS", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", without)
    with pytest.raises(ConfigError, match=rf"/{file} cannot be locked \({os.strerror(code)}\).*-o flock.*KRT_HOME"):
        user(tmp_path, tiny, coco_root)


def test_a_lock_file_that_cannot_be_opened_is_another_matter(tmp_path):
    with pytest.raises(IsADirectoryError) as caught, only_one(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path)
