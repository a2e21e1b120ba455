"""A run that is grown by two processes is the one that is grown by one."""

import numpy as np
import pytest
import torch

from krt_core.tagger.extend import extend

pytest_plugins = ("grow_world",)
pytestmark = pytest.mark.ddp


@pytest.mark.parametrize("method, changes", [
    ("ridge", {"data__validation": 0.25}),
    ("census", {}),
    ("krt", {"replay__per_class": 2, "data__validation": 0.25}),
    ("masked", {}),
])  # fmt: skip
@pytest.mark.slow
def test_two_processes_grow_what_one_does(own, march, method, changes):
    """30 new images, of which not all are shown: no half is even."""
    run = own(method, train__precision="float64", train__batch_norm="frozen", train__augment="published", **changes)
    one, two = (
        extend(run, march, {"train.epochs": 2}, folder=f"outputs/by_{count}", processes=count, device="cpu")
        for count in (1, 2)
    )
    assert two.environment["reasons"]["processes"] == "2" and two.mixed == ["processes: 1, then 2"] and not one.mixed
    assert two.session_state(3)["exemplar_ids"] == one.session_state(3)["exemplar_ids"]
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert (a["session"], a["epoch"], a["images"]) == (b["session"], b["epoch"], b["images"])
        assert a.keys() == b.keys() and ("loss" not in a or a["loss"] == pytest.approx(b["loss"], rel=1e-6))
    found = [
        {key: record["threshold"] for key, record in grown.session_state(3)["method"].get("thresholds", {}).items()}
        for grown in (one, two)
    ]
    assert found[0] == found[1] and ("3" in found[0]) is (method == "krt")
    for session in range(4):
        scores, others = one.scores(session), two.scores(session)
        assert scores.ids.tolist() == others.ids.tolist() and len(set(scores.ids.tolist())) == len(scores.ids)
        np.testing.assert_allclose(scores.scores, others.scores, rtol=1e-5)
        np.testing.assert_array_equal(scores.labels, others.labels)
        tensors, twins = one.model_state(session), two.model_state(session)
        assert tensors.keys() == twins.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, twins[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for key, value in vars(one.calibration(3)).items():
        np.testing.assert_allclose(value, getattr(two.calibration(3), key), rtol=1e-4, atol=1e-6, err_msg=key)
    assert one.curve() == pytest.approx(two.curve(), rel=1e-6)
