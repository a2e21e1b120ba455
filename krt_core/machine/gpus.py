"""Which GPUs this machine has, and why PyTorch cannot use them where it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import ConfigError
from .cluster import cores
from .processes import MARK

VISIBLE = "CUDA_VISIBLE_DEVICES"
# The oldest driver that runs programs built for a version of CUDA (NVIDIA's table of minor version compatibility).
OLDEST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580,)}
OTHER_BUILD = "install a build of PyTorch that fits (docs/install.md, Drivers and GPUs)"
ON_THE_CPU = "The CPU is used where it is asked for: --device cpu, in Python device='cpu'."
MODULE = Path("/proc/driver/nvidia/version")  # there while the kernel has the driver
PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAYS = "0x10de", "0x03"  # of PCI: the maker, and the class of displays and GPUs


class Card(NamedTuple):
    name: str
    driver: str  # such as 580.65.06
    capability: tuple[int, int] | None  # None: an nvidia-smi too old to know it


def refuse_the_cpu() -> None:
    """ConfigError where this machine has a GPU that PyTorch cannot use: training on the CPU instead would take days
    before anyone noticed."""
    if reason := why_no_gpu():
        raise ConfigError(f"{reason} {ON_THE_CPU}")


def why_no_gpu() -> str:
    """Why PyTorch can use no GPU though there is one, in a sentence; empty where it can, or where there is none."""
    if torch.cuda.is_available():
        return ""
    visible = os.environ.get(VISIBLE)
    if MARK in os.environ and visible == "":  # `krt bench` gives its runs on the CPU no GPU
        return ""
    cards, complaint = cards_of_the_driver()
    if not cards and not complaint:
        return ""
    here = f"This machine has {_listed(cards)}, but PyTorch {torch.__version__}" if cards else (
        f"This machine has an NVIDIA GPU, but nvidia-smi says: {complaint}. PyTorch {torch.__version__}"
    )  # fmt: skip
    if torch.version.cuda is None:
        return f"{here} is built without CUDA: {OTHER_BUILD}."
    build = f"is a build for CUDA {torch.version.cuda}"
    if cards and all(card.capability and not has_kernels(card.capability) for card in cards):
        return f"{here} {build} {_without_kernels(cards[0].capability)}"
    least = OLDEST_DRIVER.get(int(torch.version.cuda.split(".")[0]), (0,))
    if cards and _numbers(cards[0].driver) < least:
        needed = ".".join(map(str, least))
        too_old = f"{here} {build}, which needs driver {needed} or newer; the driver here is {cards[0].driver}"
        return f"{too_old}. Have the driver updated, or {OTHER_BUILD}."
    said = _what_cuda_says()
    if visible is not None and ("No CUDA GPUs" in said or not torch.cuda.device_count()):
        shown = visible or "empty"
        return f"{here} sees none: {VISIBLE} is {shown}. Correct or unset it (nvidia-smi -L lists the GPUs)."
    return f"{here} does not start CUDA: {said}"


def check_kernels(device: torch.device) -> None:
    """ConfigError where this build of PyTorch has no kernels for a GPU: its first operation would fail."""
    capability = torch.cuda.get_device_capability(device)
    if not has_kernels(capability):
        raise ConfigError(
            f"{device} is a {torch.cuda.get_device_name(device)}, but PyTorch {torch.__version__} is a build for CUDA "
            f"{torch.version.cuda} {_without_kernels(capability)} {ON_THE_CPU}"
        )


def has_kernels(capability: tuple[int, int]) -> bool:
    """Does this build of PyTorch run on a GPU of this compute capability? Kernels of a capability (sm) run on the same
    major one and a minor one not below; what is compiled at run time (compute) on all above."""
    built = [(kind, int(n)) for kind, n in re.findall(r"(sm|compute)_(\d+)", " ".join(torch.cuda.get_arch_list()))]
    own = 10 * capability[0] + capability[1]
    return not built or any(n <= own and (kind == "compute" or n // 10 == capability[0]) for kind, n in built)


def check_processes(processes: int, device: torch.device | None) -> str:
    """ConfigError unless each of so many processes on this machine gets a GPU of its own where GPUs are to be used
    (device: what was asked for). Returns what is odd all the same: more processes than cores."""
    if device is not None and device.type == "cuda" and device.index is not None and processes > 1:
        raise ConfigError(
            f"--device {device} is one GPU, and {processes} processes need one each: leave --device out, and choose "
            f"the GPUs by {VISIBLE}."
        )
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        count, visible = torch.cuda.device_count(), os.environ.get(VISIBLE)
        if processes > count:
            shown = f" ({VISIBLE}={visible})" if visible else ""
            raise ConfigError(
                f"{processes} processes need a GPU each, and PyTorch sees {count} here{shown}: lower --processes, or "
                "say --device cpu."
            )
        return ""
    if device is None:
        refuse_the_cpu()
    if processes > (count := len(cores())):
        return f"{processes} processes share {count} cores: fewer of them would be faster."
    return ""


def cards_of_the_driver() -> tuple[list[Card], str]:
    """The GPUs that nvidia-smi lists, and what it complains of where there is a GPU that it cannot list.

    Neither where there is no nvidia-smi (or it finds no GPU), as on most machines without one.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        driver = driver_version()
        return ([Card("an NVIDIA GPU", driver, None)] if driver and _devices() else []), ""
    complaint = ""
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):
        command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            asked = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return [], str(error) if _on_the_bus() else ""
        lines = [line.split(", ") for line in asked.stdout.splitlines() if line.strip()]
        if asked.returncode == 0:
            return [_card(line) for line in lines if len(line) >= 2], ""
        complaint = " ".join((asked.stdout.strip() or asked.stderr.strip()).split())[:200].rstrip(".")
    there = "No devices were found" not in complaint and (MODULE.is_file() or _on_the_bus())
    return [], complaint if there else ""


def driver_version() -> str | None:
    """The version of NVIDIA's driver, as the kernel says it."""
    found = re.search(r"\d+\.\d+(\.\d+)?", MODULE.read_text(encoding="utf-8")) if MODULE.is_file() else None
    return found[0] if found else None


def _card(line: list[str]) -> Card:
    capability = re.fullmatch(r"(\d+)\.(\d+)", line[2].strip()) if len(line) > 2 else None
    return Card(line[0].strip(), line[1].strip(), (int(capability[1]), int(capability[2])) if capability else None)


def _listed(cards: list[Card]) -> str:
    names = list(dict.fromkeys(card.name for card in cards))
    return " and ".join(f"{n} x {name}" if (n := sum(c.name == name for c in cards)) > 1 else name for name in names)


def _without_kernels(capability: tuple[int, int]) -> str:
    built = " ".join(torch.cuda.get_arch_list())
    return f"without kernels for compute capability {capability[0]}.{capability[1]} (it has {built}): {OTHER_BUILD}."


def _what_cuda_says() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].rstrip(".") + "."
    return "it gives no reason."


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _devices() -> bool:
    return any(re.fullmatch(r"nvidia\d+", path.name) for path in Path("/dev").iterdir())


def _on_the_bus() -> bool:
    """Is there a GPU of NVIDIA's, whether or not a driver runs it?"""
    try:
        return any(
            (place / "vendor").read_text(encoding="utf-8").strip() == NVIDIA
            and (place / "class").read_text(encoding="utf-8").startswith(DISPLAYS)
            for place in PCI.iterdir()
        )
    except OSError:
        return False
