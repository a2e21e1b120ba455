import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from krt_core.model.backbone import Backbone
from krt_core.model.inference import for_inference
from krt_core.model.network import Network
from krt_core.weights.convert import network_of


def settled(network, size=64):
    """The network with batch-norm statistics of its own, as after a training."""
    for _ in range(2):
        network.add_session(2)
    torch.manual_seed(0)
    network.train()
    for _ in range(3):
        network(torch.rand(8, 3, size, size))
    return network.eval()


def norms(network):
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t", "tf_efficientnet_lite0", "tresnet_m"])
@torch.no_grad()
def test_folding_leaves_nothing_but_rounding(tiny, backbone):
    network = settled(network_of(tiny(model__backbone=backbone, model__stride=0, data__image_size=64)))
    images = torch.rand(4, 3, 64, 64)
    exact = for_inference(network, torch.float32)
    assert torch.equal(exact(images).logits, network(images).logits) and norms(exact) == norms(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast = for_inference(network, torch.bfloat16)
    assert norms(fast) <= 1 and not any(p.requires_grad for p in fast.parameters())
    assert network.backbone.foldable and fast.backbone.body is not network.backbone.body
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        plain, folded = network(images), fast(images)
    spread = (plain.logits - network(images).logits).abs().max()  # what bfloat16 itself costs
    assert (folded.logits - plain.logits).abs().max() <= 2 * spread + 1e-3
    assert folded.logits.dtype == torch.float32


class RoundedAsTF32(TorchFunctionMode):
    """Float32 operands of convolutions and products keep ten bits of their mantissa, as on GPUs since Ampere."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        if getattr(function, "__name__", "") in ("conv2d", "linear", "matmul", "einsum"):
            arguments = [self.rounded(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        return function(*arguments, **(named or {}))

    def rounded(self, tensor):
        if tensor.dtype != torch.float32:
            return tensor
        return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_folding_is_checked_in_true_precision_where_tf32_is_on(tiny, backbone):
    network = settled(network_of(tiny(model__backbone=backbone, model__stride=0, data__image_size=64)))
    images = torch.rand(2, 3, 64, 64)
    with RoundedAsTF32():
        assert not torch.allclose(
            network(images).features, network.double()(images.double()).features.float(), rtol=1e-4
        )
        network.float()
        fast = for_inference(network, torch.bfloat16)
    assert network.backbone.foldable and norms(fast) <= 1


@torch.no_grad()
def test_a_backbone_that_calls_its_layers_in_another_order_is_not_folded(tiny):
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 3, 3, 2), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, 2)

        def forward(self, x):
            return [self.norm(self.other(self.conv(x)))]

    network = Network(Backbone(Crossed(), 3, (15, 15)), "ica", 32, 4)
    for _ in range(2):
        network.add_session(2)
    network.eval()  # its statistics say nothing yet, and would hide a wrong folding
    fast = for_inference(network, torch.bfloat16)
    assert norms(fast) == norms(network) == 1 and network.backbone.foldable is False


def test_compiled_backbones_are_compiled_once_for_all_sessions(tiny, monkeypatch):
    """Growing heads and new old models must not compile anything again."""
    import functools

    from torch._dynamo.utils import counters

    from krt_core.model import backbone as module
    from krt_core.session import train

    compiled = functools.cache(lambda: torch.compile(module._map_of, backend="eager"))
    monkeypatch.setattr(module, "_compiled", compiled)
    torch._dynamo.reset()
    graphs, original = [], Network.add_session

    def add_session(self, classes):
        graphs.append(counters["stats"]["unique_graphs"])
        original(self, classes)

    monkeypatch.setattr(Network, "add_session", add_session)
    counters.clear()
    plain = train(tiny(protocol__increment=1, train__evaluate_every=1), show="none")
    assert counters["stats"]["unique_graphs"] == 0
    graphs.clear()
    run = train(tiny(protocol__increment=1, train__evaluate_every=1, train__compile=True), show="none")
    graphs.append(counters["stats"]["unique_graphs"])
    # The first session compiles the model, the second the old one; the third and fourth nothing.
    assert graphs[1] > 0 and len(set(graphs[2:])) == 1 and run.experiment.hash() != plain.experiment.hash()
    assert run.summary["average_mAP"] == pytest.approx(plain.summary["average_mAP"], abs=1e-3)
