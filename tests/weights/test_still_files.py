"""A later session of a run whose backbone stands still holds none: every way to open its file, and one alone."""

import shutil

import pytest
import torch

from krt_core.cli import main
from krt_core.errors import CheckpointError, RunError
from krt_core.evaluate import import_published
from krt_core.runs.files import read_tensors
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.weights.checkpoint import inspect
from krt_core.weights.convert import load_model


@pytest.fixture
def still(tiny, tmp_path):
    return train(tiny(method="finetune", model__freeze="all"), tmp_path / "still", show="none")


def file_of(run, session):
    return run.session_folder(session) / "model.safetensors"


def test_inspect_takes_the_backbone_from_the_first_session(still, tmp_path, capsys):
    assert not any(name.startswith("backbone.") for name in read_tensors(file_of(still, 1), ""))
    found = inspect(file_of(still, 1))
    assert found.layout == "krt-workbench" and found.classes == 4 and "stands still" in found.notes[0]
    assert found.tensors.keys() == still.model_state(1).keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in still.model_state(1).items())
    alone = shutil.copy(file_of(still, 1), tmp_path / "alone.safetensors")
    assert main(["inspect", str(alone)]) == 0
    said = capsys.readouterr().out
    assert (
        "krt-workbench" in said
        and "holds no backbone" in said
        and "ant, bee, cat, dog" in said
        and "leaks: yes" in said
    )


def test_the_file_of_another_run_lends_no_backbone(still, tiny, tmp_path):
    other = train(tiny(method="finetune", model__freeze="all", seed=1), tmp_path / "other", show="none")
    shutil.copy(file_of(other, 1), file_of(still, 1))
    assert "holds no backbone" in inspect(file_of(still, 1)).notes[0]


def test_first_weights_from_any_session(still, tiny, tmp_path):
    with pytest.raises(CheckpointError, match="refused: it is the result of an incremental run"):
        train(tiny(model__weights=str(file_of(still, 1))), tmp_path / "a", show="none")
    taken = train(tiny(model__weights=str(file_of(still, 1)), model__freeze="all"), tmp_path / "b", "none", None, True)
    name = next(name for name in still.model_state(0) if name.startswith("backbone."))
    assert torch.equal(taken.model_state(0)[name], still.model_state(0)[name])
    alone = shutil.copy(file_of(still, 1), tmp_path / "alone.safetensors")
    with pytest.raises(
        CheckpointError, match=r"alone\.safetensors: it holds no backbone.*session_00/model\.safetensors"
    ):
        train(tiny(model__weights=str(alone)), tmp_path / "c", "none", None, True)


def test_a_folder_without_its_first_file_is_named(still):
    file_of(still, 0).unlink()
    with pytest.raises(RunError, match=r"session_01.* holds no backbone.*session_00.* missing\. Copy it there"):
        load_model(still, 1)


def test_a_run_is_moved_as_a_whole(still, tmp_path):
    moved = Run(shutil.move(still.folder, tmp_path / "elsewhere"))
    assert load_model(moved, 1).sessions == 2


@pytest.mark.slow
def test_out_to_the_published_code_and_in_again(tiny, tmp_path):
    """krt export writes whole files; what krt import makes of them is whole too, frozen or not."""
    how = {"model__backbone": "tresnet_m", "model__stride": 0, "model__freeze": "all", "train__augment": "none"}
    run = train(tiny(**how), tmp_path / "ours", show="none", max_steps=1)
    files = [tmp_path / f"model{t + 1}.pth" for t in range(2)]
    for t, file in enumerate(files):
        assert main(["export", str(run.folder), str(file), "--session", str(t + 1)]) == 0
    again = import_published(tiny(**how), files, tmp_path / "theirs", device="cpu")
    assert again.done and abs(again.curve() - run.curve()).max() < 0.5
    assert any(name.startswith("backbone.") for name in read_tensors(file_of(again, 1), ""))
