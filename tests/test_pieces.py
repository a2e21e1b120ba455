"""Too little memory: the knob is named, and works in the same folder. Batches are learned from in pieces."""

import dataclasses

import numpy as np
import pytest
import torch

from krt_core import evaluate
from krt_core.config import load_experiment
from krt_core.data.pipeline import Batch
from krt_core.errors import ConfigError, RunError
from krt_core.launch import launch
from krt_core.machine.failures import memory_told
from krt_core.methods.base import Method
from krt_core.methods.krt import KRT
from krt_core.session import train

FROZEN = dict(train__batch_norm="frozen", train__evaluate_every=0, train__epochs=2, train__augment="none")
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4096 bytes. Error code 12 (Cannot allocate memory)"
)


def test_pieces_share_a_batch():
    batch = Batch(torch.arange(7.0)[:, None], torch.arange(7.0)[:, None], np.arange(7), 0.5, 0.25, np.arange(7) + 10)
    assert [len(piece.rows) for piece in batch.pieces(3)] == [3, 3, 1] and batch.pieces(0) == [batch]
    assert [p.rows.tolist() for p in batch.pieces(4)] == [[0, 1, 2, 3], [4, 5, 6]] and batch.pieces(7) == [batch]
    assert sum(piece.share for piece in batch.pieces(3)) == pytest.approx(0.5)
    assert all(piece.weight == 0.25 and (piece.places == piece.rows + 10).all() for piece in batch.pieces(2))
    assert all((piece.images[:, 0].numpy() == piece.rows).all() for piece in batch.pieces(2))


METHODS = [
    "krt", "pod", "finetune", "lwf", "ewc", "icarl", "derpp", "rebll", "agcn", "csc", "multilane", "er", "joint",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_pieces_teach_what_the_whole_batch_does(tiny, tmp_path, method):
    """In float64, where rounding is no excuse."""
    changes = dict(FROZEN, method=method, train__precision="float64", train__clip_norm=1.0)
    if method in ("er", "derpp", "icarl", "krt"):
        changes["replay__per_class"] = 2
    one = train(tiny(**changes), tmp_path / "one", show="none", device="cpu")
    two = train(tiny(**changes, train__micro_batch=3), tmp_path / "two", show="none", device="cpu")
    assert one.experiment.hash() == two.experiment.hash()
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
    for t in range(2):
        np.testing.assert_allclose(one.scores(t).scores, two.scores(t).scores, atol=1e-7)
        assert one.session_state(t)["exemplar_ids"] == two.session_state(t)["exemplar_ids"]


def test_one_piece_is_the_batch_to_the_last_bit(tiny, tmp_path):
    one, two = (train(tiny(**FROZEN, train__micro_batch=n), tmp_path / str(n), show="none", device="cpu")
                for n in (0, 16))  # fmt: skip
    for t in range(2):
        assert (one.scores(t).scores == two.scores(t).scores).all()
    assert one.starts[0]["pieces"] == two.starts[0]["pieces"] == "whole"


@pytest.mark.parametrize("changes", [{"train__batch_norm": "batch"}, {"train__batch_norm": "sync"}])
def test_statistics_of_a_batch_are_not_taken_of_pieces(tiny, tmp_path, changes):
    with pytest.raises(ConfigError, match=r"train\.micro_batch=4: train\.batch_norm=\w+ takes .*=frozen"):
        train(tiny(**{**FROZEN, **changes}, train__micro_batch=4), tmp_path / "run", show="none", device="cpu")
    still = dict(FROZEN, **changes, model__freeze="all", train__epochs=1)  # takes none
    assert train(tiny(**still, train__micro_batch=4), tmp_path / "still", show="none", device="cpu").done


def test_a_method_that_weighs_by_the_batch_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.micro_batch=4: the method weighs images by .*--processes"):
        train(tiny(**FROZEN, method="kbk", train__micro_batch=4), tmp_path / "run", show="none", device="cpu")


def starved(monkeypatch, most, error, session=0):
    """There is memory for ``most`` images at a time in a step."""
    original = KRT.loss

    def loss(self, batch):
        if len(batch.rows) > most and self.context.session.index >= session:
            raise error
        return original(self, batch)

    monkeypatch.setattr(KRT, "loss", loss)


ERRORS = [
    RuntimeError(ON_CPU),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    MemoryError("Unable to allocate 1.2 GiB for an array"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("session", [0, 1])
@pytest.mark.parametrize("error", ERRORS[: 1 + 1], ids=["cpu", "gpu"])
def test_the_knob_that_is_named_works_in_the_same_folder(tiny, tmp_path, monkeypatch, error, session):
    """Until there is enough: 16 images, then 8, then 4."""
    starved(monkeypatch, 5, error, session)
    folder, micro = tmp_path / "run", 0
    for wanted in (8, 4):
        with pytest.raises(RunError, match=rf"too little memory while images are learned from \(.*\)\. Set train\."
                           rf"micro_batch={wanted}:.* the same folder goes on") as caught:  # fmt: skip
            train(tiny(**FROZEN, train__micro_batch=micro), folder, show="none", device="cpu")
        assert "\n" not in str(caught.value)
        micro = wanted
    run = train(tiny(**FROZEN, train__micro_batch=micro), folder, show="none", device="cpu")
    assert run.done and run.experiment.train.micro_batch == 4
    assert run.mixed == (["pieces of a batch: whole, then of 4 images"] if session else [])


def test_where_pieces_cannot_be_the_way_out_is_another(tiny, tmp_path, monkeypatch):
    starved(monkeypatch, 5, ERRORS[0])
    with pytest.raises(RunError, match=r"cannot be learned from in pieces .*GPU with more memory.*batch_norm=frozen"):
        train(tiny(**{**FROZEN, "train__batch_norm": "batch"}), tmp_path / "run", show="none", device="cpu")
    starved(monkeypatch, 0, ERRORS[0])
    with pytest.raises(RunError, match="One image at a time is the least"):
        train(tiny(**FROZEN, train__micro_batch=1), tmp_path / "one", show="none", device="cpu")


@pytest.mark.parametrize("error", ERRORS, ids=["cpu", "gpu", "numpy", "cublas", "python"])
def test_tests_and_features_have_a_knob_of_their_own(tiny, tmp_path, monkeypatch, error):
    experiment, folder = tiny(**FROZEN, train__eval_batch_size=20), tmp_path / "run"
    original = Method.scores
    whole = train(experiment, tmp_path / "whole", show="none", device="cpu")
    predict = evaluate.predict

    def starving(model, store, rows, runtime, batch_size, *rest, **named):
        if batch_size > 10:
            raise error
        return predict(model, store, rows, runtime, batch_size, *rest, **named)

    monkeypatch.setattr(evaluate, "predict", starving)
    with pytest.raises(RunError, match=r"memory while images are looked at \(.*\)\. Set train\.eval_batch_size=10: .*"
                                       "The same folder goes on"):  # fmt: skip
        train(experiment, folder, show="none", device="cpu")
    run = train(tiny(**FROZEN, train__eval_batch_size=10), folder, show="none", device="cpu")
    assert "continuing at session 1, after its last epoch" in (folder / "log.txt").read_text()  # nothing learned twice
    assert run.done and not run.mixed and original is Method.scores
    np.testing.assert_allclose(run.scores(1).scores, whole.scores(1).scores, atol=1e-5)


def test_features_are_made_of_as_many_images_as_are_scored(tiny, tmp_path, monkeypatch):
    from krt_core.model.still import Features

    seen, of = [], Features.of
    monkeypatch.setattr(Features, "of", lambda self, images: (seen.append(len(images)), of(self, images))[1])
    frozen = dict(method="ridge", train__eval_batch_size=7)
    run = train(tiny(**frozen), tmp_path / "run", show="none", device="cpu")
    assert run.done and max(seen) == 7


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), memory_told("x", lambda: "y"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_pieces_decide_no_hash():
    experiment = load_experiment("digits_demo")
    pieces = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, micro_batch=4))
    assert experiment.hash() == pieces.hash() and "train.micro_batch" not in pieces.changes()


@pytest.mark.ddp
@pytest.mark.parametrize("method", ["krt", "ewc"])
@pytest.mark.slow
def test_two_processes_learn_from_pieces_of_their_shares(tiny, tmp_path, method):
    """Shares of odd sizes: one process has more pieces than the other, and none waits for ever."""
    changes = dict(FROZEN, method=method, train__precision="float64", train__batch_size=13)
    one = train(tiny(**changes), tmp_path / "one", show="none", device="cpu")
    two = launch(tiny(**changes, train__micro_batch=3), tmp_path / "two", processes=2, device="cpu")
    for t in range(2):
        np.testing.assert_allclose(one.scores(t).scores, two.scores(t).scores, atol=1e-7)
    assert two.starts[0]["pieces"] == "of 3 images"
