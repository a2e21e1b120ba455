"""KRT's thresholds over several sessions, against the paper's words: how many pseudo labels are expected of a session,
and that its search begins where the last one ended."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from krt_core.dpl import TOLERANCE, ThresholdRecord, search_threshold
from krt_core.methods import Context
from krt_core.methods.krt import KRT
from krt_core.protocol import make_protocol


def contexts(experiment, classes, increment, scores):
    """One for each session after the first, with the old model's scores (n, C_old) on its images: higher ones from
    session to session, so that a walk from the last threshold comes from below, and one from 0.8 from above."""
    protocol = make_protocol(tuple(f"c{i}" for i in range(classes)), increment, increment)
    for session in protocol.sessions[1:]:
        old = scores[:, : session.start] ** (1 / session.index)
        yield Context(
            experiment=experiment, protocol=protocol, session=session, model=None, old_model=None, forward=None,
            old_scores=lambda old=old: old, class_frequency=np.full(session.start, 0.25), log=lambda text: None,
        )  # fmt: skip


def test_as_many_pseudo_labels_are_expected_as_the_old_share_of_all_classes(tiny):
    """Mean labels of an image times C_old / C_total: of ten classes after four, 0.4 of them, whatever comes now."""
    experiment = tiny(krt__mean_labels=2.5)
    krt = KRT(experiment.options, experiment)
    rng = np.random.default_rng(0)
    for context in contexts(experiment, 10, 2, rng.random((200, 10)).astype(np.float32)):
        krt.start_session(context)
        record = krt.records[context.session.index]
        assert record.target == pytest.approx(2.5 * context.session.start / 10)
        assert abs(record.found - record.target) < TOLERANCE and record.converged


@pytest.mark.parametrize("per_class", [False, True])
def test_the_search_begins_at_the_last_threshold(tiny, per_class):
    experiment = tiny(krt__mean_labels=1.0, krt__per_class=per_class)
    krt = KRT(experiment.options, experiment)
    rng = np.random.default_rng(1)
    scores = rng.random((400, 12)).astype(np.float32) ** 6
    apart = 0
    for context in contexts(experiment, 12, 3, scores):
        krt.start_session(context)
        index = context.session.index
        last = krt.records.get(index - 1)
        if last is None:
            continue
        record, old, said = krt.records[index], context.session.start, context.old_scores()
        shares = [(said[:, c : c + 1], 1.0 / 12, last.per_class[c]) for c in range(len(last.per_class))]
        shares = shares if per_class else [(said, old / 12, last.threshold)]
        for column, (own, target, start) in enumerate(shares):
            band = {"tolerance": TOLERANCE / old} if per_class else {}
            expected = search_threshold(own, target, start, **band)
            anew = search_threshold(own, target, **band)
            found = record.per_class[column] if per_class else record.threshold
            assert found == expected.threshold
            apart += found != anew.threshold
    assert apart  # or the test could not tell


def test_records_survive_a_restart(tiny):
    experiment = tiny(krt__mean_labels=1.0)
    krt, again = KRT(experiment.options, experiment), KRT(experiment.options, experiment)
    scores = np.random.default_rng(2).random((300, 6)).astype(np.float32) ** 4
    first, second = contexts(experiment, 6, 2, scores)
    krt.start_session(first)
    again.load_state(krt.state())
    krt.start_session(second)
    again.start_session(second)
    assert krt.records == again.records and set(again.records) == {1, 2}


def test_pseudo_labels_set_confident_old_classes_and_nothing_else(tiny):
    experiment = tiny()
    krt = KRT(experiment.options, experiment)
    krt.context = SimpleNamespace(session=SimpleNamespace(index=1))
    krt.records = {1: ThresholdRecord(0.7, 0.5, 0.5, 0, True)}
    labels = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # the second image is replayed: an old label is known
    old_logits = torch.logit(torch.tensor([[0.71, 0.69], [0.1, 0.9]]))
    assert krt.restore(labels, old_logits).tolist() == [[1, 0, 1], [1, 1, 0]]  # set, never unset
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0]]
