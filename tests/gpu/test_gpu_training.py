"""Small trainings on a GPU: in every precision, resumed to the last bit, without waiting, and recorded."""

import math

import pytest
import torch
from on_gpu import CUDA, everywhere, needs, on_gpu

from krt_core.lab.analysis import compared
from krt_core.learn import Learner
from krt_core.machine.precision import set_tf32
from krt_core.runs.progress import Progress
from krt_core.session import train

PRECISIONS = ("float32", "bfloat16", "float16")
CLOSE = {"float32": 0.01, "bfloat16": 0.2, "float16": 0.3}  # of the losses of a first epoch, relative; in
# float16 the first steps overflow, and are skipped


@pytest.fixture
def repeatable():
    """Operations that give the same bits each time, where there are such ones."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def changes(**more):
    return {"train__evaluate_every": 1, "replay__per_class": 2, "train__augment": "published", **more}


@everywhere
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_small_training(tiny, tmp_path, device, precision):
    plain = train(tiny(**changes()), tmp_path / "plain", show="none", device="cpu")
    run = train(tiny(**changes(train__precision=precision)), tmp_path / "run", show="none", device=device)
    assert run.done and all(math.isfinite(epoch["loss"]) for epoch in run.epochs)
    assert run.epochs[0]["loss"] == pytest.approx(plain.epochs[0]["loss"], rel=CLOSE[precision])
    reasons, hardware = run.environment["reasons"], run.environment["hardware"]
    assert reasons["device"] == device and reasons["precision"].startswith(precision)
    for session in range(run.finished_sessions):
        state = run.session_state(session)
        assert state["peak_memory_mb"] > 0
        assert all(tensor.device.type == "cpu" for tensor in run.model_state(session).values())
    if device != "cpu":
        assert hardware["gpu"] and hardware["driver"] and run.environment["versions"]["cuda"]
        assert reasons["tf32"].startswith("off") and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("method", ["ridge", "census"])
@everywhere
def test_closed_forms_are_those_of_the_cpu(tiny, tmp_path, device, method):
    """Nothing is trained, so that rounding does not grow."""
    plain = train(tiny(method=method), tmp_path / "plain", show="none", device="cpu")
    found = compared(plain, train(tiny(method=method), tmp_path / "run", show="none", device=device))
    assert found.same if device == "cpu" else found.table["scores"].max() < 1e-3, found.words()
    assert not found.causes or found.causes[0].startswith("device: cpu and cuda")


@pytest.mark.parametrize("method", ["pod", "finetune", "joint"])
@everywhere
def test_other_methods(tiny, tmp_path, device, method):
    run = train(tiny(method=method, train__epochs=1), tmp_path / "run", show="none", device=device)
    assert run.done and all(math.isfinite(epoch["loss"]) for epoch in run.epochs)


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "bfloat16"), *[pytest.param("cuda:0", p, marks=needs()) for p in PRECISIONS]]
)
@pytest.mark.parametrize("stop_at", [(0, 1), (1, 0)])
def test_a_resumed_run_is_the_same_to_the_last_bit(tiny, tmp_path, monkeypatch, repeatable, device, precision, stop_at):
    experiment = tiny(**changes(train__precision=precision, train__epochs=3))
    whole = train(experiment, tmp_path / "whole", show="none", device=device)
    original = Progress.epoch

    def stop(self, record):
        original(self, record)
        if (record["session"], record["epoch"]) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "parts", show="none", device=device)
    monkeypatch.setattr(Progress, "epoch", original)
    parts = train(experiment, tmp_path / "parts", show="none", device=device)
    for session in range(2):
        a, b = whole.model_state(session), parts.model_state(session)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert (whole.scores(session).scores == parts.scores(session).scores).all()
    kept = ("session", "epoch", "loss", "lr")
    assert [[e[k] for k in kept] for e in whole.epochs] == [[e[k] for k in kept] for e in parts.epochs]


@everywhere
@pytest.mark.parametrize(
    "changed",
    [{}, {"train__precision": "float16", "train__group": 4}, {"train__clip_norm": 1.0}, {"method": "pod"}],
    ids=str,
)
def test_no_step_waits_for_the_gpu(tiny, tmp_path, monkeypatch, device, changed):
    """From the second step of an epoch to its last; the sums at its end are asked for."""
    original, seen = Learner.epoch, []
    watch = torch.cuda.set_sync_debug_mode if device != "cpu" else lambda mode: None

    def epoch(self, store, seed, on_step, max_steps=None):
        steps, done = math.ceil(len(self.view.rows) / self.config.batch_size), 0

        def watched():
            nonlocal done
            done += 1
            watch("error" if done < steps else "default")
            seen.append(done)

        try:
            return original(self, store, seed, watched, max_steps)
        finally:
            watch("default")

    monkeypatch.setattr(Learner, "epoch", epoch)
    experiment = tiny(**changes(**{"train__precision": "bfloat16", "train__batch_size": 4, **changed}))
    assert train(experiment, tmp_path / "run", show="none", device=device).done and max(seen) >= 4


@on_gpu()
def test_peak_memory_is_of_each_session_and_grows_with_the_batch(tiny, tmp_path):
    def peaks(batch):
        run = train(
            tiny(train__batch_size=batch, train__group=batch), tmp_path / str(batch), show="none", device="cuda:0"
        )
        return [run.session_state(session)["peak_memory_mb"] for session in range(2)]

    small, large = peaks(4), peaks(32)
    assert all(
        a < b < torch.cuda.get_device_properties(0).total_memory / 2**20 for a, b in zip(small, large, strict=True)
    )


@on_gpu()
def test_float32_is_not_rounded(tmp_path):
    """A product and a convolution as exact as on a CPU, after a training has begun; TF32 is a thousand times off."""
    from krt_core.machine.device import choose_runtime

    set_tf32(True)
    choose_runtime("float32", "cuda:0")
    torch.manual_seed(0)
    a, b, images, filters = (
        torch.rand(256, 512),
        torch.rand(512, 256),
        torch.rand(4, 64, 16, 16),
        torch.rand(64, 64, 3, 3),
    )
    product = (a.cuda() @ b.cuda()).cpu().double()
    assert ((product - a.double() @ b.double()) / product).abs().max() < 1e-5
    folded = torch.nn.functional.conv2d(images.cuda(), filters.cuda()).cpu().double()
    assert ((folded - torch.nn.functional.conv2d(images.double(), filters.double())) / folded).abs().max() < 1e-5


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_compiled_training(tiny, tmp_path, device, precision):
    """Last, as compiling takes a minute."""
    plain = train(tiny(**changes(train__precision=precision)), tmp_path / "plain", show="none", device=device)
    changed = changes(train__precision=precision, train__compile=True)
    run = train(tiny(**changed), tmp_path / "compiled", show="none", device=device)
    assert run.done and run.epochs[0]["loss"] == pytest.approx(plain.epochs[0]["loss"], rel=CLOSE[precision])
