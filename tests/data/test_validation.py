"""The images that are held out: which, how many of each class and session, and that nothing else is looked at."""

import re
import time

import numpy as np
import pytest

from krt_core.config import Data, load_experiment
from krt_core.data import open_dataset, open_halves
from krt_core.data.validation import held_out
from krt_core.errors import ConfigError, DataError
from krt_core.protocol import make_protocol


def world(n=3000, classes=12, seed=0):
    """Labels with a long tail, classes that meet, images without a label, and ids."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, classes)) < np.minimum(0.4, 0.6 / np.arange(1, classes + 1) ** 1.4)
    labels[labels[:, 0], 1] |= rng.random(labels[:, 0].sum()) < 0.3
    labels[:, -2:] = False
    labels[7, -2] = labels[[11, 12, 13], -1] = True  # classes with one image and with three
    return np.array([f"photo {i}" for i in range(n)]), labels


@pytest.mark.parametrize("share", [0.05, 0.2, 0.37, 0.5, 0.8])
def test_every_class_has_its_share(share):
    ids, labels = world()
    held, counts = held_out(ids, labels, share), labels.sum(axis=0)
    wanted = np.minimum(share * counts, counts - 1)
    assert (np.abs(labels[held].sum(axis=0) - wanted) <= 1).all(), (labels[held].sum(axis=0), wanted)
    assert not labels[held][:, -2].any()  # the only image of a class is learned from
    assert abs(held.mean() - share) < 0.01 and abs(held[~labels.any(axis=1)].mean() - share) < 0.01
    for seed in (None, 1, 2):
        protocol = make_protocol(tuple("abcdefghijkl"), 4, 2, seed)
        ordered = protocol.reorder(labels)
        for session in protocol.sessions:
            rows = protocol.train_images(ordered, session.index)
            assert abs(held[rows].sum() - share * len(rows)) <= max(4, 0.05 * len(rows)), session


def test_rows_may_come_in_any_order_and_ids_decide():
    ids, labels = world()
    held, turned = held_out(ids, labels, 0.2), np.random.default_rng(1).permutation(len(ids))
    assert (held_out(ids[turned], labels[turned], 0.2) == held[turned]).all()
    other = held_out(np.array([f"another {i}" for i in range(len(ids))]), labels, 0.2)
    assert 0.1 < (held & other).sum() / held.sum() < 0.35  # as chance would have it


def test_no_images_and_no_labels():
    assert held_out([], np.zeros((0, 3), bool), 0.2).shape == (0,)
    assert held_out(list("abcde"), np.zeros((5, 2), bool), 0.4).sum() == 2
    assert not held_out(["a"], np.ones((1, 2), bool), 0.9).any()


def test_as_many_images_as_coco_take_no_time():
    ids, labels = world(82081, 80)
    began = time.perf_counter()
    held_out(ids, labels, 0.2)
    assert time.perf_counter() - began < 5  # 0.15 s on a quiet machine


def test_the_split_is_the_same_for_seeds_orders_methods_and_chosen_classes(tiny):
    def held(**changes):
        halves = open_halves(tiny(data__validation=0.3, **changes).data)
        return set(halves.train.ids[halves.held])

    first = held()
    assert 8 <= len(first) <= 16
    assert first == held(seed=3) == held(protocol__order_seed=1) == held(method="pod") == held(data__classes=["dog"])
    assert (
        first == held(data__test="validation") == set(open_dataset(tiny(data__validation=0.3).data, "validation").ids)
    )
    learned = open_dataset(tiny(data__validation=0.3).data, "train")
    assert not first & set(learned.ids) and len(first) + len(learned) == 40


def test_what_is_said(coco_root, tiny):
    halves = open_halves(tiny(data__validation=0.3).data)
    assert halves.said.endswith("24 test images") and "validation" in halves.said
    assert halves.notes == (f"{halves.held.sum()} of 40 training images are held out for validation",)
    assert halves.inputs() != open_halves(tiny(data__validation=0.4).data).inputs()
    assert "held_out" in halves.inputs() and "held_out" not in open_halves(tiny().data).inputs()
    with pytest.raises(DataError, match=r"data.validation is 0: no training images are held out"):
        open_dataset(Data(dataset="coco", root=str(coco_root)), "validation")
    with pytest.raises(ConfigError, match="data.test=validation needs data.validation"):
        tiny(data__test="validation")
    few = tiny(data__validation=0.01)
    assert re.search(
        r"data\.validation=0\.01 holds no image out of these .*: ant \(\d+\)", open_halves(few.data).notes[-1]
    )


def test_the_key_of_an_older_version_is_refused_anew_and_read_in_run_folders(tmp_path):
    from krt_core.config import experiment_from
    from krt_core.lab.report.published import held_out as share_of
    from krt_core.lab.report.published import tested_as

    with pytest.raises(ConfigError, match=r"data.holdout is no more: set data.validation=0.1 data.test=validation"):
        load_experiment("coco_b0c10", ["data.holdout=0.1"])
    content = load_experiment("coco_b0c10").to_dict()
    content["data"]["holdout"] = 0.1
    old = experiment_from(content, stored=True)
    assert old.to_dict()["data"]["holdout"] == 0.1 and old.hash() != load_experiment("coco_b0c10").hash()
    assert share_of(old) == 0.1 and tested_as(old) == "" and tested_as(load_experiment("coco_b0c10")) == "coco2014"
    content["data"]["holdout"] = 0.0
    assert experiment_from(content, stored=True).hash() == load_experiment("coco_b0c10").hash()
