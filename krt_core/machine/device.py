"""Which device and which precision, with the reason for each automatic choice."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import features

from .. import __version__
from ..errors import ConfigError
from .cluster import cores, place
from .cpu import keep_freed_memory
from .distributed import World, join_world
from .gpus import check_kernels, check_processes, driver_version, why_no_gpu
from .precision import set_tf32

# What computes, or makes pixels and labels of files: another version may round otherwise.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "pycocotools", "scikit-learn", "pandas")
# Variables, by their beginnings, that tell the libraries below PyTorch and NumPy how to compute.
STEERING = {
    "cpu": ("ATEN_CPU_", "DNNL_", "MKL_", "ONEDNN_", "OPENBLAS_"),
    "cuda": ("CUBLAS_", "CUDNN_", "NVIDIA_TF32_", "TORCH_ALLOW_"),
}


@dataclass(frozen=True)
class Runtime:
    """Device and autocast type of a run, and why."""

    device: torch.device
    dtype: torch.dtype  # autocast type of the networks; losses and scores are float32 or better always
    reasons: dict[str, str]
    world: World = field(default_factory=World)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype in (torch.float32, torch.float64):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def weights_dtype(self) -> torch.dtype:
        """Type of weights and images: float32, or float64 where that was asked for."""
        return torch.promote_types(self.dtype, torch.float32)


def choose_runtime(precision: str = "auto", device: str | None = None) -> Runtime:
    """Pick the device (CUDA if there is one) and resolve ``precision`` "auto" to a type the processor is fast in.

    ConfigError where a GPU is here or asked for and cannot be used.
    """
    asked, mine = named_device(device), place()
    check_processes(mine.here, asked)
    chosen = asked or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type == "cuda":
        chosen = torch.device("cuda", mine.local) if chosen.index is None else chosen  # each process on its own GPU
        check_kernels(chosen)
        set_tf32(False)  # float32 is float32; in half precision nothing is left for TF32
    world = join_world(chosen)
    about = {"device": str(chosen), "processes": str(world.size)}
    if chosen.type == "cuda":
        about["tf32"] = "off: float32 is not rounded to 10 bits"
    if chosen.type == "cpu":
        about["memory"] = "freed memory is kept" if keep_freed_memory() else "as the system manages it"
    if precision != "auto":
        return Runtime(chosen, getattr(torch, precision), {**about, "precision": f"{precision}: asked for"}, world)
    if chosen.type == "cuda":
        major, minor = torch.cuda.get_device_capability(chosen)
        dtype = torch.bfloat16 if major >= 8 else torch.float16
        reason = f"{str(dtype).removeprefix('torch.')}: compute capability {major}.{minor}"
    elif "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags():
        dtype, reason = torch.bfloat16, "bfloat16: the CPU has avx512_bf16"
    else:
        dtype, reason = torch.float32, "float32: the CPU has no bfloat16 arithmetic"
    return Runtime(chosen, dtype, {**about, "precision": reason}, world)


def named_device(name: str | int | None) -> torch.device | None:
    """A device by its name, or None where none is named. ConfigError names one that is not here, and those that are.

    A GPU also goes by "gpu" and by its number alone.
    """
    text = "" if name is None else str(name).strip().lower()
    if not text:
        return None
    kind, _, index = text.replace("gpu", "cuda").partition(":")
    if kind.isdecimal() and not index:
        kind, index = "cuda", kind
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" and index in ("", "0"):
        return torch.device("cpu")
    if kind == "cuda" and count and (text in ("cuda", "gpu") or (index.isdecimal() and int(index) < count)):
        return torch.device("cuda", int(index)) if index else torch.device("cuda")
    here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
    several = " For several GPUs say --processes." if "," in text else ""
    reason = f" {why_no_gpu()}".rstrip()
    raise ConfigError(f"There is no device {str(name)!r} here; there is {here}.{several}{reason}")


def reset_peak_memory(device: torch.device) -> None:
    """Start a new high-water mark of a GPU's memory; that of a process on a CPU runs from its start to its end."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use at once, MiB: this process's tensors on a GPU since the reset; on a CPU the resident set of
    the whole process since its start, whatever else it has done before."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):  # ru_maxrss would also count the process that started this one
                return int(line.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def _cpu_flags() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return line
    return ""


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(runtime: Runtime) -> dict:
    """What a reader needs to judge a number, and what may break the equality of two runs: versions, hardware, threads,
    what the CPU can do, commit, reasons, and of the environment what steers the libraries that compute."""
    versions = {"krt-core": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    hardware = {"cpu": cpu_name(), "cores": len(cores()), "threads": torch.get_num_threads()}
    hardware["capability"] = torch.backends.cpu.get_cpu_capability()  # which kernels PyTorch chooses
    if jpeg := features.version("libjpeg_turbo") or features.version("jpg"):  # which decodes photos
        versions["libjpeg"] = jpeg
    if runtime.device.type == "cuda":
        hardware |= {"gpu": torch.cuda.get_device_name(runtime.device), "driver": driver_version()}
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    steering = STEERING.get(runtime.device.type, ())
    return {
        "python": platform.python_version(),
        "versions": versions,
        "hardware": hardware,
        "host": platform.node(),
        "commit": git_commit(),
        "reasons": runtime.reasons,
        "steered": {key: value for key, value in sorted(os.environ.items()) if key.startswith(steering)},
    }


def git_commit() -> str | None:
    """Commit of the workbench, marked ``+changes`` when files differ from it; None outside a checkout."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}+changes" if commit and git("status", "--porcelain", "--", str(here)) else commit or None
    except (OSError, subprocess.TimeoutExpired):
        return None
