"""What the tests of this folder share.

Each of them runs on a GPU (marker ``gpu``; skipped, with the reason, where there is none), and where its body works on
the CPU too, there as well: what is never run is wrong. They need torch, torchvision, timm and what the package itself
imports, no network, and read no data.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or products would not repeat to the last bit

import pytest
import torch

from krt_core.machine.gpus import why_no_gpu

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def needs(gpus=1):
    """Marks of a test, or of one of its parameters, that needs so many GPUs."""
    wanted = "a GPU" if gpus == 1 else f"{gpus} GPUs"
    why = "there is one" if GPUS else why_no_gpu() or "there is none"
    return [pytest.mark.gpu, pytest.mark.skipif(gpus > GPUS, reason=f"needs {wanted}: {why}")]


def on_gpu(gpus=1):
    """For a test that runs on so many GPUs alone."""

    def mark(test):
        for one in needs(gpus):
            test = one(test)
        return test

    return mark


CUDA = pytest.param("cuda:0", marks=needs())
everywhere = pytest.mark.parametrize("device", ["cpu", CUDA])


def mirrored(images):
    """A transform of one's own, as ``train.augment`` may name one."""
    return images.flip(-1)


def busy(device, products=20):
    """Give a GPU some milliseconds of work, so that what is queued behind has to wait."""
    a = torch.rand(2048, 2048, device=device)
    for _ in range(products if device.type == "cuda" else 0):
        a = (a @ a).clamp(max=1)
    return a
