import pytest
import timm
import torch
from torch import nn

from krt_core.config import Model
from krt_core.errors import ConfigError
from krt_core.model import Network
from krt_core.model.backbone import Backbone, make_backbone
from krt_core.model.ica import IncrementalCrossAttention, SessionHead, looped


def _ica(sessions=3, dim=32, heads=4, dtype=torch.float64, query="transfer"):
    torch.manual_seed(0)
    ica = IncrementalCrossAttention(dim, heads, query=query)
    for _ in range(sessions):
        ica.add_session()
    for p in ica.parameters():  # away from the small initial values, where everything looks alike
        p.requires_grad_(True).data.normal_(std=0.5)
    return ica.to(dtype)


@pytest.mark.parametrize("query", ["transfer", "retention"])
@pytest.mark.parametrize(("sessions", "patches"), [(1, 49), (3, 49), (8, 7), (2, 1)])
def test_closed_form_equals_the_loop_in_outputs_gradients_and_attention(sessions, patches, query):
    ica = _ica(sessions, query=query)
    x = torch.randn(3, patches, 32, dtype=torch.float64, requires_grad=True)
    fast, attention = ica(x, with_attention=True)
    slow, weights = looped(ica, x)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(attention.full(), weights)
    torch.testing.assert_close(attention.full().sum(-1), torch.ones(3, sessions, 4, dtype=torch.float64))
    probe = torch.randn_like(fast)
    names = [n for n, _ in ica.named_parameters()]
    inputs = [x, *ica.parameters()]
    for name, a, b in zip(
        ["patches", *names],
        torch.autograd.grad((fast * probe).sum(), inputs),
        torch.autograd.grad((slow * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("query", ["transfer", "retention"])
def test_closed_form_agrees_in_float32_and_under_autocast(query):
    ica = _ica(4, dtype=torch.float32, query=query)
    x = torch.randn(2, 49, 32)
    torch.testing.assert_close(ica(x)[0], looped(ica, x)[0], rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = ica(x)[0]
    assert (half.float() - looped(ica, x)[0]).abs().mean() < 0.05 * looped(ica, x)[0].abs().mean()


def test_first_weights_are_small_and_the_block_is_as_published():
    """8 heads, an MLP four times as wide, truncated normals of 0.02, biases 0 and none of query, key and value."""
    torch.manual_seed(0)
    ica = IncrementalCrossAttention(64)
    ica.add_session()
    assert ica.heads == 8 and ica.query == "transfer" and ica.mlp.fc1.weight.shape == (256, 64)
    named = dict(nn.ModuleDict({"ica": ica, "head": SessionHead(64, 200)}).named_parameters())
    for name, parameter in named.items():
        if name.startswith(("ica.norm", "head.norm")) and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            few = 0.3 if parameter.numel() < 100 else 0.1
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=few), name
            assert float(parameter.detach().mean()) == pytest.approx(0, abs=0.01), name
    assert not {name for name in named if name.endswith(("q.bias", "k.bias", "v.bias"))}
    with pytest.raises(ValueError, match="query must be"):
        IncrementalCrossAttention(64, query="both")


def test_a_token_is_added_where_the_others_are():
    ica = IncrementalCrossAttention(16).to("meta", torch.float64)
    ica.add_session()
    token = ica.retention_tokens[0]
    assert (token.device.type, token.dtype, token.shape, token.requires_grad) == (
        "meta",
        torch.float64,
        (1, 1, 16),
        True,
    )


@pytest.mark.parametrize("query", ["transfer", "retention"])
def test_attention_comes_on_request_alone(query):
    ica, x = _ica(query=query), torch.randn(2, 5, 32, dtype=torch.float64)
    tokens, attention = ica(x)
    assert attention is None and ica.attend(x)[1] is None
    torch.testing.assert_close(tokens, ica(x, with_attention=True)[0])


def _network(head="ica"):
    torch.manual_seed(0)
    return Network(make_backbone(Model(backbone="test_resnet", stride=8), 32), head, embed_dim=32, heads=4)


def test_growing_freezes_old_tokens_and_heads_and_leaves_old_scores_alone():
    network = _network().eval()
    network.add_session(3)
    images = torch.rand(2, 3, 32, 32)
    before = network(images)
    network.add_session(2)
    after = network(images, with_attention=True)
    assert (
        after.logits.shape == (2, 5)
        and after.tokens.shape == (2, 2, 32)
        and after.attention.patches.shape == (2, 2, 4, 16)
    )
    torch.testing.assert_close(after.logits[:, :3], before.logits)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"ica.retention_tokens.0", *(f"heads.0.{n}" for n, _ in network.heads[0].named_parameters())}
    assert after.pooled.shape == (2, network.backbone.channels)


def test_linear_head_grows_and_keeps_training():
    network = _network("linear")
    network.add_session(3)
    network.add_session(2)
    out = network(torch.rand(2, 3, 32, 32))
    assert out.logits.shape == (2, 5) and out.tokens is None
    assert all(p.requires_grad for p in network.parameters())


def test_another_image_size_is_refused_in_words():
    network = _network()
    network.add_session(2)
    with pytest.raises(ValueError, match=r"data\.image_size"):
        network(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "stride", "size", "shape"), [("tresnet_m", 0, 224, (2048, 7, 7)),
                         ("tf_efficientnet_lite0", 0, 96, (1280, 3, 3)), ("resnet10t", 8, 64, (128, 8, 8)),
                         ("test_vit", 0, 160, (64, 10, 10)), ("test_convnext", 0, 64, None)])  # fmt: skip
def test_backbones_yield_a_map(name, stride, size, shape):
    backbone = make_backbone(Model(backbone=name, stride=stride), size).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, size, size))
    assert features.shape[1:] == (backbone.channels, *backbone.grid)
    assert shape is None or (backbone.channels, *backbone.grid) == shape


def test_unknown_backbone_and_stride_name_what_there_is():
    with pytest.raises(ConfigError, match="tresnet_m"):
        make_backbone(Model(backbone="tresnetm"), 64)
    with pytest.raises(ConfigError, match="maps at"):
        make_backbone(Model(backbone="test_resnet", stride=3), 64)


@pytest.mark.parametrize(
    ("name", "size"),
    [("swin_tiny_patch4_window7_224", 64), ("efficientvit_b0", 64), ("tiny_vit_5m_224", 64), ("pit_ti_224", 64),
     ("mixer_s32_224", 64), ("inception_next_atto", 64), ("deit_tiny_distilled_patch16_224", 64)],
)  # fmt: skip
def test_backbones_that_must_be_told_the_size_or_must_not(name, size):
    """Some know images of one size only unless told, some cannot be told, some insist on their pooling."""
    backbone = make_backbone(Model(backbone=name), size).eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, size, size)).shape[1:] == (backbone.channels, *backbone.grid)


@pytest.mark.parametrize(
    ("name", "size", "what"),
    [("inception_v3", 64, "Kernel size can't be greater"), ("efficientvim_m1", 64, "gives a list, no map"),
     ("coat_lite_tiny", 64, "gives a tensor"), ("coat_lite_tiny", 96, "no map"), ("crossvit_tiny_240", 64, "no map")],
)  # fmt: skip
def test_backbones_that_give_no_map_say_what_timm_says(name, size, what):
    with pytest.raises(ConfigError, match=rf"^model\.backbone: .*{what}.*[Cc]hoose another") as caught:
        make_backbone(Model(backbone=name), size)
    assert "\n" not in str(caught.value)


def test_a_backbone_that_does_not_show_its_stages_is_named():
    class Plain(nn.Conv2d):
        def forward_features(self, images):
            return self(images)

    with pytest.raises(ConfigError, match=r"Plain does not show its stages.*model\.stride"):
        Backbone(Plain(3, 4, 3), 4, (30, 30)).with_stages(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "resting"),
    [("convnext_atto", {"head.norm.weight", "head.norm.bias"}),
     ("mobilenetv3_small_050", {"conv_head.weight", "conv_head.bias"}), ("test_resnet", set()), ("test_vit", set())],
)  # fmt: skip
def test_parameters_without_a_gradient_do_not_learn_and_the_others_do(name, resting):
    network = Network(make_backbone(Model(backbone=name), 64), "linear")
    network.add_session(2)
    network.train()
    network(torch.rand(2, 3, 64, 64)).logits.square().sum().backward()
    parameters = dict(network.backbone.body.named_parameters())
    assert {n for n, p in parameters.items() if not p.requires_grad} == resting
    assert {n for n, p in parameters.items() if p.grad is None} == resting


@pytest.mark.exports
@pytest.mark.parametrize("head", ["ica", "linear"])
def test_networks_are_saved_whole_and_exported(tmp_path, head):
    network = _network(head).eval()
    network.add_session(3)
    network.add_session(2)
    images = torch.rand(5, 3, 32, 32)
    torch.save(network, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(whole(images).logits, network(images).logits)
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(images).logits, network(images).logits)


def test_normalisation_by_number_by_channel_and_by_timm():
    images = torch.rand(2, 3, 32, 32)
    body = make_backbone(Model(backbone="test_resnet"), 32).body.eval()

    def looks(**keys):
        backbone = make_backbone(Model(backbone="test_resnet", **keys), 32).eval()
        backbone.body.load_state_dict(body.state_dict())
        assert backbone.state_dict().keys() == {f"body.{name}" for name in body.state_dict()}
        return backbone(images)

    def plain(mean, std):
        shape = (1, 3, 1, 1)
        return body.forward_features((images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))

    with torch.no_grad():
        torch.testing.assert_close(looks(), body.forward_features(images))
        torch.testing.assert_close(looks(mean=0.5, std=0.25), plain([0.5] * 3, [0.25] * 3))
        mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
        torch.testing.assert_close(looks(mean=mean, std=std), plain(mean, std))
        trained = timm.get_pretrained_cfg("test_resnet")
        torch.testing.assert_close(looks(weights="timm"), plain(trained.mean, trained.std))
        assert trained.mean != 0 and not torch.allclose(looks(weights="timm"), looks())
        torch.testing.assert_close(looks(weights="timm", mean=0.0, std=1.0), looks())  # what is said goes first
    assert make_backbone(Model(backbone="test_resnet", mean=0.1), 32).double().shift.item() == 0.1  # every digit of it
