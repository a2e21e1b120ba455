"""A training whose numbers are none stops with the images it was at, and keeps the epochs before on disk."""

import math

import numpy as np
import pytest
import torch
from interrupted import log_of

from krt_core.errors import RunError
from krt_core.machine.distributed import World
from krt_core.machine.finite import MOST_IDS, NotFinite, Watch
from krt_core.methods.finetune import Finetune
from krt_core.runs.folder import Run
from krt_core.session import train

QUICK = dict(method="finetune", train__epochs=4, train__evaluate_every=0)
IDS = [f"image {i}" for i in range(1000)]


def watched(losses, skips=False, batch=2):
    watch = Watch(World(), IDS, "in session 1, epoch 2", skips)
    for step, loss in enumerate(losses):
        watch.saw(torch.isfinite(torch.tensor(float(loss))), np.arange(batch * step, batch * (step + 1)))
    return watch


@pytest.mark.parametrize("odd", [0, 1, 49, 50, 51, 119])
def test_the_first_step_is_named_with_its_images(odd):
    losses = [1.0] * odd + [math.nan, math.inf] + [1.0] * (120 - odd)
    with pytest.raises(NotFinite, match=rf"session 1, epoch 2, step {odd + 1}, on the images image {2 * odd}, image "):
        watched(losses).end(math.nan)


def test_it_is_looked_at_now_and_then_and_not_only_at_the_end():
    with pytest.raises(NotFinite, match="step 3,"):
        watched([1.0, 1.0, math.nan] + [1.0] * 47)


def test_of_a_large_batch_some_images_are_named():
    with pytest.raises(NotFinite, match=rf"image {MOST_IDS - 1} and {300 - MOST_IDS} more\. "):
        watched([math.nan], batch=300).end(math.nan)


def test_where_overflows_are_skipped_only_an_epoch_of_them_counts():
    watch = watched([math.inf] * 120, skips=True)
    with pytest.raises(NotFinite, match="in every step .* step 1, on the images image 0, image 1"):
        watch.end(math.nan)


@pytest.mark.parametrize("steps", [1, 49, 50, 51])
def test_weights_that_the_last_step_has_spoiled_are_told(steps):
    watch = watched([1.0] * steps)
    watch.check_weights([torch.ones(3), torch.ones(2)])
    with pytest.raises(NotFinite, match=rf"Weights .* step {steps}, on the images image {2 * steps - 2}, image"):
        watch.check_weights([torch.ones(3), torch.tensor([1.0, math.nan])])


def broken(monkeypatch, session, step, kind=math.nan):
    """The loss of a step of a session (over its epochs) is no number; a list of the batches' rows."""
    original, rows = Finetune.loss, []

    def loss(self, batch):
        result = original(self, batch)
        if self.context.session.index == session:
            rows.append(batch.rows)
            if len(rows) == step + 1:
                result["loss"] = result["loss"] * kind
        return result

    monkeypatch.setattr(Finetune, "loss", loss, raising=False)
    return rows


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("session_*/*") if path.name != "state.json"}


@pytest.mark.parametrize("kind", [math.nan, math.inf])
def test_the_last_good_epoch_is_on_disk_and_the_rest_is_as_it_would_be(tiny, tmp_path, monkeypatch, kind):
    experiment, folder = tiny(**QUICK), tmp_path / "run"
    whole = train(experiment, tmp_path / "whole", show="none", device="cpu")
    with monkeypatch.context() as patch:
        rows = broken(patch, 1, -1)  # none: counts alone
        train(tiny(**{**QUICK, "train__epochs": 1}), tmp_path / "counted", show="none", device="cpu")
        steps = len(rows)  # of an epoch of the second session
    with monkeypatch.context() as patch:
        rows = broken(patch, 1, 2 * steps, kind)  # the first step of its third epoch
        with pytest.raises(RunError, match="session 2, epoch 3, step 1, on the images") as caught:
            train(experiment, folder, show="none", device="cpu")
    said = str(caught.value)
    assert all(f" {100 + row}" in said for row in rows[2 * steps])  # ids of the COCO file
    assert f"{folder} holds what was learned up to session 2, epoch 2, and the same command goes on" in said
    assert (
        Run(folder).load_resume()["epoch"] == 2
        and torch.isfinite(Run(folder).load_resume()["model"]["heads.0.weight"]).all()
    )
    again = train(experiment, folder, show="none", device="cpu")
    assert "continuing at session 2, epoch 3" in log_of(folder)
    assert files_of(again.folder) == files_of(whole.folder) and not again.mixed


def test_the_first_step_of_all_leaves_nothing_and_says_nothing_of_it(tiny, tmp_path, monkeypatch):
    broken(monkeypatch, 0, 0)
    with pytest.raises(RunError, match=r"session 1, epoch 1, step 1.*float32\.$"):
        train(tiny(**QUICK), tmp_path / "run", show="none", device="cpu")


def test_an_error_after_the_last_epoch_costs_no_epoch(tiny, tmp_path, monkeypatch):
    """The disk is full as the session is to be written: what was learned is not learned again."""
    experiment, folder = tiny(**QUICK), tmp_path / "run"
    whole = train(experiment, tmp_path / "whole", show="none", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_session", lambda *a: (_ for _ in ()).throw(OSError(28, "full", "somewhere")))
        with pytest.raises(OSError, match="full"):
            train(experiment, folder, show="none", device="cpu")
    assert Run(folder).load_resume()["epoch"] == 4
    again = train(experiment, folder, show="none", device="cpu")
    assert "continuing at session 1, after its last epoch" in log_of(folder)
    assert files_of(again.folder) == files_of(whole.folder)
