"""The stanzas of the session loop: what each is given, in which order, what it costs, and who writes."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interrupted import begun, log_of

import krt_core.methods.krt as krt_module
import krt_core.session as session_module
from krt_core.data import Halves, open_dataset
from krt_core.dpl import ThresholdRecord
from krt_core.errors import DataError, RunError
from krt_core.evaluate import Tester
from krt_core.learn import set_seed
from krt_core.machine.distributed import World
from krt_core.methods.finetune import Finetune
from krt_core.runs.folder import Run
from krt_core.runs.progress import Progress
from krt_core.session import _Training, train

PLAIN = dict(method="finetune", train__evaluate_every=0)


def spied(monkeypatch, owner, name, note):
    """``note`` is called with the arguments of every call, before it."""
    original = getattr(owner, name)

    def spy(*arguments, **keywords):
        note(*arguments, **keywords)
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, spy, raising=False)


# ---- order ----


def test_a_session_is_begun_learned_ended_tested_and_written(tiny, tmp_path, monkeypatch):
    told, start = [], {}

    def started(self, context):
        start["weights"] = context.model.heads[-1].weight.clone()
        told.append(("start", context.session.index, context.old_model is not None, context.model.session_sizes[:]))

    def ended(self, context):
        told.append(("end", context.session.index, not torch.equal(start["weights"], context.model.heads[-1].weight)))

    spied(monkeypatch, Finetune, "start_session", started)
    spied(monkeypatch, Finetune, "end_session", ended)
    spied(monkeypatch, Tester, "pool", lambda self, model, index, *_: told.append(("test", index, model.training)))
    spied(monkeypatch, Run, "write_session", lambda self, index, *_: told.append(("write", index)))
    spied(monkeypatch, Run, "clear_resume", lambda self: told.append(("clear", (self.folder / "resume.pt").is_file())))
    train(tiny(**PLAIN), tmp_path / "run", show="none")
    assert told == [
        ("start", 0, False, [2]), ("end", 0, True), ("test", 0, True), ("write", 0), ("clear", True),
        ("start", 1, True, [2, 2]), ("end", 1, True), ("test", 1, True), ("write", 1), ("clear", True),
        ("clear", False),  # with DONE, of what a killed start has left
    ]  # fmt: skip


def test_a_method_without_gradients_gets_each_image_of_its_session_once(tiny, tmp_path, monkeypatch):
    seen, loaded, seeds = [], [], []

    def fit(self, context):
        seeds.append(torch.initial_seed())
        seen.append([(b.rows.tolist(), b.labels.bool().numpy()) for b in context.batches()])

    monkeypatch.setattr(Finetune, "fit", fit, raising=False)
    spied(monkeypatch, Finetune, "load_state", lambda self, state: loaded.append(state))
    plans = []
    spied(monkeypatch, Progress, "plan", lambda self, *numbers: plans.append(numbers))
    experiment = tiny(**PLAIN, train__eval_batch_size=7, seed=5)
    run = train(experiment, tmp_path / "run", show="none")
    labels = open_dataset(experiment.data, "train").labels
    for session, batches in enumerate(seen):
        own = labels[:, 2 * session : 2 * session + 2]
        rows = list(itertools.chain(*(rows for rows, _ in batches)))
        assert rows == np.flatnonzero(own.any(axis=1)).tolist() and {len(r) for r, _ in batches[:-1]} == {7}
        shown = np.concatenate([shown for _, shown in batches])
        assert (shown[:, -2:] == own[rows]).all() and not shown[:, :-2].any()  # old labels are not seen
    assert plans == [(0, 0)] and len(loaded) == 4  # after its start and after it has learned
    for session, seed in enumerate(seeds):
        set_seed(5, session, 0, 0)  # seed, session, epoch, process
        assert torch.initial_seed() == seed
    assert [(e["session"], e["epoch"]) for e in run.epochs] == [(0, 0), (1, 0)]


def test_the_first_session_has_a_rate_of_its_own(tiny, tmp_path):
    rates = dict(train__schedule="constant", train__base_lr=0.001, train__lr=0.002)
    run = train(tiny(**PLAIN, **rates), tmp_path / "run", show="none")
    assert [e["lr"] for e in run.epochs] == [0.001, 0.001, 0.002, 0.002]


# ---- what it costs ----


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, []),  # nothing is asked for: no look at the training images
        ({"replay__per_class": 1}, ["features", "features"]),
        ({"replay__per_class": 1, "replay__selection": "random"}, []),
        ({"method": "krt"}, ["scores"]),  # of the session to come; there is none after the last
        ({"method": "krt", "krt__pseudo_labels": False}, []),
        ({"method": "krt", "replay__per_class": 1}, ["features", "features"]),  # both in one pass
        ({"method": "krt", "replay__per_class": 1, "replay__selection": "random"}, ["scores"]),
        ({"method": "joint", "replay__per_class": 1}, []),
    ],
    ids=str,
)
def test_training_images_are_looked_at_once_a_session_where_somebody_asks(tiny, tmp_path, monkeypatch, changes, passes):
    found = []
    note = lambda *a: found.append("scores" if a[5] is None else "features")  # noqa: E731
    spied(monkeypatch, session_module, "predict", note)
    experiment = tiny(**{**PLAIN, "train__epochs": 1, **changes})
    run = train(experiment, tmp_path / "run", show="none")
    assert found == passes and "made again" not in log_of(run.folder)
    labels = open_dataset(experiment.data, "train").labels
    kept = run.session_state(1)["exemplar_ids"]
    if "replay__per_class" not in changes or changes.get("method") == "joint":
        assert kept == [] and run.session_state(1)["replayed_images"] == 0
        return
    assert [len(ids) for ids in kept] == [1] * 4 and run.session_state(1)["replayed_images"] == 2
    for column, ids in enumerate(kept):
        assert labels[int(ids[0]) - 100, column]  # the image numbered 100 is the first


@pytest.mark.parametrize("replay", [{}, {"replay__per_class": 3, "replay__duplicates": True}])
def test_scores_of_the_old_model_are_the_same_when_they_are_made_again(tiny, tmp_path, replay):
    experiment = tiny(**replay, krt__per_class=True)
    whole = train(experiment, tmp_path / "whole", show="none")
    runs = []
    for lost in (False, True):
        folder = begun(experiment, tmp_path / f"parts-{lost}", at=(1, 0))
        (folder / "resume.pt").unlink(missing_ok=True)
        if lost:
            (folder / "session_00" / "ahead.npz").unlink()
        runs.append(train(experiment, folder, show="none"))
        assert ("made again" in log_of(folder)) == lost
    for run in runs:
        assert run.session_state(1)["method"] == whole.session_state(1)["method"]
        assert (run.scores(1).scores == whole.scores(1).scores).all()


# ---- how far it is ----


@pytest.mark.parametrize("replay", [{}, {"replay__per_class": 8, "replay__duplicates": True}])
def test_steps_are_counted_from_where_it_goes_on(tiny, tmp_path, monkeypatch, replay):
    """With the images that will be replayed, whose number is known where duplicates are kept."""
    plans, steps = [], []
    spied(monkeypatch, Progress, "plan", lambda self, *numbers: plans.append(numbers))
    spied(monkeypatch, Progress, "step", lambda self, **state: steps.append(state))
    experiment = tiny(**{**PLAIN, "train__epochs": 3, **replay})
    run = train(experiment, tmp_path / "whole", show="none")
    assert run.session_state(1)["replayed_images"] == 2 * replay.get("replay__per_class", 0)
    total, first = len(steps), sum(state["session"] == 0 for state in steps)
    assert plans == [(total, 0)] and run.progress["step"] == run.progress["steps"] == total
    assert steps[-1] == {"session": 1, "sessions": 2, "epoch": 2, "epochs": 3} and run.progress["epoch"] == 2
    assert "continuing" not in log_of(run.folder)
    for at, done, said in (((1, 1), first + (total - first) // 3, "session 2, epoch 2"), ((0, 0), 0, None)):
        folder = begun(experiment, tmp_path / f"parts-{at}", at=at)
        plans.clear()
        run = train(experiment, folder, show="none")
        assert plans == [(total, done)] and run.progress["step"] == total
        assert [line.split("continuing at ")[1] for line in log_of(folder).splitlines() if "continuing" in line] == (
            [said] if said else []
        )


def test_a_run_whose_sessions_are_all_there_is_not_continued(tiny, tmp_path):
    run = train(tiny(**PLAIN), tmp_path / "run", show="none")
    (run.folder / "DONE").unlink()
    again = train(tiny(**PLAIN), run.folder, show="none")
    assert again.done and "continuing" not in log_of(run.folder)


def test_seconds_of_all_starts_are_added_up(tiny, tmp_path, monkeypatch):
    """A clock that moves on by 100.004 s whenever it is looked at: at the start of a session, after
    each epoch and at the end."""
    ticks = itertools.count()
    monkeypatch.setattr(session_module, "time", SimpleNamespace(perf_counter=lambda: 100.004 * next(ticks)))
    monkeypatch.setattr(session_module, "peak_memory_mb", lambda device: 12.36)
    experiment = tiny(**{**PLAIN, "train__epochs": 3})
    run = train(experiment, tmp_path / "whole", show="none", device="cpu")
    assert [run.session_state(t)["seconds"] for t in range(2)] == [400.02, 400.02]
    assert run.session_state(0)["peak_memory_mb"] == 12.4
    folder = begun(experiment, tmp_path / "parts", at=(0, 1))
    assert Run(folder).load_resume()["seconds"] == pytest.approx(
        100.004
    )  # from the start of the session to the first epoch's end
    with pytest.MonkeyPatch.context() as patch:
        spied(patch, Run, "save_resume", lambda self, content: kept.append(content["seconds"]))
        kept = []
        parts = train(experiment, folder, show="none", device="cpu")
    assert kept[0] == pytest.approx(200.008)
    assert [parts.session_state(t)["seconds"] for t in range(2)] == [400.02, 400.02]


# ---- what is looked at first ----


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_without_an_image_are_named_for_either_half(tiny, coco_root, split):
    path = coco_root / "annotations" / f"instances_{split}2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 40]  # dog
    path.write_text(json.dumps(content))
    half = {"train": "train", "val": "test"}[split]
    with pytest.raises(DataError, match=f"{half}: no image is labelled with dog"):
        train(tiny(**PLAIN), show="none")


def test_disjoint_images_must_leave_every_class_one_in_training_alone(tiny, coco_root):
    """Every ant beside a dog: for training that leaves ants no image, for the test it does not matter."""
    for split, refused in (("val", False), ("train", True)):
        path = coco_root / "annotations" / f"instances_{split}2014.json"
        content = json.loads(path.read_text())
        dogs = {a["image_id"] for a in content["annotations"] if a["category_id"] == 40}
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 10 or a["image_id"] in dogs]
        path.write_text(json.dumps(content))
        experiment = tiny(**PLAIN, protocol__images="disjoint")
        if refused:
            with pytest.raises(DataError, match="train: every image of ant also shows a class that is learned later"):
                train(experiment, show="none")
        else:
            assert train(experiment, show="none", max_steps=1).finished_sessions == 2


def test_the_log_begins_with_what_there_is(tiny, tmp_path, monkeypatch):
    original = session_module.open_halves

    def noted(section, exemplars):
        train, held, test = original(section)
        halves = [dataclasses.replace(half, notes=(f"a note on {half.split}",)) for half in (train, test)]
        return Halves(halves[0], held, halves[1])

    monkeypatch.setattr(session_module, "open_halves", noted)
    run = train(tiny(**PLAIN), tmp_path / "some", show="none", device="cpu", max_steps=1)
    lines = [line.split("  ", 1)[1] for line in log_of(run.folder).splitlines()]
    assert lines[0].startswith("some: 40 training and 24 test images, 2 sessions (B0-C2), cpu, ")
    assert lines[1:3] == ["data: a note on train", "data: a note on test"]


# ---- several processes, one at a time ----


@dataclasses.dataclass(frozen=True)
class Played(World):
    """One of two processes, without the other: the main one's decisions are written down, the second's read."""

    said: list = dataclasses.field(default_factory=list)
    told: list = dataclasses.field(default_factory=list)

    def part(self, items):
        return items

    def gather(self, part):
        return part

    def collect(self, part):
        return part if self.main else None

    def sum(self, values):
        return values

    def decide(self, value):
        if self.main:
            self.said.append(json.loads(json.dumps(value)))
            return value
        return self.said.pop(0)

    def wait(self):
        self.told.append("wait")

    def wrap(self, model):
        self.told.append("wrap")

        def wrapped(*arguments, **keywords):
            self.told.append("forward")
            return model(*arguments, **keywords)

        return wrapped

    def average_gradients(self, parameters):
        pass

    def share(self, tensors):
        self.told.append(f"share {len(list(tensors))}")

    def share_buffers(self, model):
        self.told.append("share buffers")


def play(monkeypatch, experiment, folder, world):
    """Train as that process; the training that was made of it."""
    choose, kept = session_module.choose_runtime, []
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "choose_runtime", lambda *a: dataclasses.replace(choose(*a), world=world))
        spied(patch, _Training, "go", lambda self: kept.append(self))
        train(experiment, folder, show="none", device="cpu")
    return kept[0]


def test_the_main_process_decides_and_writes_and_the_others_follow(tiny, tmp_path, monkeypatch):
    changes = dict(train__batch_norm="frozen", replay__per_class=2, train__evaluate_every=0)
    experiment = tiny(**changes)
    main = Played(0, 2)
    run = play(monkeypatch, experiment, tmp_path / "main", main).run
    assert run.done and ", cpu in 2 processes, " in log_of(run.folder)
    assert main.told[-1] == "wait" and main.told.count("wrap") == 2
    steps = run.progress["step"]
    assert main.told.count("forward") == steps and main.told.count("share buffers") == 4  # an epoch each
    assert main.told.count("share 0") == 2  # the method's tensors, of which KRT has none, when a session starts

    wrong = ThresholdRecord(0.123, 0.0, 0.0, 0, True)
    monkeypatch.setattr(krt_module, "find_thresholds", lambda *_: wrong)
    other = Played(1, 2, said=list(main.said))
    training = play(monkeypatch, experiment, tmp_path / "other", other)
    state = run.session_state(1)
    assert json.loads(json.dumps([training.method.state(), training.memory.state()])) == [
        state["method"],
        state["memory"],
    ]
    assert other.said == [] and other.told[-1] == "wait"
    left = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert left == ["experiment.yaml"]
    with pytest.raises(RunError, match="machines that share a run need the same folder"):
        play(monkeypatch, experiment, tmp_path / "third", Played(1, 2, said=[1]))


def test_a_fit_is_shared_too(tiny, tmp_path, monkeypatch):
    worlds = []
    monkeypatch.setattr(Finetune, "fit", lambda self, context: worlds.append(context.world), raising=False)
    main = Played(0, 2)
    experiment = tiny(**PLAIN, train__batch_norm="frozen")
    play(monkeypatch, experiment, tmp_path / "main", main)
    assert worlds == [main, main] and main.told.count("share 0") == 4 and "wrap" not in main.told
    play(monkeypatch, experiment, tmp_path / "other", Played(1, 2, said=list(main.said)))
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
