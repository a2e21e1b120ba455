"""Batch norm in place: the same numbers from the same weights, with less kept for backward."""

import copy
import sys

import pytest
import torch

from krt_core.config import Model
from krt_core.errors import ConfigError
from krt_core.model.backbone import make_backbone
from krt_core.model.norm import synchronise


def pair(dtype=torch.float64):
    """The same TResNet-M with either norm, with weights as trained ones have: positive."""
    torch.manual_seed(0)
    plain = make_backbone(Model(backbone="tresnet_m"), 64).to(dtype)
    for name, parameter in plain.named_parameters():
        if ".bn." in name:
            parameter.data = 0.1 * torch.randn_like(parameter) + (0.8 if name.endswith("weight") else 0)
    inplace = make_backbone(Model(backbone="tresnet_m", norm="inplace_abn"), 64).to(dtype)
    inplace.load_state_dict(plain.state_dict())  # one checkpoint for both
    return plain, inplace


def kept_for_backward(model, images) -> int:
    """Bytes of all tensors that the forward pass keeps for the backward pass, parameters left out."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images).sum()
    return sum(kept.values())


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_equal_those_of_the_default_layers(training):
    pytest.importorskip("inplace_abn")
    plain, inplace = pair()
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    probe = torch.randn(4, 2048, 2, 2, dtype=torch.float64)
    results = []
    for model in (plain, inplace):
        model.train(training)
        out = model(images)
        (out * probe).sum().backward()
        results.append((out.detach(), {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    (out, gradients, buffers), (other, others, other_buffers) = results
    assert (out - other).abs().max() <= 1e-5 * out.abs().max()
    assert gradients.keys() == others.keys() and buffers.keys() == other_buffers.keys()
    for name, gradient in gradients.items():
        assert (gradient - others[name]).abs().max() <= 1e-5 * gradient.abs().max(), name
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, other_buffers[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_float32_outputs_agree_too(memory_format):
    pytest.importorskip("inplace_abn")
    plain, inplace = (model.to(memory_format=memory_format) for model in pair(torch.float32))
    images = torch.rand(4, 3, 64, 64).to(memory_format=memory_format)
    with torch.no_grad():
        out, other = plain.eval()(images), inplace.eval()(images)
    assert (out - other).abs().max() <= 1e-5 * out.abs().max()


def test_it_trains_in_half_precision_and_can_be_copied():
    pytest.importorskip("inplace_abn")
    _, inplace = pair(torch.float32)
    old = copy.deepcopy(inplace.train()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        inplace(torch.rand(2, 3, 64, 64)).float().sum().backward()
        old(torch.rand(2, 3, 64, 64))
    assert all(parameter.grad is not None for parameter in inplace.parameters())


def test_it_keeps_less_for_the_backward_pass():
    pytest.importorskip("inplace_abn")
    plain, inplace = pair(torch.float32)
    images = torch.rand(2, 3, 64, 64)
    assert kept_for_backward(inplace.train(), images) < 0.75 * kept_for_backward(plain.train(), images)


def test_what_it_cannot_do_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "inplace_abn", None)
    with pytest.raises(ConfigError, match=r"needs its package.*docs/install\.md"):
        make_backbone(Model(backbone="tresnet_m", norm="inplace_abn"), 64)


def test_synchronised_statistics_in_place_need_a_gpu():
    pytest.importorskip("inplace_abn")
    with pytest.raises(ConfigError, match="needs GPUs"):
        synchronise(make_backbone(Model(backbone="tresnet_m", norm="inplace_abn"), 64))


def test_another_backbone_is_refused():
    pytest.importorskip("inplace_abn")
    with pytest.raises(ConfigError, match="resnet10t has other layers"):
        make_backbone(Model(backbone="resnet10t", norm="inplace_abn"), 64)
