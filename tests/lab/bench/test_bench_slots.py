"""Slots of a machine: taken by one run at a time, by whatever user and under whatever name."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from krt_core.errors import ConfigError
from krt_core.lab.bench.slots import Slots, find_slots, take

pytest_plugins = ("bench_world",)


def test_a_slot_is_taken_once_and_free_when_its_process_has_ended(machine):
    one, two = take(machine, 1), take(machine, 2)
    assert one.names == ("0",) and two.names == ("1", "2") and take(machine, 1) is None
    two.close()
    assert take(machine, 3) is None  # all or none: the two free ones are not kept
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=one.descriptors)
    one.close()
    assert "0" not in take(machine, 2).names  # the process holds it
    process.kill()
    process.wait()
    held = take(machine, 1)
    assert held.names == ("0",)
    with pytest.raises(ConfigError, match="asks for 4 cpu slots, this machine has 3"):
        take(machine, 4)


def test_threads_do_not_depend_on_what_is_done(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("krt_core.machine.cluster.QUOTA", Path("nowhere"))
    assert find_slots().names == tuple("01234567") and find_slots().threads == 1
    assert find_slots(at_most=2).threads == 4 and find_slots(workers=3).threads == 2
    assert find_slots(workers=3).environment(("1",)) == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}


@pytest.fixture
def cores(monkeypatch, machine):
    """A machine without GPUs whose cores this process may use can be chosen."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("krt_core.machine.cluster.QUOTA", Path("nowhere"))
    return lambda *numbers: monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(numbers))


def test_shares_of_the_cores_are_locked_core_by_core(cores):
    cores(0, 1)
    held = take(find_slots(), 2)
    cores(6, 7)
    assert find_slots().names == ("6", "7")
    other = take(find_slots(), 1)  # of other cores
    assert other.names == ("6",)
    cores(0, 1, 2, 3, 6, 7)
    assert find_slots(workers=3).names == ("0-1", "2-3", "6-7")
    assert take(find_slots(workers=3), 2) is None and take(find_slots(workers=3), 1).names == ("2-3",)
    held.close()
    assert take(find_slots(workers=3), 2).names == ("0-1", "2-3")
    other.close()


def test_more_runs_than_cores_may_be_asked_for(cores):
    cores(0, 1)
    slots = find_slots(workers=3, at_most=8)
    assert slots.names == ("0", "1", "0+1") and take(slots, 3)


def test_slots_do_not_depend_on_where_temporary_files_go(tmp_path, monkeypatch, machine):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "mine"))
    with take(machine, 3):
        monkeypatch.setenv("TMPDIR", str(tmp_path / "another"))
        assert take(machine, 1) is None
    monkeypatch.delenv("KRT_SLOTS")
    lock = take(Slots("cpu", ("of a test",), 1), 1)
    assert lock.files[0].name == "/tmp/krt-slots/cpu-of a test"
    lock.close()


def test_every_user_can_take_a_slot_whatever_the_umask(tmp_path, machine):
    before = os.umask(0o077)
    try:
        take(machine, 1).close()
    finally:
        os.umask(before)
    folder = tmp_path / "krt-slots"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / "cpu-0").stat().st_mode) == 0o444


def test_a_lock_of_another_user_that_cannot_be_opened_is_named(tmp_path, machine, monkeypatch):
    take(machine, 1).close()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("krt_core.lab.bench.slots._open", refuse)
    owner = (tmp_path / "krt-slots" / "cpu-0").owner()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/krt-slots/cpu-0, which belongs to {owner}, .*KRT_SLOTS"):
        take(machine, 1)


# ---- GPUs ----

LISTED = """GPU 0: NVIDIA A100 (UUID: GPU-aa11)
  MIG 3g.20gb     Device  0: (UUID: MIG-cc33)
GPU 1: NVIDIA A100 (UUID: GPU-bb22)
"""


@pytest.fixture
def gpus(monkeypatch, tmp_path, machine):
    """A machine with two GPUs; sets what of them is named, and what nvidia-smi does."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(named=None, script=f"cat <<END\n{LISTED}END\n"):
        tool.write_text(f"#!/bin/sh\n{script}")
        tool.chmod(0o755)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        return find_slots()

    return make


def test_gpus_are_locked_by_their_uuid(gpus):
    slots = gpus()
    assert slots.names == ("0", "1") and slots.environment(("1",))["CUDA_VISIBLE_DEVICES"] == "1"
    assert slots.environment(("1",))["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # as nvidia-smi counts, which the locks go by
    held = take(slots, 1)
    assert held.names == ("0",)
    for named in ("GPU-aa11,GPU-bb22", "0, 1", "GPU-aa,GPU-b", "0,,1,"):
        slots = gpus(named)
        taken = take(slots, 1)
        assert taken.names == (slots.names[1],) and slots.names[1].strip() == slots.names[1], named
        assert len(slots.names) == 2 and take(slots, 1) is None
        taken.close()
    assert take(gpus("MIG-cc33"), 1)


@pytest.mark.parametrize("named", ["0,1,2,3", "GPU-dd", "GPU-", "0,0", "0,GPU-aa", "MIG-dd", "a"])
def test_a_gpu_that_is_not_there_is_refused(gpus, named):
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES=.* lists:\nGPU 0: NVIDIA"):
        gpus(named)


def test_a_gpu_tool_that_fails_is_told(gpus, monkeypatch):
    with pytest.raises(ConfigError, match="nvidia-smi -L, which .* does not work"):
        gpus(script="exit 9")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=7, but CUDA sees no such GPU"):
        gpus("7")
    assert gpus("").kind == gpus("-1").kind == "cpu"
