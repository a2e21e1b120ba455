"""Names of many runs at once: the same as one by one, and no configuration compared more than once."""

import math
from collections import Counter

from benchmarks.made_up_runs import finished
from krt_core.config import Experiment, load_experiments
from krt_core.lab.explorers.follow import Followed
from krt_core.lab.explorers.gallery import named
from krt_core.lab.report import label_of, labels_of, names_of, replicate_of
from krt_core.lab.report.naming import backbone_of, stored_words


def many():
    kinds = (["method=krt"], ["method=krt", "train.base_lr=0.1"], ["method=krt", "train.base_lr=0.1", "train.epochs=9"])
    return [finished(overrides=[*kind, f"seed={seed}"]) for seed in (0, 1) for kind in kinds]


def test_names_of_many_are_those_of_each_among_them():
    runs = [*many(), finished(overrides=["method=krt", "protocol.order_seed=3"], leak="it had seen them")]
    labels = labels_of(runs)
    assert labels == [label_of(run, runs) for run in runs]
    assert names_of(runs) == [f"{label}, {replicate_of(run)}" for run, label in zip(runs, labels, strict=True)]
    assert len(set(labels[:3])) == 3 and labels[:3] == labels[3:6] and labels[6] == "krt (LEAK)"
    assert labels[1] == "krt, train.epochs=15, train.base_lr=0.1"  # 15 is of the preset, not the default
    assert labels[2] == "krt, train.epochs=9, train.base_lr=0.1"


def test_two_methods_of_one_short_name_are_no_replicates(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lab_a", "lab_b"):
        (tmp_path / f"{name}.py").write_text("from krt_core.methods.finetune import Finetune\n")
    one, two = (finished(overrides=[f"method={name}:Finetune"]) for name in ("lab_a", "lab_b"))
    assert labels_of([one]) == ["Finetune"]
    assert labels_of([one, two]) == ["Finetune, method=lab_a:Finetune", "Finetune, method=lab_b:Finetune"]


def test_a_configuration_is_looked_at_once_however_many_runs_there_are(monkeypatch):
    runs, seen, plain = many(), Counter(), Experiment.changes
    monkeypatch.setattr(Experiment, "changes", lambda self: (seen.update([id(self)]), plain(self))[1])
    assert len(named(runs)) == len(runs)
    assert set(seen.values()) == {1} and len(seen) == len(runs)


def test_backbones_that_stand_still_are_told_apart_in_every_name():
    freezes = ("none", "all", "first")
    runs = [finished(overrides=["method=krt", f"model.freeze={freeze}"]) for freeze in freezes]
    assert labels_of(runs) == ["krt", "krt, frozen", "krt, frozen after session 1"]
    assert [backbone_of(run) for run in runs] == ["trained", "frozen", "first session"]
    cut = [
        finished(overrides=["method=krt", f"model.freeze={how}", "model.tune_from=blocks.5"]) for how in freezes[::2]
    ]
    assert [backbone_of(run) for run in cut] == ["trained, from blocks.5", "first session, from blocks.5"]
    ridge = [finished(overrides=["method=ridge", f"model.freeze={freeze}"]) for freeze in freezes]
    assert [backbone_of(run) for run in ridge] == ["frozen", "frozen", "first session"]
    assert label_of(finished(overrides=["method=krt", "model.freeze=all", "replay.per_class=5"])) == (
        "krt, frozen, 5 exemplars per class"
    )


def test_what_is_stored_is_said_in_images_and_bytes():
    assert stored_words(0, 0, 0) == "–" and stored_words(3, math.nan, math.nan) == "3 images"
    assert stored_words(200, 6e5, 0) == "200 images (0.6 MB)" and stored_words(0, 0, 13.3e6) == "13 MB of state"
    assert stored_words(20, 4e6, 1e5) == "20 images (4 MB) + 0.1 MB of state"


def test_runs_that_have_not_begun_are_named_like_those_that_have(tmp_path):
    experiments = load_experiments("digits_demo", ["krt", "krt krt.oracle=true", "ridge"], [0])
    followed = [Followed(experiment, tmp_path / experiment.run_name()) for experiment in experiments]
    assert names_of(followed) == ["krt, seed 0", "krt (ORACLE), seed 0", "ridge, seed 0"]
