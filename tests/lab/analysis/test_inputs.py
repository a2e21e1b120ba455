"""Looking into a run whose backbone stood still reads what its training has kept."""

import numpy as np
import pytest
import torch

from krt_core.data import open_dataset, store
from krt_core.lab.analysis.inputs import Inputs
from krt_core.lab.analysis.looks import Models
from krt_core.lab.analysis.pointing import pointing_game
from krt_core.model.backbone import Backbone
from krt_core.session import train
from krt_core.weights.convert import load_model

FROZEN = {"model__freeze": "all", "train__augment": "none"}


@pytest.fixture
def passes(monkeypatch):
    """How many images went through a backbone, call by call."""
    seen, original = [], Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: seen.append(len(x)) or original(self, x))
    return seen


def test_kept_maps_are_looked_at_and_no_image_is_opened(tiny, monkeypatch, passes):
    run = train(tiny(**FROZEN), show="none")
    dataset = open_dataset(run.experiment.data, "test")
    images, model = Inputs(run, dataset).images, load_model(run, 1)
    plain = torch.from_numpy(images.rows(np.arange(24))).permute(0, 3, 1, 2) / 255
    wanted = torch.sigmoid(model(plain).logits).detach().numpy()
    passes.clear()
    monkeypatch.setattr(store.ImageStore, "rows", None)
    seen = Models().look(run, 1, dataset, 5)
    assert not passes and np.allclose(seen.scores[0], wanted[5], atol=1e-5)
    game = pointing_game(run, dataset, 1)
    assert not passes and len(game) == run.protocol.reorder(dataset.labels).sum()
    one = game.iloc[0]
    row, column = list(dataset.ids).index(one.image), run.protocol.classes.index(one["class"])
    assert one.score == pytest.approx(wanted[row, column], abs=1e-5)


def test_maps_that_are_damaged_or_gone_are_not_believed(tiny, passes):
    run = train(tiny(**FROZEN), show="none")
    dataset = open_dataset(run.experiment.data, "test")
    wanted = Models().look(run, 1, dataset, 3).logits
    file = Inputs(run, dataset).features.files[0]
    kept = np.load(file.path, "r+", allow_pickle=False)
    kept[3] += 1
    kept.flush()
    passes.clear()
    assert np.allclose(Models().look(run, 1, dataset, 3).logits, wanted, atol=1e-4) and passes == [1]
    file.path.unlink()
    assert np.allclose(Models().look(run, 1, dataset, 3).logits, wanted, atol=1e-4) and passes == [1, 1]
    assert not file.path.exists()  # looking makes no cache


def test_a_backbone_that_learned_is_shown_images(tiny, passes):
    run = train(tiny(), show="none")
    dataset = open_dataset(run.experiment.data, "test")
    passes.clear()
    inputs = Inputs(run, dataset)
    assert inputs.features is None and inputs.of(np.arange(2)).shape == (2, 3, 32, 32)
    Models().look(run, 0, dataset, 3)
    assert passes == [1]


def test_few_images_make_no_cache_of_decoded_ones(tiny):
    data = tiny().data
    dataset = open_dataset(data, "test")
    images = store.ImageStore(dataset, 24, cache_size=32, build=False)
    assert images.array is None
    few = images.rows(np.arange(3))
    assert images.key and (store.ImageStore(dataset, 24, cache_size=32).rows(np.arange(3)) == few).all()
