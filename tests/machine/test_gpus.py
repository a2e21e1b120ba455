"""What is said where PyTorch cannot use a GPU that is there: machines are made up."""

import os
from types import SimpleNamespace

import pytest
import torch

from krt_core.errors import ConfigError
from krt_core.launch import launch
from krt_core.machine import device, gpus
from krt_core.machine.device import choose_runtime, environment, named_device
from krt_core.machine.gpus import check_processes, why_no_gpu
from krt_core.machine.processes import MARK

AROUND = {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"}
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
H100, V100 = "NVIDIA H100 80GB HBM3, 580.65.06, 9.0", "Tesla V100-SXM2-32GB, 580.65.06, 7.0"


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """No nvidia-smi, no driver, no GPU on the bus, nothing in the environment, and the pinned build of PyTorch."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(gpus, "MODULE", tmp_path / "module")
    monkeypatch.setattr(gpus, "PCI", tmp_path / "pci")
    for name in (gpus.VISIBLE, MARK, *AROUND, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch, "__version__", "2.15.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ARCHITECTURES)


@pytest.fixture
def smi(tmp_path):
    """An nvidia-smi that says this."""

    def write(says="", code=0, only=""):
        refuses = f'case "$1" in *{only}*) ;; *) echo no such field; exit 2;; esac\n' if only else ""
        path = tmp_path / "bin" / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{refuses}printf '%s\\n' '{says}'\nexit {code}\n")
        path.chmod(0o755)

    return write


@pytest.fixture
def cuda(monkeypatch):
    """A machine with so many GPUs that work."""

    def there(count, capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: "a GPU")
        monkeypatch.setattr(device, "set_tf32", lambda on: tf32.append(on))

    tf32 = []
    there.tf32 = tf32
    return there


def cuda_says(monkeypatch, words):
    def init():
        raise RuntimeError(words)

    monkeypatch.setattr(torch.cuda, "init", init)


def test_a_machine_without_a_gpu_goes_on_with_the_cpu(smi, monkeypatch):
    assert why_no_gpu() == "" and choose_runtime("float32").device.type == "cpu"
    smi("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.", 9)  # of a login node
    assert why_no_gpu() == ""
    smi("No devices were found", 6)
    gpus.MODULE.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05\n")
    assert why_no_gpu() == "" and choose_runtime("float32").device.type == "cpu"


@pytest.mark.parametrize(
    ("card", "torch_cuda", "said"),
    [
        ("NVIDIA A100-SXM4-40GB, 535.104.05, 8.0", "13.2", r"A100.*CUDA 13\.2, which needs driver 580.*is 535\.104"),
        ("NVIDIA A100-SXM4-40GB, 470.57.02, 8.0", "12.6", r"needs driver 525\.60 or newer; the driver here is 470\.57"),
        ("NVIDIA A100, 570.1, 8.0\nNVIDIA A100, 570.1, 8.0", "13.0", r"2 x NVIDIA A100, .*needs driver 580"),
        (V100, "13.2", r"without kernels for compute capability 7\.0 \(it has sm_75 "),
        ("Tesla P100-PCIE-16GB, 470.57.02, 6.0", "13.2", r"compute capability 6\.0"),  # a new driver would not help
        (H100, None, "PyTorch 2.15.0 is built without CUDA"),
    ],
)  # fmt: skip
def test_a_gpu_that_this_build_cannot_use_is_an_error(smi, monkeypatch, card, torch_cuda, said):
    smi(card)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    with pytest.raises(ConfigError, match=said) as caught:
        choose_runtime("float32")
    assert "docs/install.md" in str(caught.value) and "--device cpu" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert choose_runtime("float32", "cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match=rf"no device 'cuda' here; there is cpu\. This machine has .*{said}"):
        choose_runtime("float32", "cuda")


def test_an_old_nvidia_smi_does_not_know_capabilities(smi):
    smi("Tesla V100, 440.33.01", only="driver_version")
    smi("Tesla V100, 440.33.01", only="name,driver_version")
    assert "440.33.01" in why_no_gpu()


@pytest.mark.parametrize(("visible", "shown"), [("", "empty"), ("-1", "-1"), ("NoDevFiles", "NoDevFiles"), ("3", "3")])
def test_hidden_gpus_are_said(smi, monkeypatch, visible, shown):
    smi(H100)
    cuda_says(monkeypatch, "No CUDA GPUs are available")
    monkeypatch.setenv(gpus.VISIBLE, visible)
    with pytest.raises(ConfigError, match=rf"H100.* sees none: CUDA_VISIBLE_DEVICES is {shown}\. Correct or unset it"):
        choose_runtime("float32")
    monkeypatch.setenv(MARK, "job")  # `krt bench` empties it for its runs on the CPU
    assert bool(why_no_gpu()) == (visible != "")


def test_what_cuda_says_is_passed_on(smi, monkeypatch):
    smi(H100)
    cuda_says(monkeypatch, "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized\nmore")
    with pytest.raises(ConfigError, match=r"does not start CUDA: Unexpected error .* Error 802: system not yet init"):
        choose_runtime("float32")


def test_a_driver_that_does_not_answer(smi, tmp_path):
    smi("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.65", 18)
    place = tmp_path / "pci" / "0000:01:00.0"
    place.mkdir(parents=True)
    (place / "vendor").write_text("0x10de\n")
    (place / "class").write_text("0x040300\n")
    assert why_no_gpu() == ""  # a sound device alone
    (place / "class").write_text("0x030200\n")
    with pytest.raises(ConfigError, match=r"an NVIDIA GPU, but nvidia-smi says: Failed to .*mismatch.*library"):
        choose_runtime("float32")


def test_a_driver_without_nvidia_smi(monkeypatch):
    """As in a container that was given computing alone."""
    gpus.MODULE.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\nGCC version: 12.3\n"
    )
    assert why_no_gpu() == ""  # the machine's, none given to this container
    monkeypatch.setattr(gpus, "_devices", lambda: True)
    assert "needs driver 580 or newer; the driver here is 535.104.05" in why_no_gpu()


def test_a_gpu_without_kernels_is_refused_though_cuda_starts(cuda):
    cuda(1, (7, 0))
    with pytest.raises(ConfigError, match=r"cuda:0 is a a GPU, but .* without kernels for compute capability 7\.0"):
        choose_runtime("float32")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 5), "sm_75 sm_80", True), ((8, 9), "sm_75 sm_86", True), ((8, 0), "sm_75 sm_86", False),
        ((12, 1), "sm_100 sm_120", True), ((11, 0), "sm_100 sm_120", False), ((11, 0), "sm_90 compute_90", True),
        ((9, 0), "sm_90a", True), ((7, 0), "", True),
    ],
)  # fmt: skip
def test_kernels(monkeypatch, capability, built, runs):
    monkeypatch.setattr(torch.cuda, "get_arch_list", built.split)
    assert gpus.has_kernels(capability) == runs


# ---- devices by name ----


@pytest.mark.parametrize(
    "name", ["gpu", "0", "cuda:7", "mps", "cuda:-1", "cpu:1", "cuda:0,1", "cuda:x", "xla", "cuda:"]
)
def test_a_device_that_is_not_here_is_named(name):
    with pytest.raises(ConfigError, match=rf"no device '{name}' here; there is cpu\."):
        choose_runtime("float32", name)


def test_a_device_by_any_of_its_names(cuda):
    cuda(2)
    for name, meant in [("gpu", "cuda"), ("GPU:1", "cuda:1"), ("1", "cuda:1"), (0, "cuda:0"), (" cuda:1 ", "cuda:1")]:
        assert str(named_device(name)) == meant
    assert str(named_device("cpu")) == str(named_device("cpu:0")) == "cpu" and named_device(None) is None
    with pytest.raises(ConfigError, match=r"no device 'cuda:7' here; there is cpu, cuda:0, cuda:1\."):
        named_device("cuda:7")


# ---- processes ----


def test_each_process_needs_a_gpu(cuda, tiny, monkeypatch):
    cuda(2)
    one_gpu = r"--device cuda:1 is one GPU, and 2 processes need one each: leave --device out"
    too_many = r"4 processes need a GPU each, and PyTorch sees 2 here: lower --processes, or say --device cpu"
    with pytest.raises(ConfigError, match=one_gpu):
        launch(tiny(), processes=2, device="cuda:1")
    with pytest.raises(ConfigError, match=too_many):
        launch(tiny(), processes=4)
    with pytest.raises(ConfigError, match="4 processes need a GPU each"):
        launch(tiny(), processes=4, device="cuda")
    monkeypatch.setenv(gpus.VISIBLE, "4,7")
    with pytest.raises(ConfigError, match=r"sees 2 here \(CUDA_VISIBLE_DEVICES=4,7\)"):
        check_processes(3, None)
    assert check_processes(2, None) == check_processes(1, torch.device("cuda:1")) == ""


def test_processes_that_others_have_started_are_checked_too(cuda, monkeypatch):
    """By torchrun or a cluster."""
    cuda(2)
    for name, value in AROUND.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="4 processes need a GPU each"):
        choose_runtime("float32")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ConfigError, match="4 processes need a GPU each"):
        choose_runtime("float32")
    for name, value in {"LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one GPU, and 2 processes"):
        choose_runtime("float32", "cuda:0")


def test_several_processes_do_not_take_the_cpu_in_silence_either(smi, tiny):
    smi("NVIDIA A100-SXM4-40GB, 535.104.05, 8.0")
    with pytest.raises(ConfigError, match="needs driver 580"):
        launch(tiny(), processes=2)


def test_more_processes_than_cores_are_odd_but_allowed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert check_processes(2, None) == ""
    for device_asked in (None, torch.device("cpu")):
        assert "3 processes share 2 cores" in check_processes(3, device_asked)


# ---- what is recorded ----


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_tf32_is_switched_off_and_that_is_recorded(cuda, precision):
    cuda(2)
    runtime = choose_runtime(precision, "cuda:1")
    assert runtime.device == torch.device("cuda:1") and cuda.tf32 == [False]
    assert runtime.reasons["tf32"].startswith("off")
    gpus.MODULE.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n")
    about = environment(runtime)
    assert about["hardware"]["driver"] == "580.65.06" and about["versions"]["cuda"] == "13.2"
    assert "tf32" not in choose_runtime("float32", "cpu").reasons


def test_tf32_off_is_off_in_every_way_that_torch_reads_it():
    from krt_core.machine.precision import set_tf32

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for on in (True, False):
            set_tf32(on)
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is on
            if hasattr(torch.backends.cudnn, "conv"):  # the newer way, from 2.9
                words = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
                assert (set(words) == {"tf32"}) is on and ("tf32" in words) is on
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_peak_of_a_gpu_is_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda which: 3 * 2**20)
    one = SimpleNamespace(type="cuda", index=1)
    device.reset_peak_memory(one)
    assert asked == [one] and device.peak_memory_mb(one) == 3
