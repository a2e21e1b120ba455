"""Images on a GPU are those of the CPU, and so are the scores of a network."""

import numpy as np
import pytest
import torch
from on_gpu import busy, everywhere, on_gpu

from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.data.pipeline import batches, sender
from krt_core.data.store import ImageStore
from krt_core.evaluate import predict
from krt_core.machine.device import choose_runtime
from krt_core.weights.convert import network_of


@pytest.fixture
def world(coco_root):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    return ImageStore(data, 32), np.arange(len(data)), data.labels


@everywhere
@pytest.mark.parametrize("augmentation", ["published", "light", "none"])
def test_pixels_and_labels_arrive_as_they_were_made(world, device, augmentation):
    def made(where):
        return list(batches(*world, 16, choose_runtime("float32", where), augmentation, (0, 1), shuffle=True))

    for one, other in zip(made("cpu"), made(device), strict=True):
        assert (one.rows == other.rows).all() and other.images.device == other.labels.device == torch.device(device)
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        # A GPU multiplies by 1/255, which may differ from a division in the last bit.
        assert torch.equal((one.images * 255).round(), (other.images.cpu() * 255).round())
        torch.testing.assert_close(other.images.cpu(), one.images, rtol=1e-6, atol=0)
        assert torch.equal(one.labels, other.labels.cpu())


@everywhere
def test_a_transform_of_ones_own_runs_on_the_device(world, device):
    plain = list(batches(*world, 16, choose_runtime("float32", "cpu")))
    own = list(batches(*world, 16, choose_runtime("float32", device), "on_gpu:mirrored"))
    for one, other in zip(plain, own, strict=True):
        torch.testing.assert_close(other.images.cpu(), one.images.flip(-1), rtol=1e-6, atol=0)


@everywhere
def test_no_batch_is_overwritten_while_the_device_is_busy(world, device):
    """Copies run ahead in a stream of their own: memory must not be used again before the computing stream is done."""
    store, rows, labels = world
    runtime, sums = choose_runtime("float32", device), []
    rows = np.tile(rows, 8)
    for batch in batches(store, rows, np.tile(labels, (8, 1)), 8, runtime):
        busy(runtime.device)
        sums.append(((batch.images * 255).round().double().sum(dim=(1, 2, 3)), batch.labels.sum(dim=1)))
    pixels, shown = (torch.cat(each).cpu() for each in zip(*sums, strict=True))
    assert pixels.tolist() == store.rows(rows).astype(float).sum(axis=(1, 2, 3)).tolist()
    assert shown.tolist() == np.tile(labels.sum(axis=1), 8).tolist()


@on_gpu()
def test_copies_do_not_wait_for_the_gpu():
    device = torch.device("cuda", 0)
    send, pixels = sender(device), torch.empty(64, 224, 224, 3, dtype=torch.uint8, pin_memory=True)
    send(pixels)
    busy(device, 2)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    busy(device, 400)
    torch.cuda.set_sync_debug_mode("error")
    try:
        send(pixels)
        done.record()
        assert not done.query()  # here already, while the GPU still computes
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@everywhere
def test_scores_are_those_of_the_cpu(tiny, world, device):
    torch.manual_seed(0)
    network = network_of(tiny())
    for _ in range(2):
        network.add_session(2)
    store, rows, _ = world
    wanted, features = predict(network, store, rows, choose_runtime("float32", "cpu"), 16, np.ones(len(rows), bool))
    network.to(device)
    found, pooled = predict(network, store, rows, choose_runtime("float32", device), 16, np.ones(len(rows), bool))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # TF32 would be further off
    np.testing.assert_allclose(pooled, features, rtol=1e-3, atol=1e-4)
    rough, _ = predict(network, store, rows, choose_runtime("bfloat16", device), 16)
    np.testing.assert_allclose(rough, wanted, atol=0.05)
