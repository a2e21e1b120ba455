"""A model is used on a GPU as on the CPU: what a method keeps beside the network goes along."""

import numpy as np
import pytest
from on_gpu import everywhere

from krt_core.data import open_dataset
from krt_core.session import train
from krt_core.tagger.tagger import Tagger


@everywhere
@pytest.mark.parametrize("method", ["ridge", "census", "krt", "kbk"])
def test_tags_are_those_of_the_tests(tiny, device, method):
    run = train(tiny(method=method, train__epochs=1), show="none", device="cpu")
    dataset, stored = open_dataset(run.experiment.data, "test"), run.scores(1)
    row_of = {str(name): row for row, name in enumerate(dataset.ids)}
    tagger = Tagger(run, device=device, threshold=0)
    said = tagger([dataset.path(row_of[str(name)]) for name in stored.ids], evidence=True)
    found = [[tags.scores[tags.names.index(name)] for name in tagger.classes] for tags in said]
    np.testing.assert_allclose(found, stored.scores, atol=1e-4)
    assert tagger.scorer.network.backbone.shift.device.type == device.split(":")[0]
    assert set(said[0].evidence) == set(tagger.classes)
