"""What can go wrong between the processes and GPUs of one training, in words: the libraries say it in pages."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator

from ..errors import RunError

INTERFACE = (
    "Name the network interface by which the machines reach one another: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME "
    "(`ip address` lists them)."
)
# How CUDA, cuBLAS, cuDNN, PyTorch's CPU allocator, NumPy and C++ say that there is no memory.
NO_MEMORY = (
    r"out of memory|[Cc]an(no|')t allocate memory|Unable to allocate|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|bad_alloc"
)
# What is found in an error's text, what it means, and what helps.
FAULTS = (
    (
        r"Duplicate GPU detected",
        "two processes were given the same GPU",
        "Start with --processes and without --device; of CUDA_VISIBLE_DEVICES every machine needs a number for each.",
    ),
    (
        r"invalid device ordinal",
        "there is no GPU of this process's number",
        "Take no more --processes than GPUs that nvidia-smi -L lists; CUDA_VISIBLE_DEVICES may hide some.",
    ),
    (
        r"no kernel image is available",
        "this build of PyTorch has no kernels for the GPU",
        "Install one that fits (docs/install.md, Drivers and GPUs).",
    ),
    (
        r"devices? (is|are) busy or unavailable",
        "another program has the GPU for itself",
        "nvidia-smi shows which; choose other GPUs by CUDA_VISIBLE_DEVICES.",
    ),
    (
        r"(/dev/)?shm\b.*(No space left|failed|error)|shared memory segment",
        "there is too little shared memory",
        "Give a container more (--shm-size=1g), or set NCCL_SHM_DISABLE=1.",
    ),
    (
        r"out of memory",
        "the memory of the GPU is full",
        "Set train.micro_batch (training) or train.eval_batch_size (tests) to fewer images.",
    ),
    (
        r"EADDRINUSE|[Aa]ddress already in use",
        "the port is in use",
        "Take another one: --rendezvous HOST:PORT, or MASTER_PORT.",
    ),
    (
        r"(client socket|connect\w*).*(timed out|failed to connect|[Cc]onnection refused)|waiting for clients",
        "the machines do not reach one another",
        "Start the command on each of them, with an address of rank 0 that the others see and a port that no firewall "
        "closes.",
    ),
    (
        r"no socket interface found|Unable to find address|Unable to resolve hostname|Call to (bind|connect) failed"
        r"|unsupported gloo device|[Nn]o route to host|Network is unreachable|failed to resolve|getaddrinfo",
        "the network between the processes does not work",
        INTERFACE,
    ),
    (
        r"[Cc]onnection reset by peer|remote process exiting|ncclRemoteError|Broken pipe",
        "another process has ended",
        "Its own lines say why.",
    ),
    (
        r"Timed out waiting|collective operation timeout",
        "the other processes did not come",
        "If one of them still works, its lines say at what.",
    ),
    (
        r"unhandled (system|cuda) error|NCCL error",
        "the GPUs cannot exchange data",
        f"NCCL_DEBUG=INFO tells more. {INTERFACE}",
    ),
)  # fmt: skip


def in_words(text: str) -> str | None:
    """What an error of torch, NCCL or gloo means and what helps, with its own line; None if it is none of these."""
    for pattern, meaning, way_out in FAULTS:
        if re.search(pattern, text):
            return f"{meaning} ({_telling_line(text, pattern)}). {way_out}"
    return None


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """In one of several processes: RunError, with the process and one line, instead of an error between them."""
    try:
        yield
    except RuntimeError as error:
        size, words = os.environ.get("WORLD_SIZE", "1"), in_words(str(error))
        if size == "1" or words is None:
            raise
        raise RunError(f"process {os.environ.get('RANK', '0')} of {size} on {socket.gethostname()}: {words}") from error


@contextlib.contextmanager
def memory_told(doing: str, ways_out: Callable[[], str]) -> Iterator[None]:
    """RunError, with a way out, where there is too little memory for what is done inside. doing: in words, as in
    "images are scored"."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(NO_MEMORY, str(error)):
            raise
        line = _telling_line(str(error), NO_MEMORY) if str(error) else type(error).__name__
        size, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        where = f" in process {size} of {processes}" if processes != "1" else ""
        raise RunError(f"There is too little memory{where} while {doing} ({line}). {ways_out()}") from None


def _telling_line(text: str, pattern: str) -> str:
    """The line that says it: NCCL's last error where there is one, else the first that the pattern is found in."""
    last = re.search(r"Last error:\s*\n(.+)", text)
    lines = [last[1]] if last else [line for line in text.splitlines() if re.search(pattern, line)]
    line = " ".join((lines or text.splitlines())[0].split()).rstrip(".")
    return line if len(line) <= 200 else line[:197] + "..."
