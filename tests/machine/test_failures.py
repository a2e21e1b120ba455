"""Errors between processes and GPUs, as the libraries word them, come out in a line that says what helps."""

import subprocess
import sys
import threading
import time

import pytest

from krt_core.errors import RunError
from krt_core.machine import cluster, distributed
from krt_core.machine.cluster import said_if_long
from krt_core.machine.distributed import World
from krt_core.machine.failures import in_words, said_plainly

NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, {what}, NCCL version 2.27.3\n{explained}\n"
    "Last error:\n{last}"
)
DUPLICATE = NCCL.format(
    what="invalid usage (run with NCCL_DEBUG=WARN for details)", explained="ncclInvalidUsage: This usually",
    last="Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
)  # fmt: skip
SOCKET = NCCL.format(
    what="unhandled system error (run with NCCL_DEBUG=INFO for details)", explained="ncclSystemError: System call",
    last="Bootstrap : no socket interface found",
)  # fmt: skip
SHARED = NCCL.format(
    what="unhandled system error", explained="ncclSystemError: System call",
    last="Error while creating shared memory segment /dev/shm/nccl-Ab12 (size 9637888), error: No space left on device",
)  # fmt: skip
REMOTE = NCCL.format(
    what="remote process exited or there was a network error", explained="ncclRemoteError: A call failed possibly",
    last="socketPollConnect: connect returned Connection reset by peer",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DUPLICATE, r"the same GPU \(Duplicate GPU detected : rank 1 and rank 0.*without --device"),
        (SOCKET, r"network .* does not work \(Bootstrap : no socket interface found\)\. .*NCCL_SOCKET_IFNAME"),
        (SHARED, r"too little shared memory .*--shm-size"),
        (REMOTE, r"another process has ended"),
        ("CUDA error: invalid device ordinal\nGPU device may be out of range", r"no GPU of this process's number"),
        ("CUDA error: no kernel image is available for execution on the device", r"no kernels .*docs/install\.md"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", r"nvidia-smi shows which"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", r"memory of the GPU is full .*batch_size"),
        ("The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, "
         "name: EADDRINUSE, message: address already in use", r"the port is in use .*--rendezvous"),
        ("The client socket has timed out after 60000ms while trying to connect to (node1, 29500).", "not reach"),
        ("Timed out after 61 seconds waiting for clients. 1/2 clients joined.", "do not reach one another"),
        ("[../gloo/transport/tcp/device.cc:83] Unable to find address for: eth9", "GLOO_SOCKET_IFNAME"),
        ("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 43200000ms for recv operation to complete",
         "the other processes did not come"),
        (NCCL.format(what="unhandled cuda error", explained="ncclUnhandledCudaError", last="Cuda failure 999"),
         r"cannot exchange data \(Cuda failure 999\)\. NCCL_DEBUG=INFO"),
    ],
)  # fmt: skip
def test_known_errors(text, said, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match=rf"^process 1 of 2 on \S+: .*{said}") as caught, said_plainly():
        raise RuntimeError(text)
    assert "\n" not in str(caught.value)


def test_others_are_left_alone(monkeypatch):
    assert in_words("mat1 and mat2 shapes cannot be multiplied") is None
    with pytest.raises(RuntimeError, match="Duplicate"), said_plainly():  # alone
        raise RuntimeError(DUPLICATE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="shapes"), said_plainly():
        raise RuntimeError("mat1 and mat2 shapes")


def test_a_port_that_is_taken_is_one_line(tmp_path):
    """From the launcher, before any process of the training."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "krt_core.launch", "--nnodes=2", "--node-rank=0", "--master-addr=127.0.0.1",
                   f"--master-port={port}", "--nproc-per-node=1", "-m", "nothing"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("krt: the port is in use") and "Traceback" not in done.stderr


def test_exchanges_have_time(monkeypatch):
    """Others wait while the first process decodes: hours on a slow disk, the libraries' default is 30 minutes."""
    seen = {}
    around = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *a, **k: seen.update(init=k["timeout"]))
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: seen.update(tried=tensor.shape))
    monkeypatch.setattr(distributed.dist, "new_group", lambda **k: seen.update(group=k["timeout"]) or "group")
    monkeypatch.setattr(distributed.torch.cuda, "synchronize", lambda which: None)
    world = distributed.join_world(distributed.torch.device("cpu"))
    assert (world.rank, world.size, world.group) == (1, 2, "group")
    assert seen["init"] == seen["group"] and seen["init"].total_seconds() >= 12 * 3600 and seen["tried"] == (1,)


def test_who_waits_says_for_whom(monkeypatch, capfd):
    gate = threading.Event()
    monkeypatch.setattr(cluster, "LONG", 0.05)
    monkeypatch.setattr(World, "wait", lambda self: gate.wait(0.4))
    for rank in (0, 1, 2):
        with World(rank, 3).main_first("decodes images"):
            pass
    assert capfd.readouterr().err == "processes 1 to 2 wait for process 0, which decodes images\n"
    monkeypatch.setattr(cluster, "LONG", 5.0)
    began = time.monotonic()
    with said_if_long("never"):
        pass
    assert time.monotonic() - began < 1 and not capfd.readouterr().err
