"""A backbone whose first layers stand still: the rest learns on what these have made of the images, as if on images."""

import numpy as np
import pytest
import torch

from krt_core.errors import ConfigError
from krt_core.model import still
from krt_core.model.backbone import Backbone
from krt_core.model.inference import for_inference
from krt_core.session import _Training, train
from krt_core.weights.convert import load_model, network_of

CUT = {"model__tune_from": "layer2", "train__augment": "none"}


@pytest.fixture
def passes(monkeypatch):
    """How many images passed the layers below the cut, call by call."""
    asked, original = [], Backbone.below
    monkeypatch.setattr(Backbone, "below", lambda self, x: asked.append(len(x)) or original(self, x))
    return asked


def losses(run):
    return [line["loss"] for line in run.epochs]


def made(tiny, **changes):
    torch.manual_seed(0)
    network = network_of(tiny(**{**CUT, **changes}))
    network.add_session(2)
    return network


@pytest.mark.parametrize("backbone", [("test_resnet", 8, "layer2"), ("mobilenetv3_small_050", 0, "blocks.3")])
def test_what_the_first_layers_make_stands_for_the_image(tiny, backbone):
    name, stride, layer = backbone
    how = {"model__backbone": name, "model__stride": stride, "model__tune_from": layer}
    network = made(tiny, method="pod", **how).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
        images = torch.rand(3, 3, 32, 32)
        kept = network.backbone.below(images)
        assert kept.shape == (3, *network.backbone.cut)
        for model in (network, for_inference(network, torch.float32), for_inference(network, torch.bfloat16)):
            with torch.autocast("cpu", torch.bfloat16, enabled=model.backbone.body is not network.backbone.body):
                assert torch.allclose(model(kept.clone()).logits, model(images).logits, atol=0.03)
        whole, apart = network(images, with_stages=True), network(kept, with_stages=True)
        assert torch.equal(whole.features, apart.features) and torch.equal(whole.stages[-1], apart.stages[-1])


def test_only_what_comes_after_the_cut_learns(tiny):
    network = made(tiny).train()
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    still_ones = {f"body.{name}" for name in network.backbone.state_below()}
    assert "body.bn1.running_mean" in still_ones and len(still_ones) < len(before)
    assert not any(name.startswith("body.layer2") for name in still_ones)
    network(torch.rand(8, 3, 32, 32)).logits.square().sum().backward()
    learns = {name for name, parameter in network.backbone.named_parameters() if parameter.grad is not None}
    assert learns and learns == {name for name, _ in network.backbone.named_parameters()} - still_ones
    moved = {name for name, tensor in network.backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and not moved & still_ones and all("running" in name or "num_batches" in name for name in moved)


@pytest.mark.parametrize("method", ["krt", "finetune", "joint", "pod"])
def test_kept_maps_change_no_number(tiny, tmp_path, passes, method):
    kept = train(tiny(method=method, **CUT), tmp_path / "kept", show="none")
    assert sum(passes) == 64  # forty training and 24 test images, once
    plain = train(tiny(method=method, **CUT, data__features=False), tmp_path / "plain", show="none")
    assert sum(passes) == 64 and losses(kept) == pytest.approx(losses(plain), rel=1e-5)
    assert np.allclose(kept.scores(1).scores, plain.scores(1).scores, atol=1e-5)
    first, last = load_model(kept, 0).backbone, load_model(kept, 1).backbone
    assert all(torch.equal(tensor, last.state_below()[name]) for name, tensor in first.state_below().items())
    assert (method == "joint") == torch.equal(first.body.layer2[0].conv1.weight, last.body.layer2[0].conv1.weight)


def test_runs_share_what_is_kept_and_views_are_drawn_of_it(tiny, tmp_path, passes):
    train(tiny(method="finetune", **CUT), tmp_path / "one", show="none")
    train(tiny(method="joint", **CUT), tmp_path / "two", show="none")
    assert sum(passes) == 64
    how = {**CUT, "train__augment": "light", "data__views": 2, "train__epochs": 6}
    train(tiny(method="finetune", **how), tmp_path / "three", show="none")
    assert sum(passes) == 64 + 2 * 40


def test_after_the_first_session_all_of_it_may_stand_still(tiny, tmp_path):
    how = {**CUT, "model__freeze": "first"}
    kept = train(tiny(method="ridge", **how), tmp_path / "kept", show="none")
    plain = train(tiny(method="ridge", **how, data__features=False), tmp_path / "plain", show="none")
    assert np.allclose(kept.scores(1).scores, plain.scores(1).scores, atol=1e-5)
    assert {"means", "cut"} == set(kinds(tiny(method="finetune", **how), tmp_path))


def kinds(experiment, folder):
    """What the stores of a run hold while it runs."""
    seen, original = [], _Training._grow

    def grow(self, session):
        seen.append(self.train_store.maker.what)
        assert self.tester.store.maker.what == self.validator.store.maker.what == seen[-1]
        return original(self, session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Training, "_grow", grow)
        train(experiment, folder / "kinds", show="none")
    return seen


def test_it_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    whole = train(tiny(**CUT), tmp_path / "whole", show="none")
    original = _Training.session

    def stops(self, index, resume):
        if index:
            raise KeyboardInterrupt
        original(self, index, resume)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Training, "session", stops)
        train(tiny(**CUT), tmp_path / "cut", show="none")
    again = train(tiny(**CUT), tmp_path / "cut", show="none")
    assert losses(again) == losses(whole) and (again.scores(1).scores == whole.scores(1).scores).all()


def test_the_name_of_what_is_kept_hangs_on_the_layers_below_alone(tiny):
    from krt_core.machine.device import choose_runtime

    cpu = choose_runtime("float32", "cpu")
    one, other = made(tiny), made(tiny)
    with torch.no_grad():
        other.backbone.body.layer2[0].conv1.weight.add_(1)
    same = still.features_of(one, cpu, "cut").digest
    assert still.features_of(other, cpu, "cut").digest == same != still.features_of(one, cpu, "maps").digest
    with torch.no_grad():
        other.backbone.body.bn1.running_mean.add_(1)
    assert still.features_of(other, cpu, "cut").digest != same
    assert still.features_of(made(tiny, model__tune_from="layer1"), cpu, "cut").digest != same


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__tune_from": "layer9"}, r"has no layer 'layer9'.*conv1.*layer2"),
        ({"model__tune_from": "conv1"}, "begins with conv1: nothing would stand still"),
        ({"model__tune_from": "bn1"}, "the norm of the layer before it"),
        (
            {"model__backbone": "vit_tiny_patch16_224", "model__stride": 0, "model__tune_from": "blocks.8"},
            "cannot be cut",
        ),
        ({"model__freeze": "all"}, r"model\.tune_from has no say"),
        ({"data__views": 2}, r"data\.views needs model\.freeze or tune_from"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(tiny, changes, said):
    with pytest.raises(ConfigError, match=said):
        network_of(tiny(**{**CUT, **changes}))
