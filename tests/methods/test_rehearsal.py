"""ER, iCaRL and DER++: what they minimise, what they keep of exemplars, and what they refuse."""

import numpy as np
import pytest
import torch
from interrupted import begun
from PIL import Image
from test_equations import SHARE, asymmetric, binary, learning

from krt_core.config import Replay
from krt_core.data import open_dataset
from krt_core.errors import ConfigError
from krt_core.methods.base import check_exemplars
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.weights.convert import load_model

QUICK = dict(train__epochs=1, train__evaluate_every=0)
REHEARSING = ("er", "icarl", "derpp")


def test_er_is_the_loss_on_what_images_and_exemplars_show(tiny):
    method, context, batch = learning(tiny, "er")
    wanted = 3 * asymmetric(context.model(batch.images).logits, batch.labels)
    torch.testing.assert_close(method.loss(batch)["loss"], wanted)
    assert method.hidden == 0 and learning(tiny, "er", old="unknown")[0].hidden == -1


def test_icarl_learns_new_labels_and_what_the_old_model_says_of_all_images(tiny):
    method, context, batch = learning(tiny, "icarl", index=2, weight=5.0)
    result = method.loss(batch)
    new, old = context.model(batch.images).logits, context.old_model(batch.images).logits
    parts = {
        "classification": 3 * binary(new[:, 4:], batch.labels[:, 4:]),
        "distillation": 5 * 3 * binary(new[:, :4], torch.sigmoid(old)),
    }
    torch.testing.assert_close(result["parts"], parts)
    torch.testing.assert_close(result["loss"], sum(parts.values()))
    batch.labels[:, :4] = 1  # what exemplars show of old classes
    batch.labels[0, 4:] = -1
    result = method.loss(batch)["parts"]
    torch.testing.assert_close(result["distillation"], parts["distillation"])
    torch.testing.assert_close(result["classification"], 3 * binary(new[1:, 4:], batch.labels[1:, 4:]))
    assert method.hidden == -1


def test_derpp_stays_near_the_logits_it_has_stored(tiny):
    method, context, batch = learning(tiny, "derpp", index=2, alpha=0.7, beta=0.3)
    context.own, batch.places, batch.rows = 5, np.array([9, 4, 5]), np.array([8, 3, 2])
    method.rows = torch.tensor([2, 8])
    method.logits = torch.tensor([[1.0, -2.0, np.nan, np.nan], [0.5, 0.1, -0.3, 2.0]])
    result, logits = method.loss(batch), context.model(batch.images).logits
    apart = ((logits[2, :2] - torch.tensor([1, -2])) ** 2).mean()
    apart += ((logits[0, :4] - torch.tensor([0.5, 0.1, -0.3, 2])) ** 2).mean()
    labels = [asymmetric(logits[i], batch.labels[i]) for i in range(3)]
    parts = {"classification": 3 * (labels[1] + 0.3 * (labels[0] + labels[2])), "stored_logits": 0.7 * 3 * apart}
    torch.testing.assert_close(result["parts"], parts)
    torch.testing.assert_close(result["loss"], sum(parts.values()))
    result["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in context.model.parameters())
    batch.places = np.array([0, 1, 2])  # no exemplar among them
    torch.testing.assert_close(method.loss(batch)["parts"], {"classification": 3 * sum(labels)})
    assert SHARE != 1  # sums over images add up by themselves


def test_logits_are_kept_as_long_as_their_exemplar_and_as_they_first_were(tiny):
    method, context, _ = learning(tiny, "derpp", index=0)
    asked = []
    context.logits = lambda rows: asked.append(rows.tolist()) or np.outer(rows, np.arange(1, stop + 1)).astype("f4")
    stop = 2
    method.remember(np.array([7, 4, 4, 9]))
    method.context.session, stop = context.protocol.sessions[1], 4
    method.remember(np.array([9, 2, 4]))
    method.remember(np.array([9, 2, 4]))
    assert asked == [[4, 7, 9], [2]] and method.state()["rows"].tolist() == [2, 4, 9]
    wanted = torch.tensor([[2, 4, 6, 8], [4, 8, np.nan, np.nan], [9, 18, np.nan, np.nan]])
    torch.testing.assert_close(method.state()["logits"], wanted, equal_nan=True)
    again = learning(tiny, "derpp")[0]
    again.load_state(method.state())
    torch.testing.assert_close(again.state(), method.state(), equal_nan=True)


@pytest.mark.parametrize("freeze", ["none", "all"])
def test_derpp_stores_what_the_model_said_after_the_session(tiny, tmp_path, freeze):
    """And a budget that leaves fewer images for each class leaves fewer logits."""
    experiment = tiny(method="derpp", replay__budget=4, model__freeze=freeze, **QUICK)
    run = train(experiment, tmp_path / "run", show="none")
    data, asked = open_dataset(experiment.data, "train"), {}
    for session in (0, 1):
        state = run.method_state(session)
        ranked = run.session_state(session)["memory"]["ranked"]
        assert state["rows"].tolist() == sorted({row for rows in ranked for row in rows})
        images = np.stack([np.asarray(Image.open(data.path(row)).convert("RGB")) for row in state["rows"].tolist()])
        with torch.no_grad():
            said = load_model(run, session)(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).logits
        for row, line in zip(state["rows"].tolist(), said, strict=True):
            asked.setdefault(row, line)
        for row, line in zip(state["rows"].tolist(), state["logits"], strict=True):
            torch.testing.assert_close(line[: len(asked[row])], asked[row], rtol=1e-4, atol=1e-4)
            assert line[len(asked[row]) :].isnan().all()
        size = sum(tensor.nbytes for tensor in state.values())
        assert run.session_state(session)["method_bytes"] == size == 8 * len(said) + 4 * len(said) * (2 * session + 2)
    gone = set(run.method_state(0)["rows"].tolist()) - set(run.method_state(1)["rows"].tolist())
    assert gone and "stored_logits" in run.epochs[1] and "stored_logits" not in run.epochs[0]


@pytest.mark.parametrize("method", REHEARSING)
def test_without_exemplars_they_say_what_to_set(tiny, method):
    with pytest.raises(ConfigError, match=f"method {method} learns from exemplars, .*: set replay.per_class"):
        train(tiny(method=method, **QUICK), show="none")
    with pytest.raises(ConfigError, match=r"replay.budget=3 leaves none for each of 4 classes: set replay.budget=4"):
        train(tiny(method=method, replay__budget=3, **QUICK), show="none")
    context = learning(tiny, method)[1]
    for replay in (Replay(per_class=1), Replay(budget=6)):  # six classes
        object.__setattr__(context.experiment, "replay", replay)
        check_exemplars(context)


def test_icarl_herds(tiny):
    with pytest.raises(ConfigError, match=r"icarl herds its exemplars: set replay.selection=herding, not random"):
        train(tiny(method="icarl", replay__per_class=2, replay__selection="random", **QUICK), show="none")


@pytest.mark.parametrize("head", ["linear", "ica"])
@pytest.mark.parametrize("method", REHEARSING)
def test_an_interrupted_run_is_the_same_run(tiny, tmp_path, method, head):
    changes = {"replay__per_class": 2, f"{method}__head": head, "train__epochs": 2, "train__evaluate_every": 0}
    whole = train(tiny(method=method, **changes), tmp_path / "whole", show="none", device="cpu")
    folder = begun(tiny(method=method, **changes), tmp_path / "parts", at=(1, 0))
    same(whole, train(tiny(method=method, **changes), folder, show="none", device="cpu"))
    assert np.isfinite(whole.summary["last_mAP"]) and whole.session_state(1)["replayed_images"] == 4


def same(one: Run, two: Run) -> None:
    """To the last bit: weights, scores, and what the method keeps."""
    torch.testing.assert_close(one.model_state(1), two.model_state(1), rtol=0, atol=0)
    assert np.array_equal(one.scores(1).scores, two.scores(1).scores)
    torch.testing.assert_close(one.method_state(1), two.method_state(1), rtol=0, atol=0, equal_nan=True)
