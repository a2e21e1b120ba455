"""Whole trainings with memories of fixed size: what they store, hide, go on with and tell."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from krt_core.data import open_dataset
from krt_core.errors import RunError
from krt_core.lab.analysis.pseudo_labels import pseudo_labels
from krt_core.lab.report import runs_table
from krt_core.memory import memory_of
from krt_core.remember import Remembering
from krt_core.runs.progress import Progress
from krt_core.session import train

KINDS = ("prs", "ocdm")
QUICK = dict(method="finetune", train__epochs=1, train__evaluate_every=0, train__augment="none", replay__budget=9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_stores_replays_and_tells(tiny, kind):
    experiment = tiny(**QUICK, replay__selection=kind)
    run = train(experiment, show="none")
    first, last = run.session_state(0), run.session_state(1)
    assert last["replayed_images"] == 9 and run.summary["exemplars"] == 9 and last["exemplar_bytes"] > 0
    dataset = open_dataset(experiment.data, "train")
    (ids,) = last["exemplar_ids"]
    assert ids == dataset.ids[last["memory"]["images"]].tolist() and len(set(ids)) == 9
    own = [range(s.start, s.stop) for s in run.protocol.sessions]
    labels = run.protocol.reorder(dataset.labels)
    for image, classes, sessions in zip(
        *(last["memory"][key] for key in ("images", "classes", "stored_in")), strict=True
    ):
        assert classes == [c for t in sessions for c in own[t] if labels[image, c]]  # of its own sessions, and all
    assert first["memory"]["counts"] == labels[:, :2].sum(axis=0).tolist()
    (line,) = runs_table([run]).to_dict("records")
    assert line["name"] == "finetune, 9 exemplars" and line["exemplars"] == 9
    joint = train(tiny(**{**QUICK, "method": "joint"}, replay__selection=kind), show="none")
    assert joint.session_state(1)["exemplar_ids"] == [] and joint.summary["exemplars"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_other_sessions_are_never_read(tiny, tmp_path, monkeypatch, kind):
    """Whatever they say while exemplars are chosen, the same ones are."""
    experiment = tiny(**QUICK, replay__selection=kind, protocol__increment=1)
    clean = train(experiment, tmp_path / "clean", show="none")
    original, poisons = Remembering.choose, []

    def poisoned(self, index, own, features):
        kept, columns = self.labels, self.protocol.sessions[index].columns
        labels = ~kept
        labels[:, columns] = kept[:, columns]
        others = np.setdiff1d(np.arange(len(kept)), own)
        labels[others] = ~kept[others]
        poisons.append((labels != kept).mean())
        original(replace(self, labels=labels), index, own, features)

    monkeypatch.setattr(Remembering, "choose", poisoned)
    run = train(experiment, tmp_path / "poisoned", show="none")
    assert len(poisons) == 4 and min(poisons) > 0.7
    assert [run.session_state(t)["memory"] for t in range(4)] == [clean.session_state(t)["memory"] for t in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_between_sessions_and_inside_one_it_ends_the_same(tiny, tmp_path, monkeypatch, kind):
    experiment = tiny(**{**QUICK, "train__epochs": 2}, replay__selection=kind, protocol__increment=1)
    whole = train(experiment, tmp_path / "whole", show="none")
    original = Progress.epoch
    for stop_at in ((1, 0), (2, 1)):

        def stop(self, record, stop_at=stop_at):
            original(self, record)
            if (record["session"], record["epoch"]) == stop_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(Progress, "epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, tmp_path / "parts", show="none")
    monkeypatch.setattr(Progress, "epoch", original)
    parts = train(experiment, tmp_path / "parts", show="none")
    for t in range(4):
        one, two = whole.session_state(t), parts.session_state(t)
        assert one["memory"] == two["memory"] and one["exemplar_ids"] == two["exemplar_ids"]
        assert (whole.scores(t).scores == parts.scores(t).scores).all()


def test_a_session_without_its_memory_is_not_continued(tiny, tmp_path):
    experiment = tiny(**QUICK, replay__selection="prs")
    run = train(experiment, tmp_path / "run", show="none")
    (run.folder / "DONE").unlink()
    shutil.rmtree(run.session_folder(1))
    empty = memory_of(experiment.replay).state()
    run.write_json("session_00/state.json", {**run.session_state(0), "memory": empty})
    with pytest.raises(RunError, match="session 1 came without exemplars to replay"):
        train(experiment, run.folder, show="none")


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_pseudo_labels_are_known_again_with_their_exemplars(tiny, validation):
    """Also where the data set that is looked at counts other rows than the training did."""
    changes = dict(method="krt", replay__labels="strict", replay__selection="ocdm", data__validation=validation)
    run = train(tiny(**{**QUICK, **changes}), show="none")
    found, (ids,) = pseudo_labels(run, 1), run.session_state(0)["exemplar_ids"]
    assert found.ids[found.own :].tolist() == ids and len(ids) == 9
    assert (found.visible[found.own :] == found.truth[found.own :]).all()
