"""Features of a backbone that stands still: computed once, read by every run after it, never those of others."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from krt_core.data import features as module
from krt_core.data.store import ImageStore
from krt_core.errors import ConfigError, DataError
from krt_core.model import still
from krt_core.runs.files import read_tensors
from krt_core.session import train
from krt_core.weights.convert import load_model

FROZEN = {"model__freeze": "all", "train__augment": "none"}


@pytest.fixture
def made(monkeypatch):
    """How many images a backbone was asked for, call by call, to fill the cache."""
    asked = []
    original = still.Features.__call__
    monkeypatch.setattr(still.Features, "__call__", lambda self, x: asked.append(len(x)) or original(self, x))
    return asked


def losses(run):
    return [line["loss"] for line in run.epochs]


@pytest.mark.parametrize("method", ["krt", "finetune", "joint", "pod"])
def test_kept_features_change_no_number(tiny, tmp_path, method):
    kept = train(tiny(method=method, **FROZEN), tmp_path / "kept", show="none")
    plain = train(tiny(method=method, **FROZEN, data__features=False), tmp_path / "plain", show="none")
    assert losses(kept) == pytest.approx(losses(plain), rel=1e-5)
    assert np.allclose(kept.scores(1).scores, plain.scores(1).scores, atol=1e-5)


def test_the_backbone_and_its_statistics_stand_still(tiny, tmp_path):
    run = train(tiny(method="krt", model__freeze="all", train__augment="light"), tmp_path / "run", show="none")
    first, last = load_model(run, 0).backbone.state_dict(), load_model(run, 1).backbone.state_dict()
    fresh = train(tiny(method="krt", **FROZEN, train__epochs=1), tmp_path / "other", show="none")
    begun = load_model(fresh, 0).backbone.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, last[name]) and torch.equal(tensor, begun[name]), name


def test_they_are_computed_once(tiny, tmp_path, made):
    train(tiny(method="krt", **FROZEN), tmp_path / "one", show="none")
    assert sum(made) == 64  # forty training and 24 test images: herding, pseudo labels and tests read the same
    train(tiny(method="finetune", **FROZEN, finetune__head="ica"), tmp_path / "two", show="none")
    assert sum(made) == 64
    train(tiny(method="krt", **FROZEN, seed=1), tmp_path / "three", show="none")  # other weights
    assert sum(made) == 128


def test_the_backbone_learns_in_the_first_session_only(tiny, tmp_path):
    run = train(tiny(method="krt", model__freeze="first"), tmp_path / "run", show="none")
    first, last = load_model(run, 0).backbone.state_dict(), load_model(run, 1).backbone.state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())
    names = read_tensors(run.session_folder(1) / "model.safetensors", "").keys()
    assert not any(name.startswith("backbone.") for name in names)
    still_one = train(tiny(method="krt", model__freeze="all"), tmp_path / "still", show="none")
    assert any(
        not torch.equal(tensor, load_model(still_one, 0).backbone.state_dict()[n]) for n, tensor in first.items()
    )


def test_views_are_drawn_from_a_fixed_number(tiny, tmp_path, made):
    how = {"model__freeze": "all", "train__augment": "light", "data__views": 3, "train__epochs": 6}
    one = train(tiny(method="krt", **how), tmp_path / "one", show="none")
    assert 3 * 40 + 24 < (count := sum(made)) <= 3 * 40 + 40 + 24  # some as they are too, for pseudo labels
    two = train(tiny(method="krt", **how), tmp_path / "two", show="none")
    assert sum(made) == count and losses(one) == losses(two)


class Maker:
    shape, dtype, digest = (3, 2, 2), torch.float32, "x"

    def __init__(self, runtime):
        self.runtime, self.asked = runtime, []

    def __call__(self, images):
        self.asked.append(len(images))
        return images[:, :, :2, :2].cpu()


@pytest.fixture
def store(tiny):
    from krt_core.data import open_dataset
    from krt_core.machine.device import choose_runtime

    images = ImageStore(open_dataset(tiny().data, "train"), 32)
    return lambda: module.FeatureStore(images, Maker(choose_runtime("float32", "cpu")))


def test_a_start_that_was_cut_short_loses_a_block(store, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    first, calls = store(), []

    def fails(images):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return images[:, :, :2, :2]

    monkeypatch.setattr(
        first,
        "maker",
        namedtuple("M", "shape dtype digest runtime")((3, 2, 2), torch.float32, "x", first.maker.runtime),
    )
    monkeypatch.setattr(first.maker.__class__, "__call__", lambda self, images: fails(images), raising=False)
    with pytest.raises(KeyboardInterrupt):
        first.ensure(np.arange(40))
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 24
    assert torch.equal(again.rows(np.array([5])), store().rows(np.array([5])))


def test_files_that_were_cut_short_are_made_again(store):
    store().ensure(np.arange(40))
    (path,) = (file for file in store()._path(0).parent.glob("features-*.npy"))
    wanted = store().rows(np.arange(40))
    with path.open("r+b") as file:
        file.truncate(300)
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 40 and torch.equal(again.rows(np.arange(40)), wanted)
    path.with_suffix(".done").write_bytes(b"")
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 40


def test_a_disk_without_room_is_named_before_anything_is_computed(store, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    full = store()
    with pytest.raises(
        DataError, match=r"take 0\.0 MB, and .* has 0\.0 MB left\. Make room, or set data\.features=false"
    ):
        full.ensure(np.arange(40))
    assert not full.maker.asked


def test_numbers_that_are_none_name_their_image(store, monkeypatch):
    broken = store()
    monkeypatch.setattr(Maker, "__call__", lambda self, images: images[:, :, :2, :2] * float("inf"))
    with pytest.raises(DataError, match=r"train2014_000\.png: the backbone makes numbers"):
        broken.ensure(np.arange(40))


def test_pod_says_that_it_has_nothing_to_distil(tiny, tmp_path):
    run = train(tiny(method="pod", **FROZEN), tmp_path / "run", show="none")
    assert "POD has nothing to distil" in (run.folder / "log.txt").read_text()


def test_views_need_a_backbone_that_stands_still(tiny):
    with pytest.raises(ConfigError, match=r"data\.views needs model\.freeze"):
        tiny(data__views=2)
