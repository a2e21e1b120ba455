"""Variables that a cluster leaves behind, cores of the job, devices by name."""

import os
import subprocess
import sys
import time

import pytest
import torch

from krt_core.errors import ConfigError
from krt_core.launch import launch
from krt_core.machine import cluster
from krt_core.machine.cluster import Place, cores, place
from krt_core.machine.device import choose_runtime, named_device

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def write(**given):
        for name, text in given.items():
            monkeypatch.setenv(name, text)

    return write


WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


def test_torchrun_s_variables_are_read(variables):
    assert place() == Place()
    variables(**WHOLE)
    assert place() == Place(1, 2, 1, 2, "here:29500")


@pytest.mark.parametrize(
    "given",
    [{"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "3"}, {"RANK": "0"},
     {"MASTER_ADDR": "x", "MASTER_PORT": "y"}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "PMI_RANK": "3"}],
)  # fmt: skip
def test_what_says_that_it_is_alone_is_alone(variables, given):
    variables(**given)
    assert place() == Place()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"), ({"WORLD_SIZE": "x"}, "WORLD_SIZE"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"), ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE"), ({"RANK": "1"}, "RANK"),
        ({"RANK": "x"}, "RANK"), ({**WHOLE, "RANK": "2"}, "RANK"), ({**WHOLE, "RANK": ""}, "RANK"),
        ({**WHOLE, "MASTER_ADDR": ""}, "MASTER_ADDR"), ({**WHOLE, "MASTER_PORT": ""}, "MASTER_PORT"),
        ({**WHOLE, "MASTER_PORT": "http"}, "MASTER_PORT"), ({**WHOLE, "MASTER_PORT": "99999"}, "MASTER_PORT"),
        ({**WHOLE, "MASTER_PORT": "0"}, "MASTER_PORT='0' must be a whole number from 1 to 65535"),
        ({**WHOLE, "LOCAL_RANK": "x"}, "LOCAL_RANK"),
    ],
)  # fmt: skip
def test_a_variable_that_does_not_fit_is_named(variables, given, named):
    variables(**given)
    for ask in (place, lambda: choose_runtime("float32", "cpu")):
        with pytest.raises(ConfigError, match=rf"\b{named}\b.*unset it"):
            ask()


def krt(*arguments, **variables):
    environment = {key: text for key, text in os.environ.items() if key not in VARIABLES} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "krt_core.cli", *arguments], env=environment, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_process_that_waits_for_others_says_for_whom(tiny, tmp_path):
    (tmp_path / "mine.yaml").write_text(tiny().to_yaml())
    waiting = krt("train", str(tmp_path / "mine.yaml"), WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT="29683")  # fmt: skip
    began = time.monotonic()
    try:
        for line in waiting.stderr:
            if "waits for 1 more of 2 processes at 127.0.0.1:29683 (WORLD_SIZE=2" in line:
                break
        else:
            pytest.fail("no line")
        assert time.monotonic() - began < 60
    finally:
        waiting.kill()
        waiting.wait()


def test_a_rank_left_behind_silences_no_error(tmp_path):
    said = krt("train", "digits_demo", "train.epoch=1", WORLD_SIZE="2", RANK="5").communicate()[1]
    assert "Did you mean 'epochs'" in said


def test_cores_are_those_of_the_job(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6, 7})
    monkeypatch.setattr(cluster, "QUOTA", tmp_path / "cpu.max")
    assert cores() == [3, 5, 6, 7]
    for text, count in (("max 100000\n", 4), ("200000 100000\n", 2), ("50000 100000", 1), ("nonsense", 4)):
        (tmp_path / "cpu.max").write_text(text)
        assert len(cores()) == count, text


def test_processes_share_the_cores_of_the_job(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cluster, "QUOTA", tmp_path / "none")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = {}

    def follow(minder, command, environment):
        seen.update(environment)
        return 1, []

    monkeypatch.setattr("krt_core.launch._follow", follow)
    with pytest.raises(Exception, match="exit code 1"):
        launch(tiny(), processes=4)
    assert seen["OMP_NUM_THREADS"] == "2"


NOWHERE = (
    "gpu", "0", "cuda:7", "mps", "cuda", "cuda:-1", "CUDA", "cuda:", "xpu", "meta", "cpu:1", "cuda:0,1", "cuda:x",
    "tpu", "nvidia", 0, "gpu:0", "cuda 0", "²",
)  # fmt: skip


@pytest.mark.parametrize("name", NOWHERE)
def test_a_device_that_is_not_here_is_named_with_those_that_are(name, monkeypatch, tiny):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"no device '{name}' here; there is cpu\."):
        named_device(name)
    with pytest.raises(ConfigError, match="no device"):
        launch(tiny(), device=str(name), processes=2)


def test_devices_that_are_here_go_by_several_names(monkeypatch):
    assert named_device(None) is named_device("") is None
    assert named_device("CPU") == named_device(" cpu:0 ") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert named_device("gpu") == named_device("CUDA") == torch.device("cuda")
    assert named_device("1") == named_device("gpu:1") == named_device(1) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="no device 'cuda:2' here; there is cpu, cuda:0, cuda:1"):
        named_device("cuda:2")
