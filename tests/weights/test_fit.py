"""Files and timm's own weights, put into backbones of another image size or with a stride, and under any prefix."""

import functools

import pytest
import timm
import torch

from krt_core.config import Model
from krt_core.errors import CheckpointError
from krt_core.model.backbone import make_backbone
from krt_core.weights.fit import load_backbone


@pytest.fixture
def pretrained(monkeypatch, tmp_path):
    """timm's hub, in whose place stands a file of random weights of its model at its own size."""

    def weights(name):
        torch.manual_seed(5)
        source = timm.create_model(name)
        torch.save(source.state_dict(), tmp_path / f"{name}.pth")
        create = functools.partial(timm.create_model)

        def from_file(which, pretrained=False, **options):
            if pretrained:
                options["pretrained_cfg_overlay"] = {"file": str(tmp_path / f"{name}.pth")}
            return create(which, pretrained=pretrained, **options)

        monkeypatch.setattr(timm, "create_model", from_file)
        return source.state_dict()

    return weights


def loaded(size, **keys):
    config = Model(**keys)
    backbone = make_backbone(config, size)
    return backbone, load_backbone(backbone, config)


@pytest.mark.parametrize("stride", [0, 16])
def test_a_vit_at_another_size_takes_positions_as_timm_resizes_them(pretrained, tmp_path, stride):
    source = pretrained("test_vit")
    backbone, about = loaded(96, backbone="test_vit", weights="timm", stride=stride)
    prefix = "model." if stride else ""
    found = backbone.body.state_dict()
    assert torch.equal(found[f"{prefix}blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"])
    positions = timm.layers.resample_abs_pos_embed(source["pos_embed"], [6, 6])
    torch.testing.assert_close(found[f"{prefix}pos_embed"], positions)
    assert found[f"{prefix}pos_embed"].shape != source["pos_embed"].shape
    again, other = loaded(96, backbone="test_vit", weights=str(tmp_path / "test_vit.pth"), stride=stride)
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.body.state_dict().items())
    assert about["weights"] == "timm" and len(about["sha256"]) == 64 and other["layout"] == "timm"


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_a_stride_takes_the_stages_up_to_it(pretrained, tmp_path, name):
    source = pretrained(name)
    for weights in ("timm", str(tmp_path / f"{name}.pth")):
        backbone, _ = loaded(64, backbone=name, weights=weights, stride=8)
        for tensor in backbone.body.state_dict().values():
            assert any(torch.equal(tensor, other) for other in source.values() if other.shape == tensor.shape)


def test_timms_weights_are_recorded_by_tag_and_content(pretrained):
    pretrained("test_resnet")
    _, first = loaded(64, backbone="test_resnet", weights="timm")
    _, again = loaded(64, backbone="test_resnet.r160_in1k", weights="timm")
    assert first == again and first["trained_on"] == "timm test_resnet.r160_in1k" and first["leak"] is None
    torch.manual_seed(6)  # another content under the same tag
    create, changed = timm.create_model, lambda *a, **k: create(*a, **k).apply(shifted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", changed)
        assert loaded(64, backbone="test_resnet", weights="timm")[1]["sha256"] != first["sha256"]


def shifted(module):
    for parameter in module.parameters(recurse=False):
        parameter.data.add_(1)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.backbone.", "student.", "anything.at.all.", "module._orig_mod.x."]
)
def test_a_backbone_is_found_under_any_prefix(tmp_path, prefix):
    source = make_backbone(Model(backbone="test_resnet"), 32).body.state_dict()
    named = {prefix + name: tensor for name, tensor in source.items()}
    torch.save({"state_dict": {**named, "criterion.weight": torch.zeros(3)}}, tmp_path / "w.pth")
    backbone, about = loaded(32, backbone="test_resnet", weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(tensor, source[name]) for name, tensor in backbone.body.state_dict().items())
    assert about["taken"].endswith(prefix.replace("_orig_mod.", "").rstrip("."))


@pytest.mark.parametrize("layout", [{"model": {"body.conv1.0.weight": torch.zeros(2, 2, 3, 3)}}, {"a": torch.zeros(2)},
    {"_conv_stem.weight": torch.zeros(2, 2), "_fc.weight": torch.zeros(1000, 2)}])  # fmt: skip
@pytest.mark.parametrize("backbone", ["tresnet_m", "test_resnet", "test_vit"])
def test_weights_of_something_else_are_counted_and_refused(tmp_path, layout, backbone):
    torch.save(layout, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=rf"w\.pth .* does not fit {backbone}: \d+ of \d+ tensors .* the first is \w"
    ):
        loaded(64, backbone=backbone, weights=str(tmp_path / "w.pth"))
