"""Digits in scenes that are asked for: labels per image and co-occurrence as told; the embedded set as it was."""

import hashlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from krt_core.config import Data, load_experiment
from krt_core.data import digits, open_both, open_dataset, open_halves
from krt_core.data.store import ImageStore
from krt_core.errors import ConfigError, DataError
from krt_core.lab.report.naming import setting_of
from krt_core.runs.folder import Run

# Pixels and labels of the first scenes, before any could be asked for.
EMBEDDED = "4c9eb67e07e836b28c4c348c21c004bcd8bde21d078ae63b51a7409031717273"


def digest_of(root):
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.png")):
        digest.update(file.name.encode())
        digest.update(np.asarray(Image.open(file)).tobytes())
    for file in sorted(root.rglob("instances*.json")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digits, "SCENES", {"train": 12, "test": 8})


def test_the_embedded_scenes_are_as_they_were(home, few):
    assert digest_of(digits.make(home / "data/digits")) == EMBEDDED
    assert load_experiment("digits_demo").run_name() == "digits_demo-krt-a5afaa25-s0"


def test_scenes_that_are_asked_for_lie_apart_and_are_the_same_each_time(home, few):
    asked = [Data(), Data(cardinality=1.2), Data(cardinality=4.0), Data(cardinality=1.2, co_occurrence=1.0)]
    sets = [open_dataset(data, "train") for data in asked]
    assert [half.root.name for half in sets] == [
        "digits", "digits-1.2labels", "digits-4.0labels", "digits-1.2labels-1.0together"
    ]  # fmt: skip
    assert len({half.digest() for half in sets}) == 4
    stores = [ImageStore(half, 64).rows(np.arange(3)).tobytes() for half in sets]
    assert len(set(stores)) == 4
    again = digits.make(home / "again", 1.2, 1.0)
    assert digest_of(again) == digest_of(sets[3].root) != digest_of(digits.make(home / "third", 1.2))
    assert digest_of(sets[0].root) == EMBEDDED
    info = json.loads((again / "annotations/info.json").read_text())
    assert (info["cardinality"], info["co_occurrence"]) == (1.2, 1.0)
    assert digest_of(digits.make(again, 1.2, 0.0)) != digest_of(sets[3].root)  # other scenes are not taken for these


def labels_of(cardinality, co_occurrence, scenes=1500):
    """(scenes, 10) bool, as drawn for the training half."""
    rng = np.random.default_rng(0)
    out = np.zeros((scenes, 10), bool)
    for row in out:
        row[digits._labels(rng, 10, cardinality, co_occurrence)] = True
    return out


def together(labels):
    """Share of the pairs of labels that are of one group; 4/9 by chance."""
    pairs = [(a % 2 == b % 2) for row in labels for a, b in itertools.combinations(np.flatnonzero(row), 2)]
    return np.mean(pairs)


@pytest.mark.parametrize("co_occurrence", [0.0, 0.33, 1.0])
@pytest.mark.parametrize("cardinality", [1.2, 1.8, 2.5, 3.2, 4.0])
def test_labels_per_image_and_co_occurrence_are_reached(cardinality, co_occurrence):
    labels = labels_of(cardinality, co_occurrence)
    assert labels.sum(axis=1).mean() == pytest.approx(cardinality, abs=0.1)
    assert labels.sum(axis=0).min() > 0.8 * 150 * cardinality  # every class has its tenth
    reached = (together(labels) - 4 / 9) / (5 / 9)
    assert reached == pytest.approx(co_occurrence, abs=0.15 if cardinality < 1.5 else 0.07)


def test_every_label_that_is_asked_for_finds_room(home, monkeypatch):
    """The scenes hold what was drawn: five digits in 64 px too, in both halves, and each class has images."""
    monkeypatch.setattr(digits, "SCENES", {"train": 150, "test": 60})
    train, test = open_both(Data(cardinality=4.0, co_occurrence=0.5))
    assert train.labels.sum(axis=1).mean() == pytest.approx(4, abs=0.25) and train.labels.sum(axis=1).max() == 5
    assert len(train) == 150 and len(test) == 60 and min(h.labels.sum(axis=0).min() for h in (train, test)) >= 10
    assert together(train.labels) == pytest.approx(0.5 * 5 / 9 + 4 / 9, abs=0.1)
    _, _, _, _, width, height = train.boxes.T
    assert 13 < 64 * width.mean() < 20 and 20 < 64 * height.mean() < 28  # about as large as embedded: 17.5 and 25


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.cardinality=0.5"], "data.cardinality must be 0, for the embedded scenes, or from 1 to 4"),
        (["data.cardinality=4.5"], "data.cardinality must be at most 4"),
        (["data.co_occurrence=1.5"], "data.co_occurrence must be at most 1"),
        (["data.co_occurrence=much"], "data.co_occurrence must be a number"),
        (["data.dataset=coco", "data.cardinality=2"], "data.dataset=digits.*data.labels_per_image takes those"),
        (["data.labels_per_image=[2]"], r"data.labels_per_image must be the least and the most labels, such as \[1, 2"),
        (["data.labels_per_image=[3, 2]"], "data.labels_per_image must be the least and the most"),
        (["data.labels_per_image=[0, 2]"], "data.labels_per_image.* at least 1"),
    ],
)
def test_what_cannot_be_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_experiment("digits_demo", overrides)


def test_they_are_other_experiments_on_other_data():
    hashes, names = set(), set()
    for change in ([], ["data.cardinality=2.5"], ["data.co_occurrence=0.5"], ["data.labels_per_image=[1, 2]"]):
        experiment = load_experiment("digits_demo", change)
        hashes.add(experiment.hash())
        names.add(setting_of(Run.create(experiment))[0])
    assert len(hashes) == 4
    assert names == {"digits", "digits, 2.5 labels an image", "digits, co-occurrence 0.5"}  # the last tests on the same


def test_training_images_with_so_many_labels(coco_root):
    every, test = open_both(Data(dataset="coco", root=str(coco_root)))
    few, same = open_both(Data(dataset="coco", root=str(coco_root), labels_per_image=(2, 3)))
    wanted = (every.labels.sum(axis=1) >= 2) & (every.labels.sum(axis=1) <= 3)
    assert (few.ids == every.ids[wanted]).all() and 0 < len(few) < len(every)
    assert (same.ids == test.ids).all()  # tested on all
    assert few.notes[-1] == f"{wanted.sum()} of 40 training images have 2 to 3 labels: the others are left out"
    data = Data(dataset="coco", root=str(coco_root), labels_per_image=(1, 1), classes=("dog", "ant"), validation=0.5)
    train, held = open_dataset(data, "train"), open_dataset(data, "validation")
    both = np.concatenate([train.labels, held.labels])
    assert (both.sum(axis=1) == 1).all() and len(train) and len(held) and not {*train.ids} & {*held.ids}
    assert (open_both(data)[0].ids == train.ids).all()
    # Held out are the same images as without a choice, as far as they are chosen: nothing held out is learned.
    whole = {*open_dataset(replace(data, labels_per_image=()), "validation").ids}
    halves = open_halves(data)
    assert {*halves.train.ids[halves.held]} == {*held.ids} == whole & {*halves.train.ids}
    assert {*train.ids} == {*halves.train.ids} - whole
    with pytest.raises(DataError, match=r"instances_train2014.json: no training image has 9 to 9 labels, as data"):
        open_both(Data(dataset="coco", root=str(coco_root), labels_per_image=(9, 9)))
