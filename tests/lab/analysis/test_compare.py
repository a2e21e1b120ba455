"""Runs side by side, and what a protocol makes of a data set."""

import numpy as np
import pytest

from benchmarks.made_up_runs import coco, finished
from krt_core.data import open_dataset
from krt_core.errors import RunError
from krt_core.lab.analysis import (
    attentive_run,
    authors_curves,
    comparable_runs,
    curves_table,
    forgetting_table,
    look_at,
    one_per_method,
    opened_test_set,
    split_table,
    split_words,
)
from krt_core.protocol import make_protocol
from krt_core.session import train


def test_runs_of_one_setting_and_their_numbers():
    runs = [finished(overrides=[f"method={method}", f"seed={seed}"]) for method in ("krt", "pod") for seed in (0, 1)]
    large = coco()
    assert [run.folder for run in comparable_runs("outputs")] in ([r.folder for r in runs], [large.folder])
    assert len(comparable_runs(large.folder)) == 1 and one_per_method(runs) == [runs[0], runs[2]]
    curves = curves_table(runs)
    assert curves.index.tolist() == ["krt, seed 0", "krt, seed 1", "pod, seed 0", "pod, seed 1"]
    assert curves.columns.tolist() == [f"session {t}" for t in range(1, 6)]
    assert np.array_equal(curves.loc["pod, seed 1"], runs[3].curve().round(2))
    assert curves_table([large], "mAP_base").shape == (1, 8)
    lost = forgetting_table(runs)
    assert lost["krt, seed 1"]["max_class_fixed"] == round(runs[1].forgetting()["max_class_fixed"], 2)
    assert authors_curves(large) and not authors_curves(runs[0])


def test_sessions_in_numbers(tiny):
    experiment = tiny()
    train_set, test_set = (open_dataset(experiment.data, split) for split in ("train", "test"))
    protocol = make_protocol(train_set.classes, 0, 2)
    table = split_table(protocol, train_set, test_set)
    assert table.index.tolist() == [1, 2] and table["new classes"].tolist() == ["ant, bee", "cat, dog"]
    first, second = (train_set.labels[:, columns].any(axis=1).sum() for columns in (slice(2), slice(2, 4)))
    assert table["training images"].tolist() == [first, second]
    assert table["test images, seen"].tolist()[1] == test_set.labels.any(axis=1).sum()
    words = split_words(protocol, train_set, test_set)
    assert "40 training and 24 test images, 4 classes, B0-C2" in words


def test_images_as_a_run_saw_them(tiny):
    run = train(tiny(train__epochs=1), show="none")
    assert attentive_run("outputs").folder == run.folder
    dataset, problem = opened_test_set(run)
    assert not problem
    first, second = look_at(run, count=2)
    assert first.image in dataset.ids and first.pixels.shape == (96, 96, 3) and len(first.looks) == 2
    row = dataset.ids.tolist().index(second.image)
    assert list(second.present) == [
        name for name, there in zip(dataset.classes, dataset.labels[row], strict=True) if there
    ]
    for name, maps in second.evidence().items():
        assert (maps[0] is None) == (name in ("cat", "dog")) and maps[1].maps.shape[0] == 1
    assert look_at(run, [second.image])[0].image == second.image


def test_a_method_without_attention_is_told():
    finished(overrides=["method=finetune", "finetune.head=linear"])
    with pytest.raises(RunError, match="finetune run in outputs has attention"):
        attentive_run("outputs", "finetune")
