"""Batches on their way to a GPU, and a training step there, on fake tensors: nothing waits for the GPU.

A copy from ordinary memory, a copy back, or a number asked for would stop the training until all that was queued before
is computed.
"""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from krt_core.config import Data
from krt_core.data import loading, open_dataset
from krt_core.data.pipeline import Batch, batches, sender
from krt_core.data.store import ImageStore
from krt_core.dpl import ThresholdRecord
from krt_core.learn import make_optimiser
from krt_core.machine.device import Runtime
from krt_core.methods import METHODS, Context
from krt_core.protocol import make_protocol
from krt_core.weights.convert import network_of

GPU = torch.device("cuda", 0)
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class Watch(TorchDispatchMode):
    """Counts calls, copies to the GPU and what waits for it."""

    def __init__(self):
        super().__init__()
        self.copies, self.waits, self.calls, self.types = 0, [], 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, name = function(*args, **(kwargs or {})), function._schema.name
        self.calls += 1
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if name in WAITS and any(t.is_cuda for t in tensors):
            self.waits.append(name)
        self.types |= {out.dtype} if isinstance(out, torch.Tensor) else set()
        if isinstance(out, torch.Tensor) and tensors:
            source = tensors[-1] if name == "aten::copy_" else tensors[0]
            if source.device.type != out.device.type and source.dim() + source.numel() > 1:
                in_flight = (kwargs or {}).get("non_blocking") or (name == "aten::copy_" and True in args[2:])
                self.copies += out.is_cuda
                if not (out.is_cuda and in_flight):
                    self.waits.append(f"{name} {source.device.type} to {out.device.type}")
        return out


class Stream:
    """Stands in for a stream of a GPU; all of them write what happens into one list."""

    def __init__(self, events, name):
        self.events, self.name = events, name

    def wait_stream(self, other):
        self.events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU's streams and memory, as far as the pipeline asks for them; what it does with them."""
    events = []
    beside, computing = Stream(events, "copying"), Stream(events, "computing")

    @contextlib.contextmanager
    def within(stream):
        events.append(f"in {stream.name}")
        yield
        events.append("out")

    original = torch.Tensor.to

    def to(self, *arguments, **keywords):
        if keywords.get("non_blocking"):
            events.append("copy")
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: beside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: events.append(f"kept for {stream.name}"))
    monkeypatch.setattr(torch.Tensor, "to", to)
    return events


def test_copies_run_in_a_stream_beside_the_computing_one(gpu):
    with FakeTensorMode(), Watch() as watch:
        pixels, labels = sender(GPU)(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4, 3))
    assert gpu == [
        "in copying", "copy", "copy", "out", "computing waits for copying", "kept for computing", "kept for computing",
    ]  # fmt: skip
    assert pixels.is_cuda and labels.is_cuda and watch.copies == 2 and not watch.waits


def test_to_the_cpu_nothing_moves():
    pixels, labels = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4, 3)
    assert [one is two for one, two in zip(sender(torch.device("cpu"))(pixels, labels), (pixels, labels), strict=True)]


def test_no_batch_of_an_epoch_waits_for_the_gpu(gpu, coco_root, monkeypatch):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    store, runtime = ImageStore(data, 32), Runtime(GPU, torch.bfloat16, {})

    def prepare(self, rows, *_):
        return lambda: torch.zeros(len(rows), 32, 32, 3, dtype=torch.uint8)

    monkeypatch.setattr(loading.Pixels, "prepare", prepare)  # fake tensors have no memory that threads could fill
    with FakeTensorMode(), Watch() as watch:
        made = list(batches(store, np.arange(40), data.labels, 16, runtime, "published", (0,), shuffle=True))
    assert [len(batch.rows) for batch in made] == [16, 16, 8]
    assert all(batch.images.is_cuda and batch.labels.is_cuda for batch in made)
    assert watch.copies == 6 and not watch.waits
    assert watch.calls <= 20 * len(made)  # all augmenting is done before


@pytest.mark.parametrize("method", ["krt", "pod", "finetune"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_step_does_not_wait_for_the_gpu(tiny, gpu, monkeypatch, method, dtype):
    """Loss with the old model, clipping and the fused optimiser; pseudo labels by a threshold for each class."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    experiment = tiny(method=method)
    protocol, watch = make_protocol(("ant", "bee", "cat", "dog"), 2, 2), Watch()
    model = network_of(experiment)
    model.add_session(2)
    old = copy.deepcopy(model).eval().requires_grad_(False)
    model.add_session(2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model, old = to_fake(model, mode), to_fake(old, mode)
        own = METHODS[method](experiment.options, experiment)
        if method == "krt":
            own.records[1] = ThresholdRecord(0.5, 1.0, 1.0, 0, True, (0.5, 0.6))
        own.start_session(
            Context(experiment, protocol, protocol.sessions[1], model, old, model, lambda: None, np.ones(2), print)
        )
        optimiser = make_optimiser(model, 1e-4)
        images = torch.empty(8, 3, 32, 32, device=GPU)
        batch = Batch(images, torch.empty(8, 4, device=GPU), np.arange(8))
        with watch, torch.autocast("cuda", dtype):
            result = own.loss(batch)
        for parameter in model.parameters():  # autograd itself needs a GPU
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        with watch:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    assert watch.waits == [] and math.prod(result["logits"].shape) == 32
    assert dtype in watch.types and result["loss"].dtype == torch.float32


def to_fake(model, mode):
    """The model with its tensors on a GPU that is not there."""
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None:
                fake = mode.from_tensor(tensor.detach()).to(GPU)
                module._parameters[name] = torch.nn.Parameter(fake, tensor.requires_grad)
        for name, tensor in list(module._buffers.items()):
            if tensor is not None:
                module._buffers[name] = mode.from_tensor(tensor).to(GPU)
    return model
