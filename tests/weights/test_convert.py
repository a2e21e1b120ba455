"""Models of the published code become run folders, and ours its files."""

import numpy as np
import pytest
import torch

from krt_core.cli import main
from krt_core.errors import CheckpointError, ConfigError, RunError
from krt_core.evaluate import import_published
from krt_core.lab.analysis.explain import look
from krt_core.session import train
from krt_core.weights.checkpoint import inspect
from krt_core.weights.convert import export_published, load_model


@pytest.fixture
def tresnet(tiny):
    """A TResNet-M on the tiny world, in its own last map."""
    return lambda **changes: tiny(
        model__backbone="tresnet_m",
        model__stride=0,
        train__epochs=1,
        train__batch_size=64,
        train__augment="none",
        train__base_lr=1e-5,
        train__lr=1e-5,
        **changes,
    )


@pytest.mark.slow
def test_out_and_in_again_changes_nothing(tresnet, tmp_path):
    run = train(tresnet(), tmp_path / "ours", show="none", max_steps=1)
    files = [export_published(run, t, tmp_path / f"model{t}.pth") for t in range(2)]
    found = inspect(files[1])
    assert found.layout == "krt-published" and found.classes == 4 and "2 + 2 classes" in found.trained_on
    again = import_published(tresnet(), files, tmp_path / "theirs", device="cpu")
    assert again.done and again.summary["weights"]["file"] == "model1.pth"
    assert "unknown" in again.summary["weights"]["trained_on"]
    other = tmp_path / "other.pth"
    changed = torch.load(files[0], weights_only=True)
    changed["state_dict"]["note"] = torch.zeros(1)
    torch.save(changed, other)
    with pytest.raises(RunError, match=r"session 1 from another file than .*other\.pth"):
        import_published(tresnet(), [other, files[1]], again.folder, device="cpu")
    for t in range(2):
        np.testing.assert_allclose(again.scores(t).scores, run.scores(t).scores, atol=1e-4)
        assert again.session_state(t)["metrics"]["mAP_seen"] == pytest.approx(run.curve()[t], abs=0.5)
    assert look(load_model(again, 1), torch.rand(1, 3, 32, 32)).patches.shape[:2] == (1, 2)
    assert main(["export", str(again.folder), str(tmp_path / "once-more.pth")]) == 0
    first, last = torch.load(files[1], weights_only=True), torch.load(tmp_path / "once-more.pth", weights_only=True)
    for name, tensor in first["state_dict"].items():
        torch.testing.assert_close(last["state_dict"][name], tensor, rtol=0, atol=2e-5)


def test_files_that_do_not_fit_are_refused_by_name(tresnet, tiny, tmp_path):
    run = train(tresnet(), tmp_path / "ours", show="none", max_steps=1)
    files = [export_published(run, t, tmp_path / f"model{t}.pth") for t in range(2)]
    with pytest.raises(CheckpointError, match=r"model1\.pth has sessions of \[2, 2\] classes.*in their order"):
        import_published(tresnet(), files[::-1], tmp_path / "a")
    with pytest.raises(CheckpointError, match="embed_dim"):
        import_published(tresnet(model__embed_dim=64), files, tmp_path / "b", device="cpu")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth is no model of the published code"):
        import_published(tresnet(), [tmp_path / "other.pth"], tmp_path / "c")
    with pytest.raises(ConfigError, match="method=krt"):
        import_published(tresnet(method="finetune"), files, tmp_path / "d")
    with pytest.raises(RunError, match="session 3"):
        export_published(run, 2, tmp_path / "x.pth")
    small = train(tiny(train__epochs=1), tmp_path / "small", show="none", max_steps=1)
    with pytest.raises(CheckpointError, match="TResNet"):
        export_published(small, 0, tmp_path / "x.pth")


def test_imported_sessions_are_gone_on_with_or_refused_with_the_reason(tresnet, tmp_path):
    run = train(tresnet(), tmp_path / "ours", show="none", max_steps=1)
    file = export_published(run, 0, tmp_path / "model0.pth")
    for name, replay in (("lists", {"per_class": 2}), ("online", {"budget": 5, "selection": "prs"})):
        experiment = tresnet(**{"replay__per_class": 0, **{f"replay__{key}": value for key, value in replay.items()}})
        stores = import_published(experiment, [file], tmp_path / name, device="cpu")
        record = stores.environment
        with pytest.raises(RunError, match="session 1 came without exemplars to replay, as imported ones do"):
            train(experiment, stores.folder, show="none", device="cpu")
        assert stores.environment == record  # what was said of the imported weights still stands
    plain = import_published(tresnet(replay__per_class=0), [file], tmp_path / "plain", device="cpu")
    went_on = train(tresnet(replay__per_class=0), plain.folder, show="none", device="cpu", max_steps=1)
    assert went_on.finished_sessions == 2 and "first weights: published" in (plain.folder / "log.txt").read_text()
