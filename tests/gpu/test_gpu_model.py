"""Parts that take another way on a GPU: folded and in-place batch norm, statistics over processes, fused optimisers."""

import copy

import pytest
import torch
import torch.distributed as dist
from on_gpu import CUDA, everywhere, on_gpu
from torch import nn

from krt_core.learn import make_optimiser
from krt_core.model.inference import for_inference
from krt_core.model.norm import synchronise
from krt_core.weights.convert import network_of


def network_on(device, tiny, **changes):
    torch.manual_seed(0)
    network = network_of(tiny(**{"model__stride": 0, "data__image_size": 64, **changes}))
    for _ in range(2):
        network.add_session(2)
    return network.to(device).to(memory_format=torch.channels_last)


@everywhere
@pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t", "tf_efficientnet_lite0", "tresnet_m"])
@torch.no_grad()
def test_batch_norm_is_folded(tiny, device, backbone):
    """Whatever PyTorch's own setting of TF32, with which no folding would look exact."""
    before = torch.backends.cudnn.allow_tf32
    network = network_on(device, tiny, model__backbone=backbone).train()
    for _ in range(3):
        network(torch.rand(8, 3, 64, 64, device=device))
    network.eval()
    torch.backends.cudnn.allow_tf32 = True
    try:
        fast = for_inference(network, torch.bfloat16)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert network.backbone.foldable is True
    images = torch.rand(4, 3, 64, 64, device=device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        plain, folded = network(images).logits, fast(images).logits
    spread = (plain - network(images).logits).abs().max()  # what bfloat16 itself costs
    assert (folded - plain).abs().max() <= 2 * spread + 1e-3


@everywhere
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_fused_optimisers_make_the_steps_of_plain_ones(tiny, device, kind):
    torch.manual_seed(0)
    fused = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device, torch.float64)
    plain, images = copy.deepcopy(fused), torch.rand(5, 6, device=device, dtype=torch.float64)
    one = make_optimiser(fused, 0.1, kind)
    flat, matrices = ([p for p in plain.parameters() if (p.dim() > 1) is wide] for wide in (False, True))
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
    other = type(one)(groups, lr=1e-5, foreach=False, **({"momentum": 0.9} if kind == "sgd" else {}))
    for model, optimiser in ((fused, one), (plain, other)):
        for _ in range(4):
            model(images).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    again = make_optimiser(fused, 0.1, kind)
    again.load_state_dict(copy.deepcopy(one.state_dict()))
    states = zip(again.state.values(), one.state.values(), strict=True)
    assert all(torch.equal(a[k], b[k]) for a, b in states for k in a if isinstance(a[k], torch.Tensor))


@everywhere
def test_a_step_that_overflows_in_float16_is_skipped(device):
    model = nn.Linear(4, 2).to(device)
    before, optimiser = copy.deepcopy(model.state_dict()), make_optimiser(model, 0.0)
    scaler = torch.amp.GradScaler(torch.device(device).type)
    (scaler.scale(model(torch.ones(1, 4, device=device)).sum()) * float("inf")).backward()
    scaler.step(optimiser)
    scale = scaler.get_scale()
    scaler.update()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert scaler.get_scale() < scale
    optimiser.zero_grad()
    scaler.scale(model(torch.ones(1, 4, device=device)).sum()).backward()
    scaler.step(optimiser)
    assert not torch.equal(before["weight"], model.state_dict()["weight"])


@pytest.fixture
def group(tmp_path):
    """A group of one process, by NCCL."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@on_gpu()
@pytest.mark.parametrize("backbone", ["test_resnet", "tresnet_m"])
def test_statistics_over_processes(tiny, group, backbone):
    plain = network_on("cuda:0", tiny, model__backbone=backbone).train()
    synced = copy.deepcopy(plain)
    synchronise(synced)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert list(synced.state_dict()) == list(plain.state_dict())
    images = torch.rand(8, 3, 64, 64, device="cuda:0")
    wrapped = nn.parallel.DistributedDataParallel(synced, device_ids=[0])
    for model in (plain, wrapped):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images).logits.square().sum()
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), synced.parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - other.grad).abs().max() <= 0.1 * one.grad.abs().max() + 1e-6, name


@everywhere
def test_inplace_abn(tiny, device):
    pytest.importorskip("inplace_abn")
    changes = {"model__backbone": "tresnet_m"}
    plain, inplace = network_on(device, tiny, **changes), network_on(device, tiny, **changes, model__norm="inplace_abn")
    for name, parameter in plain.named_parameters():
        if ".bn." in name and name.endswith("weight"):
            parameter.data = parameter.data.abs() + 0.5
    inplace.load_state_dict(plain.state_dict())
    images = torch.rand(4, 3, 64, 64, device=device)
    for model in (plain, inplace):
        model.train()(images).logits.square().sum().backward()
    torch.testing.assert_close(inplace.eval()(images).logits, plain.eval()(images).logits, rtol=1e-2, atol=1e-3)
    for (name, one), other in zip(plain.named_parameters(), inplace.parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - other.grad).abs().max() <= 0.01 * one.grad.abs().max() + 1e-5, name
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        assert inplace.train()(images).logits.isfinite().all()


@pytest.mark.parametrize("device", [CUDA])
def test_inplace_abn_takes_less_memory(tiny, device):
    pytest.importorskip("inplace_abn")
    peaks = {}
    for norm in ("batch_norm", "inplace_abn"):
        network = network_on(device, tiny, model__backbone="tresnet_m", model__norm=norm).train()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        network(torch.rand(32, 3, 64, 64, device=device)).logits.sum().backward()
        peaks[norm] = torch.cuda.max_memory_allocated() - before
    assert peaks["inplace_abn"] < 0.9 * peaks["batch_norm"]
