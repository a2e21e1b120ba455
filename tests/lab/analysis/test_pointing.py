"""The pointing game on maps and boxes made by hand, and on a short training."""

import numpy as np
import pytest

from krt_core.data import open_dataset
from krt_core.errors import DataError
from krt_core.lab.analysis.pointing import WAYS, _hits, _inside, pointing_game, pointing_table
from krt_core.session import train


def test_the_centre_of_the_strongest_patch_counts():
    boxes = [np.array([0.5, 0.0, 0.5, 0.5]), np.array([0.0, 0.75, 0.25, 0.25])]
    inside = _inside((4, 4), boxes)
    assert inside.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    maps = {"a": np.arange(16).reshape(4, 4), "b": -np.abs(np.arange(16).reshape(4, 4) - 12)}
    assert dict(_hits(maps, boxes)) == {"a": 0, "b": 1, "chance": 5 / 16}


@pytest.mark.slow
def test_a_trained_model_points_at_colours(tiny, coco_root):
    run = train(tiny(train__epochs=8), show="none")
    dataset = open_dataset(run.experiment.data, "test")
    game = pointing_game(run, dataset, 1)
    labels = run.protocol.reorder(dataset.labels)
    assert len(game) == labels.sum() and set(game.learned) == {1, 2}
    assert game.chance.eq(0.25).all()  # boxes are a quarter of the image
    assert game[list(WAYS)].isin([0, 1, 0.25]).all(axis=None)
    assert game.evidence.mean() > 0.4
    table = pointing_table(run, dataset)
    assert table.index.tolist() == [1, 2, "all"] and table.chance.eq(25).all()
    assert table.loc["all", "evidence"] == round(100 * game.evidence.mean(), 1)
    assert len(pointing_game(run, dataset, 0, images=3)) == labels[:3, :2].sum()
    object.__setattr__(dataset, "boxes", np.zeros((0, 6)))
    with pytest.raises(DataError, match="has no boxes"):
        pointing_game(run, dataset, 1)
