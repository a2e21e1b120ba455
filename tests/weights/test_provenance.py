"""Nests, prefixes and classifiers of every kind: a leak is seen, what is taken is said, nothing untrue is said."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from krt_core.cli import main
from krt_core.config import Model
from krt_core.errors import CheckpointError
from krt_core.model.backbone import make_backbone
from krt_core.weights.checkpoint import inspect
from krt_core.weights.fit import load_backbone


def zeros(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def net(prefix="", head="", outputs=0):
    """A small state dict; ``head`` is the name of its classifier."""
    tensors = zeros(conv1__weight=(8, 3, 3, 3), bn1__weight=(8,), layer1__0__conv1__weight=(8, 8, 3, 3))
    if head:
        tensors |= {f"{head}.weight": torch.zeros(outputs, 8), f"{head}.bias": torch.zeros(outputs)}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def tresnet(head="head.fc", outputs=0):
    tensors = zeros(body__conv1__0__weight=(2, 2, 3, 3), body__layer1__0__conv1__0__weight=(2, 2, 3, 3))
    return tensors | ({f"{head}.weight": torch.zeros(outputs, 2)} if outputs else {})


def explained(tmp_path, content, name="w.pth"):
    torch.save(content, tmp_path / name)
    return inspect(tmp_path / name)


COCO = net(head="fc", outputs=80)
NESTS = {
    "model_state_dict": {"epoch": 3, "model_state_dict": COCO, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "net": {"net": COCO, "acc": 91.2, "epoch": 4},
    "params": {"params": {"generator": {"module": COCO}}},
    "deep": {"checkpoint": {"state": {"ema": {"model": COCO}}}},
    "lightning": {
        "state_dict": net("model.", "fc", 80) | {"criterion.weight": torch.zeros(3)}, "loops": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(900, 9)}}}], "hyper_parameters": {"lr": 0.1},
    },
    "mmlab": {"meta": {"epoch": 3},
              "state_dict": net("backbone.") | zeros(head__fc__weight=(80, 8), head__fc__bias=(80,))},
    "deepspeed": {"module": [COCO], "ds_version": "0.9", "optimizer": None},
    "pipeline": {"module": [net(), zeros(head__weight=(80, 8), head__bias=(80,))]},
    "pairs": list(COCO.items()),
    "one dictionary a module": {"params": {"conv1": zeros(weight=(8, 3, 3, 3)),
                                           "fc": zeros(weight=(80, 8), bias=(80,))}},
    "apart": {"encoder": net(), "classifier": zeros(weight=(80, 8), bias=(80,))},
    "itself": {"state_dict": COCO, "beside": argparse.Namespace(lr=1)},
    **{prefix: net(prefix, "fc", 80) for prefix in (
        "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "student.", "teacher.", "module._orig_mod.",
        "_orig_mod.module.", "model.backbone.", "module.model.encoder.", "_forward_module.module.",
        "_fsdp_wrapped_module.", "base_model.",
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", NESTS)
def test_every_nest_and_prefix_is_seen_through(tmp_path, capsys, name):
    found = explained(tmp_path, NESTS[name])
    assert found.classes == 80 and "80 outputs" in found.leak and "conv1.weight" in found.tensors
    assert not found.notes  # one network
    assert main(["inspect", str(tmp_path / "w.pth")]) == 0
    assert "leaks: yes: its classifier has 80 outputs" in capsys.readouterr().out


def test_a_dictionary_that_holds_itself(tmp_path):
    content = {"state_dict": COCO}
    content["again"] = content
    assert explained(tmp_path, content).classes == 80


def test_of_several_networks_one_is_taken_and_it_is_said_which(tmp_path, capsys):
    body = make_backbone(Model(backbone="test_resnet"), 32).body.state_dict()
    other = {name: tensor + 1 for name, tensor in body.items()}

    def under(prefix, tensors):
        return {prefix + name: tensor for name, tensor in tensors.items()}

    queue = {"queue": torch.zeros(128, 9000), "queue_ptr": torch.zeros(1)}
    head = {"head.last_layer.weight_v": torch.zeros(999, 64)}
    for content, taken, beside in (
        ({"state_dict_ema": other, "state_dict": body}, "state_dict", "state_dict_ema"),
        ({"model_ema": {"module": other}, "model": body}, "model", "model_ema.module"),
        ({"student": under("module.backbone.", other) | head, "teacher": under("backbone.", body) | head},
         "teacher.backbone", "student.module.backbone"),
        ({"state_dict": under("module.encoder_k.", other) | under("module.encoder_q.", body) | queue},
         "state_dict.module.encoder_q", "state_dict.module.encoder_k"),
        (under("target_encoder.", other) | under("online_encoder.", body), "online_encoder", "target_encoder"),
    ):  # fmt: skip
        found = explained(tmp_path, content)
        assert found.taken == f"{taken}." and found.leak is None
        assert found.notes == [f"it holds several networks: {taken} is taken; beside it there is {beside}"]
        assert main(["inspect", str(tmp_path / "w.pth")]) == 0
        assert f"taken from: {taken}\n" in capsys.readouterr().out
        config = Model(backbone="test_resnet", weights=str(tmp_path / "w.pth"))
        backbone = make_backbone(config, 32)
        assert load_backbone(backbone, config)["taken"] == taken
        assert all(torch.equal(tensor, body[name]) for name, tensor in backbone.body.state_dict().items())
    torch.save({"state_dict_ema": body, "epoch": 3}, tmp_path / "w.pth")  # the average alone
    backbone = make_backbone(config, 32)
    assert load_backbone(backbone, config)["taken"] == "state_dict_ema"


HEADS = {
    "fc": (net(head="fc", outputs=80), 80),
    "head": (net(head="head", outputs=20), 20),
    "head.fc": (net(head="head.fc", outputs=80), 80),
    "heads.head": (net(head="heads.head", outputs=20), 20),
    "classifier.6": (net(head="classifier.6", outputs=80) | zeros(classifier__0__weight=(40, 8)), 80),
    "mlp_head.1": (net(head="mlp_head.1", outputs=20), 20),
    "resnet.fc": (net("resnet.", "fc", 80), 80),
    "head_dist": (net(head="head_dist", outputs=20), 20),
    "convolution": (net() | zeros(fc__weight=(80, 8, 1, 1), fc__bias=(80,)), 80),
    "background": (net(head="roi_heads.box_predictor.cls_score", outputs=91), 91),
    "VOC and background": (net(head="classifier.4", outputs=21), 21),
    "COCO and background": (net(head="bbox_head.fc_cls", outputs=81), 81),
    "DETR": (net("backbone.0.body.") | zeros(class_embed__weight=(92, 8), query_embed__weight=(100, 8)), 92),
    "grown": (net() | {f"heads.{i}.head.weight": torch.zeros(10, 8) for i in range(8)}, 80),
    "one vector a class": (net() | {f"heads.{i}.weight": torch.zeros(1, 8) for i in range(20)}, 20),
    "several looks": (net() | {f"classifier.multi_head.{i}.head.weight": torch.zeros(80, 8, 1, 1) for i in range(8)},
                      80),
    "group_fc": (net() | zeros(group_fc__weight=(80, 8), group_fc__bias=(80,)), 80),
    "ML-Decoder": (tresnet() | zeros(head__decoder__duplicate_pooling=(80, 2, 1),
                   head__decoder__duplicate_pooling_bias=(80,)), 80),
    "ML-Decoder of another backbone": (net() | {"head.decoder.group_fc.duplicate_pooling_bias": torch.zeros(20)}, 20),
    "Query2Label": (net("backbone.0.body.") | zeros(query_embed__weight=(80, 8), fc__W=(1, 80, 8), fc__b=(1, 80)), 80),
    "graph": (zeros(features__0__weight=(8, 3, 3, 3), gc1__weight=(300, 64), A=(80, 80)), 80),
    "EfficientNet": (zeros(_conv_stem__weight=(8, 3, 3, 3), _fc__weight=(20, 8), _fc__bias=(20,)), 20),
    "RetinaNet": (net("backbone.body.") | zeros(head__classification_head__cls_logits__weight=(819, 8, 3, 3)), 91),
    "RetinaNet of 80": (net("backbone.") | zeros(bbox_head__retina_cls__weight=(720, 8, 3, 3)), 80),
    "FCOS": (net("backbone.") | zeros(bbox_head__conv_cls__weight=(80, 8, 3, 3)), 80),
    "EfficientDet": (net("backbone.") | zeros(class_net__predict__conv_pw__weight=(810, 8, 1, 1)), 90),
    "SSD of VOC": (net("backbone.") | {f"head.classification_head.module_list.{i}.weight": torch.zeros(n, 8, 3, 3)
                   for i, n in enumerate((84, 126, 126))}, 21),
    "prototypes": (net() | zeros(class_means=(80, 8)), 80),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_classifiers_of_every_kind_are_found(tmp_path, name, prefix):
    tensors, classes = HEADS[name]
    found = explained(tmp_path, {"state_dict": {prefix + key: tensor for key, tensor in tensors.items()}})
    assert found.classes == classes and found.leak
    data = "COCO" if classes > 21 else "VOC"
    assert data in found.leak


NO_LEAKS = {  # content, what it was trained on, classes, "leaks"
    "TResNet of ImageNet": ({"model": tresnet(outputs=1000)}, "ImageNet-1k, by its 1,000 outputs", 1000,
                            "no reason known"),
    "TResNet of ImageNet-21k": ({"state_dict": tresnet(outputs=11221)}, "ImageNet-21k (MIIL)", 11221,
                                "no reason known"),
    "TResNet without a head": ({"model": tresnet()}, "unknown", None, "unknown"),
    "TResNet of something": ({"model": tresnet(outputs=9605)}, "unknown", 9605, "unknown"),
    "ImageNet-21k": (net(head="head", outputs=21841), "ImageNet-21k", 21841, "no reason known"),
    "wide layers": (net(head="fc", outputs=1000) | zeros(stages__0__blocks__0__mlp__fc2__weight=(80, 8),
                    stages__0__blocks__0__mlp__fc2__bias=(80,), layer1__0__se__fc__weight=(20, 8, 1, 1)),
                    "ImageNet-1k", 1000, "no reason known"),
    "a detector of something": (net("backbone.") | zeros(bbox_head__retina_cls__weight=(99, 8, 3, 3),
                                bbox_head__cls_convs__0__conv__weight=(240, 8, 3, 3)), "unknown", None, "unknown"),
    "no classifier": (net() | zeros(conv_head__weight=(1280, 8, 1, 1), conv_head__bias=(1280,)), "unknown", None,
                      "unknown"),
    "MoCo": ({"state_dict": net("module.encoder_q.", "fc", 128)}, "without labels by its layout (MoCo)", None,
             "unknown"),
    "MAE": ({"model": net() | zeros(mask_token=(1, 1, 8), decoder_pred__weight=(48, 8))}, "masked images", None,
            "unknown"),
    "half of an increment": (net() | {f"heads.{i}.head.weight": torch.zeros(10, 8) for i in range(4)},
                             "unknown, in 4 heads (10 + 10 + 10 + 10)", 40, "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LEAKS)
def test_nothing_untrue_is_said(tmp_path, capsys, name):
    content, trained_on, classes, leaks = NO_LEAKS[name]
    found = explained(tmp_path, content)
    assert trained_on in found.trained_on and found.classes == classes and found.leak is None
    assert main(["inspect", str(tmp_path / "w.pth")]) == 0
    printed = capsys.readouterr().out
    assert f"leaks: {leaks}" in printed and "COCO" not in printed and "VOC" not in printed


@pytest.mark.parametrize(
    "about",
    [
        {"num_classes": 80}, {"args": argparse.Namespace(num_class=80)}, {"config": {"n_classes": 20}},
        {"args": argparse.Namespace(dataname="coco14")}, {"hyper_parameters": {"dataset": "PASCAL VOC 2007"}},
        {"meta": {"CLASSES": ("person", "bicycle", "car", "bus", "train", "boat", "bird", "cat", "dog", "horse")}},
    ],
)  # fmt: skip
def test_what_a_file_says_of_itself_can_speak_for_a_leak(tmp_path, about):
    assert explained(tmp_path, {"model": net(), **about}).leak
    assert not explained(
        tmp_path, {"model": net(), "args": argparse.Namespace(num_classes=1000, dataset="imagenet")}
    ).leak


def test_what_a_file_says_of_itself_cannot_hide_one(tmp_path):
    found = explained(tmp_path, {"model": COCO, "num_classes": 1000, "dataset": "imagenet"})
    assert "80 outputs" in found.leak and "ImageNet" not in found.trained_on


SAID = {"experiment": {"data": {"dataset": "digits"}, "method": "krt", "seed": 0}, "classes": ["a", "b", "c"]}
OURS = {"backbone.body.conv1.weight": torch.zeros(8, 3, 3, 3), "heads.0.head.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "entry",
    ["words", "[1, 2]", "{}", "null", '{"experiment": 1, "classes": 2}', json.dumps({**SAID, "classes": "abc"}),
     json.dumps({**SAID, "experiment": {"data": {}}}), json.dumps({**SAID, "classes": ["a"]}), "[" * 9000],
)  # fmt: skip
def test_an_entry_krt_that_is_not_ours_is_not_believed(tmp_path, entry):
    save_file(OURS, tmp_path / "ours.safetensors", {"krt": entry})
    found = inspect(tmp_path / "ours.safetensors")
    assert found.layout == "krt-workbench" and found.classes == 2 and "knows its classes" in found.leak
    assert "workbench of 2 classes" in found.trained_on and "not believed" in found.notes[0]
    save_file(tresnet(outputs=1000), tmp_path / "theirs.safetensors", {"krt": entry})
    found = inspect(tmp_path / "theirs.safetensors")
    assert found.trained_on.startswith("ImageNet-1k") and "not believed" in found.notes[0]


def test_a_true_entry_on_other_tensors_is_not_believed(tmp_path, capsys):
    save_file(tresnet(outputs=80), tmp_path / "coco.safetensors", {"krt": json.dumps(SAID)})
    found = inspect(tmp_path / "coco.safetensors")
    assert found.layout == "asl" and "all 80 COCO classes" in found.leak and "digits" not in found.trained_on
    assert main(["inspect", str(tmp_path / "coco.safetensors")]) == 0
    assert "not believed" in capsys.readouterr().out
    save_file(OURS, tmp_path / "ours.safetensors", {"krt": json.dumps(SAID)})
    found = inspect(tmp_path / "ours.safetensors")
    assert found.trained_on == "digits, method krt, seed 0: a, b" and not found.notes


def test_files_without_weights_say_what_they_have(tmp_path):
    for content, what in (
        ({"epoch": 3, "args": argparse.Namespace(lr=1)}, "the keys epoch, args"), (torch.zeros(3), "a Tensor"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, "the keys optimizer"),
        ([1, 2], "a list"), ({}, "a dict"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"w\.pth holds no tensors by name .*{what}"):
            explained(tmp_path, content)
