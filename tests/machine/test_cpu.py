import copy

import pytest
import torch
from torch import nn

from krt_core.machine.cpu import depthwise_in_float32
from krt_core.model.backbone import make_backbone


@pytest.fixture
def body():
    from timm.layers import BlurPool2d
    from timm.layers.conv2d_same import Conv2dSame

    torch.manual_seed(0)
    layers = [Conv2dSame(6, 6, 3, 2, groups=6), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, groups=4), BlurPool2d(8)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def seen_types(body):
    """Types of what reaches the convolutions of a training step in bfloat16, in order."""
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.conv2d, nn.functional.conv2d):
                taken.append(args[0].dtype if not torch.is_autocast_enabled("cpu") else torch.bfloat16)
            return function(*args, **(kwargs or {}))

    taken = []
    with Watch(), torch.autocast("cpu", torch.bfloat16):
        out = body(torch.rand(2, 6, 16, 16).bfloat16())
    return taken, out


def test_depthwise_layers_train_in_float32_and_nothing_else(body):
    plain, (wide, narrow) = copy.deepcopy(body), (torch.float32, torch.bfloat16)
    depthwise_in_float32(body)
    taken, out = seen_types(body)
    assert taken == [wide, narrow, narrow, wide] and out.dtype == narrow
    assert seen_types(body.eval())[0] == [narrow] * 4
    assert list(body.state_dict()) == list(plain.state_dict())


def test_outputs_and_gradients_are_those_of_float32_but_for_rounding(body):
    exact = copy.deepcopy(body)
    depthwise_in_float32(body)
    twin = copy.deepcopy(body)
    assert twin[0].weight is not body[0].weight
    images = torch.rand(4, 6, 16, 16)
    for module, autocast in ((exact, False), (twin, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            module(images).float().square().sum().backward()
    for one, two in zip(twin.parameters(), exact.parameters(), strict=True):
        assert (one.grad - two.grad).abs().max() < 0.03 * two.grad.abs().max()
    assert body[0].weight.grad is None


def test_backbones_have_it(tiny):
    model = tiny(model__backbone="tf_efficientnet_lite0", model__stride=0).model
    kinds = [
        type(m).__mro__[1].__name__ for m in make_backbone(model, 64).modules() if type(m).__name__ == "Conv2dSame"
    ]
    assert "Conv2dSame" in kinds  # a layer of the same name on top of timm's own


def test_a_network_can_be_saved_whole(body, tmp_path):
    depthwise_in_float32(body)
    torch.save(body, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    images = torch.rand(2, 6, 16, 16)
    assert torch.equal(again(images), body(images)) and type(again[0]) is type(body[0])
