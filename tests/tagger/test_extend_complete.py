"""New data of which all classes were looked for: what nobody has named is absent, on untagged images too."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import write_coco
from PIL import Image
from test_extend import ask_ridge, pooled

import krt_core as krt
import krt_core.methods.icarl as icarl
import krt_core.methods.kbk as kbk
import krt_core.methods.krt as krt_method
from krt_core.data import open_dataset
from krt_core.methods.krt import KRT
from krt_core.tagger.extend import extend

pytest_plugins = ("grow_world",)
BLANK = 6  # images that nobody has tagged, in each half


@pytest.fixture
def looked_through(tmp_path):
    """A table of images with all tags of ant, bee, cat and dog, and images with none."""
    source = open_coco(write_coco(tmp_path / "source", train=30, test=12, seed=5))
    folder, rows = tmp_path / "looked", [("path", "tags", "split")]
    folder.mkdir()
    for split, dataset in source.items():
        for row in range(len(dataset)):
            name = dataset.path(row).name
            (folder / name).write_bytes(dataset.path(row).read_bytes())
            shown = [tag for tag, there in zip(dataset.classes, dataset.labels[row], strict=True) if there]
            rows.append((name, "|".join(shown), split))
        for number in range(BLANK):
            image = np.random.default_rng(number).integers(0, 60, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{split}_blank_{number}.png")
            rows.append((f"{split}_blank_{number}.png", "", split))
    with (folder / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def open_coco(root):
    from krt_core.config import Data

    return {split: open_dataset(Data(dataset="coco", root=str(root)), split) for split in ("train", "test")}


@pytest.mark.parametrize("method", ["ridge", "census"])
def test_sums_count_every_image_for_every_class(own, looked_through, method):
    run = own(method, **{f"{method}__penalty": 0.1})
    new = extend(run, looked_through, {"complete": True}, show="none")
    old_set, new_set = open_dataset(run.experiment.data, "train"), krt.open_dataset(new)
    fresh = new_set.select_images(new_set.arrived == 1, "train")
    assert len(fresh) == 30 + BLANK == new.session_state(3)["train_images"]
    assert (fresh.truth >= 0).all() and (~fresh.labels.any(axis=1)).sum() == BLANK
    shown = [old_set.labels[:, c] for c in range(3)]  # each session: the images of its class
    if method == "ridge":
        phi = pooled(run, old_set)
        rows = np.concatenate([phi[y] for y in shown])
        labels = np.concatenate([np.eye(4)[[c] * int(y.sum())] for c, y in enumerate(shown)])
    else:  # each image once, with all labels that were shown of it
        any_shown = old_set.labels[:, :3].any(axis=1)
        rows = pooled(run, old_set)[any_shown]
        labels = np.pad(old_set.labels[any_shown][:, :3].astype(float), ((0, 0), (0, 1)))
    every = np.concatenate([rows, pooled(run, fresh)])
    W, b = ask_ridge(every, np.concatenate([labels, fresh.labels.astype(float)]), 0.1)
    found = new.model_state(3)
    weights = np.concatenate([found[f"heads.{t}.weight"].numpy() for t in range(4)])
    biases = np.concatenate([found[f"heads.{t}.bias"].numpy() for t in range(4)])
    assert np.abs(weights - 8 * W.T).max() < 1e-4 and np.abs(biases - 8 * (b - 0.5)).max() < 1e-4


@pytest.mark.parametrize("complete", [True, False])
def test_pseudo_labels_never_overrule_what_was_annotated(own, looked_through, monkeypatch, complete):
    """The old model is made to see every old class everywhere."""
    run, asked = own("krt", replay__per_class=2), []
    original = krt_method.asymmetric_loss
    monkeypatch.setattr(KRT, "restore", lambda self, labels, old: torch.cat(
        [torch.ones_like(labels[:, : old.shape[1]]), labels[:, old.shape[1] :]], dim=1
    ))  # fmt: skip
    monkeypatch.setattr(
        krt_method, "asymmetric_loss", lambda logits, y, *more: asked.append(y.clone()) or original(logits, y, *more)
    )
    overrides = {"complete": True} if complete else {"classes": ["cat", "dog"]}
    new = extend(run, looked_through, overrides, show="none")
    fresh = krt.open_dataset(new)
    fresh = fresh.truth[fresh.arrived == 1]
    wanted = np.where(fresh < 0, 1, fresh) if not complete else fresh
    stored = sum(map(len, run.session_state(2)["exemplar_ids"]))
    targets = torch.cat(asked).int().numpy()
    assert len(targets) == len(fresh) + stored == 30 + BLANK + stored
    of_exemplars = [[1, 1, 1, -1]] * stored  # what these hide may be restored, as ever
    assert sorted(targets.tolist()) == sorted([*wanted.astype(int).tolist(), *of_exemplars])
    assert "given where nobody has annotated the class" in (new.folder / "log.txt").read_text()


@pytest.mark.parametrize("method, module, function, classes", [
    ("kbk", kbk, "asymmetric_loss", 4), ("icarl", icarl, "binary_cross_entropy", 3),
])  # fmt: skip
def test_kbk_restores_and_icarl_distils_no_other(own, looked_through, monkeypatch, method, module, function, classes):
    changes = {"replay__per_class": 2, "replay__selection": "herding"} if method == "icarl" else {}
    run, asked, original = own(method, **changes), [], getattr(module, function)

    def spy(logits, y, *more, **keys):
        asked.append(y.clone())
        return original(logits, y, *more, **keys)

    monkeypatch.setattr(module, function, spy)
    monkeypatch.setattr(kbk.KBK, "restore", lambda self, labels, old: torch.full_like(labels, 0.5))
    new = extend(run, looked_through, {"complete": True}, show="none")
    targets = torch.cat([y for y in asked if y.shape[1] == classes])
    annotated = targets[((targets == 0) | (targets == 1)).all(dim=1)]
    fresh = krt.open_dataset(new)
    wanted = fresh.labels[fresh.arrived == 1][:, :classes].astype(int).tolist()
    assert sorted(annotated.int().tolist()) == sorted(wanted)


def test_images_that_a_coco_file_lists_without_an_annotation_are_named(own, march):
    """They are left out, as everywhere in this layout."""
    path = march / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != first]
    path.write_text(json.dumps(content))
    new = extend(own("ridge"), march, {"complete": True}, show="none")
    listed, shown = len(content["images"]), len({one["image_id"] for one in content["annotations"]})
    assert new.session_state(3)["train_images"] == shown < listed
    assert (
        f"data: {listed - shown} of {listed} images have no label and are left out"
        in (new.folder / "log.txt").read_text()
    )


def test_held_out_images_without_a_tag_calibrate_and_are_not_learned_from(own, looked_through):
    run = own("ridge", data__validation=0.25)
    new = extend(run, looked_through, {"complete": True}, show="none")
    held = krt.open_dataset(new, "validation")
    held = held.select_images(held.arrived == 1, "validation")
    assert (~held.labels.any(axis=1)).any()
    assert new.session_state(3)["train_images"] + len(held) == 30 + BLANK
    assert new.calibration(3).images == run.calibration(2).images + 30 + BLANK
