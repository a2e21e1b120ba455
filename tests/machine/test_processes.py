"""Processes that are found by the mark they carry, and end with their parent or outlive it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from krt_core.machine.processes import MARK, PARENT, SHARED, TRAINING, Minder, end_child, lives

SLEEPS = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)\n"
STARTS = """
import subprocess, sys
from krt_core.machine.processes import Minder
child = Minder(sys.argv[1]).start("sleeps", output=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
STOPS_AS_KRT = """
import sys, time
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Modules that a process can run."""
    for name, text in {"sleeps": SLEEPS, "deaf": DEAF, "stops": STOPS_AS_KRT}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
def minder(tmp_path):
    minder = Minder(tmp_path)
    yield minder
    minder.end(grace=0)


def start(minder, module, *arguments, **options):
    """Start a module and wait until it is up."""
    process = minder.start(module, *arguments, output=subprocess.PIPE, **options)
    assert process.stdout.readline() == b"up\n"
    return process


def gone(pid, seconds=5):
    deadline = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}/exe"):  # a zombie has none
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_all_of_a_mark_end_and_none_of_another(minder, tmp_path):
    start(minder, "sleeps")
    start(minder, "deaf")
    other, training = Minder(f"{tmp_path} other"), Minder(tmp_path, TRAINING)
    start(other, "sleeps")
    assert len(minder.processes()) == 2 and len(other.processes()) == 1 and not training.processes()
    assert minder.end(grace=0.5) == (2, 1, []) and not minder.processes()
    assert len(other.processes()) == 1 and other.end() == (1, 0, []) and other.end() == (0, 0, [])


def test_what_a_process_starts_itself_carries_the_mark_it_has_adopted(tmp_path, monkeypatch):
    for variable in (MARK, PARENT):
        monkeypatch.setenv(variable, "")  # so that they are gone after the test
    Minder(tmp_path).adopt()
    child = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE)
    child.stdout.readline()
    assert [p.pid for p in Minder(tmp_path).processes()] == [child.pid] and os.environ[PARENT] == str(os.getpid())
    assert Minder(tmp_path).end().asked == 1 and child.wait() is not None


def test_a_process_dies_with_its_parent(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert gone(pid)


def test_a_process_whose_parent_is_gone_does_not_start(monkeypatch, capfd):
    monkeypatch.setenv(PARENT, "1234567")
    command = [sys.executable, "-m", "krt_core.machine.processes", "this"]
    assert subprocess.run(command, timeout=20).returncode == 1 and not capfd.readouterr().out


def test_one_with_a_record_is_asked_to_end_as_by_ctrl_c(tmp_path, monkeypatch):
    record, minder = tmp_path / "process.json", Minder(tmp_path, TRAINING)
    for code, stays in ((130, False), (2, True)):
        record.touch()
        process = start(minder, "stops", str(code), record=record)
        assert os.getsid(process.pid) == process.pid
        process.send_signal(signal.SIGTERM)  # by whomever
        assert process.wait(10) == code and record.exists() == stays


def test_one_with_a_record_outlives_who_started_it_and_belongs_to_no_job(tmp_path, monkeypatch):
    for variable in (MARK, SHARED, PARENT):
        monkeypatch.setenv(variable, "1234567")
    minder = Minder(tmp_path, TRAINING)
    start(minder, "sleeps", record=tmp_path / "process.json")
    (process,) = minder.processes()
    assert not {MARK, SHARED, PARENT} & process.environ().keys()
    assert minder.end().asked == 1


def test_one_child_is_asked_then_killed(minder):
    for module, code in (("sleeps", -signal.SIGTERM), ("deaf", -signal.SIGKILL)):
        process = start(minder, module)
        end_child(process, grace=0.5)
        assert process.returncode == code


def test_a_number_that_another_process_has_now_is_not_it(minder):
    process = start(minder, "sleeps")
    (found,) = minder.processes()
    assert lives(process.pid, found.create_time()) and not lives(process.pid, found.create_time() - 5)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from now on, until it is waited for
    assert gone(process.pid) and not lives(process.pid, found.create_time())
    process.wait()
    assert not lives(process.pid, found.create_time())
