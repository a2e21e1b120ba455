"""Runs whose backbone stands still, in every explorer: as without features that are kept, and quickly."""

import time

import numpy as np
import pytest

from krt_core.data import open_dataset
from krt_core.lab.analysis import look_at, pointing_table, quality
from krt_core.lab.explorers.attention import AttentionExplorer
from krt_core.lab.explorers.forgetting import ForgettingExplorer
from krt_core.lab.explorers.gallery import Gallery
from krt_core.lab.explorers.pseudo_labels import LabelInspector
from krt_core.lab.figures import training_loss
from krt_core.lab.report import names_of
from krt_core.session import train


@pytest.fixture
def both(tiny, home):
    """The same run from features that are kept and from images, float64 so that rounding does not add up."""
    how = {"model__freeze": "all", "train__augment": "none", "train__precision": "float64"}
    return [train(tiny(**how, data__features=kept), f"outputs/demo/runs/{kept}", show="none") for kept in (True, False)]


def test_what_a_model_sees_is_the_same(both):
    for with_features, without in zip(*(look_at(run, count=2) for run in both), strict=True):
        assert with_features.image == without.image
        for one, other in zip(with_features.looks, without.looks, strict=True):
            assert np.allclose(one.patches, other.patches, atol=1e-6)
            assert np.allclose(one.logits, other.logits, atol=1e-5)
        for name, evidences in with_features.evidence().items():
            for one, other in zip(evidences, without.evidence()[name], strict=True):
                assert (one is None) == (other is None)
                assert one is None or np.allclose(one.maps, other.maps, atol=1e-5)
    a, b = (quality(run) for run in both)
    assert np.allclose(a, b, atol=1e-6, equal_nan=True)
    a, b = (pointing_table(run, open_dataset(run.experiment.data, "test"), 10) for run in both)
    assert a.equals(b)


def test_every_view_opens_at_once(both):
    assert names_of(both) == ["krt, frozen, seed 0", "krt, frozen, data.features=False, seed 0"]
    for kind in (AttentionExplorer, LabelInspector, ForgettingExplorer, Gallery):
        explorer, slowest = kind("outputs/demo"), 0.0
        for number, title in enumerate(explorer.views):
            began = time.perf_counter()
            explorer.tabs.selected_index = number
            slowest = max(slowest, time.perf_counter() - began)
            shown = [getattr(child, "value", "") for child in explorer.tabs.children[number].children]
            assert not any("<pre>" in str(words) for words in shown), (kind, title, shown)
        assert slowest < 20, kind


def test_losses_are_drawn_for_what_has_some(tiny, tmp_path):
    how = {"method": "ridge", "train__augment": "none"}
    closed = train(tiny(**how), tmp_path / "closed", show="none")
    begun = train(tiny(**how, model__freeze="first"), tmp_path / "begun", show="none")
    (axis,) = training_loss([closed, begun]).axes
    drawn = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in drawn] == ["ridge, frozen after session 1, seed 0"]
    assert list(drawn[0].get_xdata()) == [1, 2]  # two epochs of the first session
    assert "closed form" in training_loss([closed]).axes[0].get_title()
