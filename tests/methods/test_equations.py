"""What each method minimises, against its equations written out once more on the outputs of two tiny networks."""

import copy
import math

import numpy as np
import pytest
import torch

from krt_core.data.pipeline import Batch
from krt_core.dpl import ThresholdRecord
from krt_core.errors import ConfigError
from krt_core.machine.distributed import World
from krt_core.methods import METHODS, Context, Method, class_of
from krt_core.methods.head import OwnHead
from krt_core.protocol import make_protocol
from krt_core.weights.convert import network_of

GROUP, BATCH, SHARE = 48, 16, 0.75  # this process holds 3 images of the 4 of a batch


def asymmetric(logits, labels):
    """Σ −log p of what is there and −p_m⁴ log(1 − p_m) of what is not, p_m = max(p − 0.05, 0)."""
    p = torch.sigmoid(logits)
    absent = (p - 0.05).clamp(min=0)
    return torch.where(labels > 0, -p.log(), -(absent**4) * (1 - absent).log()).sum()


def binary(logits, labels):
    """Σ −log p of what is there and −log(1 − p) of what is not; labels may lie between."""
    p = torch.sigmoid(logits)
    return -(labels * p.log() + (1 - labels) * (1 - p).log()).sum()


def cosine(a, b):
    """(B,) of vectors (B, n)."""
    return (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)


def learning(tiny, name, index=1, increment=2, protocol=None, **options):
    """A method in session ``index`` (of two classes, after the first), its context and a batch of three images; the
    networks are in eval mode, so that they say the same again."""
    torch.manual_seed(0)
    changes = {f"{name}__{key}": value for key, value in options.items()}
    changes |= {"replay__per_class": 2} if name in ("er", "icarl", "derpp") else {}
    experiment = tiny(method=name, train__group=GROUP, train__batch_size=BATCH, **changes)
    model, old = network_of(experiment).eval(), None
    for _ in range(index + 1):
        old = copy.deepcopy(model) if model.sessions else None
        model.add_session(2)
    for parameter in model.parameters():  # away from the small initial values, and from the old model
        parameter.data += 0.1 * torch.randn_like(parameter)
    protocol = protocol or make_protocol(tuple("abcdef"), 2, increment)
    context = Context(
        experiment=experiment, protocol=protocol, session=protocol.sessions[index], model=model, old_model=old,
        forward=model, old_scores=lambda: np.random.default_rng(0).random((9, 2 * index)),
        class_frequency=np.array([0.5, 0.25]), log=lambda text: None,
        **({"batches": lambda: iter(())} if name == "agcn" else {}),
    )  # fmt: skip
    method = METHODS[name](experiment.options, experiment)
    method.start_session(context)
    images, labels = torch.rand(3, 3, 32, 32), torch.zeros(3, 2 * index + 2)
    labels[0, -1] = labels[1, -2] = labels[1, 0] = 1
    return method, context, Batch(images, labels, np.arange(3), share=SHARE)


def test_the_scale_is_of_a_group_whatever_the_batch(tiny):
    """The published loss is a sum over a GPU's images: three times as much of a batch a third as large."""
    for name in METHODS:
        if issubclass(METHODS[name], OwnHead):
            continue  # the logits are not the network's: each is computed again in a test of its own
        method, context, batch = learning(tiny, name, index=0)
        result = method.loss(batch)
        logits = context.model(batch.images).logits
        loss = binary(logits, batch.labels) if name == "icarl" else asymmetric(logits, batch.labels)
        torch.testing.assert_close(result["loss"], 3 * loss)
        assert result["parts"].keys() == {"classification"}  # the first session has nothing to distil
        assert torch.equal(result["parts"]["classification"], result["loss"]) and torch.equal(result["logits"], logits)


def test_krt_restores_labels_and_distils_tokens(tiny):
    """Token distillation: λ·sqrt(C / increment)·(1 − cos) of the old tokens concatenated, the mean over all images."""
    method, context, batch = learning(tiny, "krt", index=2, token_weight=7.0)
    opinion = torch.sigmoid(context.old_model(batch.images).logits.detach())
    between = float(opinion.sort(descending=True).values.flatten()[5:7].mean())
    method.records[2] = ThresholdRecord(between, 0.5, 0.5, 0, True)
    result = method.loss(batch)
    new, old = context.model(batch.images), context.old_model(batch.images)
    restored = batch.labels.clone()
    for image, column in (opinion > between).nonzero().tolist():
        restored[image, column] = 1
    assert batch.labels.sum() < restored.sum() < restored.numel()
    torch.testing.assert_close(result["parts"]["classification"], 3 * asymmetric(new.logits, restored))
    apart = (1 - cosine(old.tokens.flatten(1), new.tokens[:, :2].flatten(1))).mean()
    torch.testing.assert_close(result["parts"]["distillation"], 7 * SHARE * math.sqrt(6 / 2) * apart)
    torch.testing.assert_close(result["loss"], result["parts"]["classification"] + result["parts"]["distillation"])
    assert torch.equal(result["logits"], new.logits) and apart > 1e-3


def test_krt_without_its_parts(tiny):
    method, context, batch = learning(tiny, "krt", pseudo_labels=False, token_weight=0.0)
    result = method.loss(batch)
    assert not method.records and not method.asks_old_scores and result["parts"].keys() == {"classification"}
    torch.testing.assert_close(result["loss"], 3 * asymmetric(context.model(batch.images).logits, batch.labels))
    plain, *_ = learning(tiny, "krt", head="linear", token_weight=0.0)
    assert plain.asks_old_scores and plain.loss(batch)["parts"].keys() == {"classification"}
    with pytest.raises(ConfigError, match=r"krt\.head=linear has no tokens"):
        learning(tiny, "krt", head="linear", token_weight=1.0)


def test_a_score_at_the_threshold_is_none_above_it_as_in_the_search(tiny):
    """In the precision of the scores: the search has counted so."""
    method, context, _ = learning(tiny, "krt")
    logits = torch.tensor([[1.3, 1.4]])
    score = float(torch.sigmoid(logits)[0, 0])
    method.records[1] = ThresholdRecord(math.nextafter(score, 0), 0.0, 0.0, 0, True)
    assert method.restore(torch.zeros(1, 4), logits).tolist() == [[0, 1, 0, 0]]


def test_krt_expects_what_it_was_told_or_what_it_has_seen(tiny):
    """Published: μ·C_old / C_total, the same of every class. Estimated: as often as the classes were shown so far."""
    band = {"rule": "exact", "per_class": True}
    for target, expected, shares in (("published", 2.4 * 2 / 6, (0.5, 0.5)), ("estimated", 0.75, (2 / 3, 1 / 3))):
        method, context, _ = learning(tiny, "krt", target=target, mean_labels=2.4, **band)
        record, scores = method.records[1], context.old_scores()
        assert record.target == pytest.approx(expected)
        named = (scores > record.values).mean(axis=0)
        assert named == pytest.approx([expected * share for share in shares], abs=0.5 / len(scores) + 1e-9)
    first = learning(tiny, "krt", index=0)[0]
    assert first.records == {} and first.asks_old_scores


def test_krt_keeps_a_threshold_it_has_and_says_whether_it_met_the_band(tiny):
    method, context, _ = learning(tiny, "krt", mean_labels=3.0)
    said, record = [], method.records[1]
    context.log, context.old_scores = said.append, lambda: np.full((5, 2), 0.7)
    method.start_session(context)
    assert method.records[1] is record and not said
    method.records.clear()
    method.start_session(context)  # of scores that are all the same none or both lie above: never 1 ± 0.1 an image
    found = method.records[1]
    assert not found.converged and said == [
        f"DPL threshold {found.threshold:.3f} is the closest, none met the band: {found.found:.2f} pseudo labels per "
        f"image (expected 1.00, {found.steps} steps)"
    ]
    method.records.clear()
    context.old_scores = lambda: np.array([[0.9, 0.1]])
    method.start_session(context)
    assert said[1:] == ["DPL threshold 0.800: 1.00 pseudo labels per image (expected 1.00, 0 steps)"]


def test_pod_distils_the_stages_and_the_embedding(tiny):
    """POD-spatial of every stage and 1 − cos of the pooled embedding, each times its weight and sqrt(C / increment)."""
    method, context, batch = learning(tiny, "pod", index=2, spatial_weight=3.0, flat_weight=11.0)
    result = method.loss(batch)
    new, old = (network(batch.images, with_stages=True) for network in (context.model, context.old_model))
    distances = []
    for a, b in zip(old.stages, new.stages, strict=True):
        sums = [torch.cat([(x**2).sum(3).flatten(1), (x**2).sum(2).flatten(1)], 1) for x in (a, b)]
        before, now = (x / x.norm(dim=1, keepdim=True) for x in sums)
        distances.append((before - now).norm(dim=1).mean())
    growth = SHARE * math.sqrt(6 / 2)
    flat = (1 - cosine(old.features.mean((2, 3)), new.features.mean((2, 3)))).mean()
    expected = {
        "classification": 3 * asymmetric(new.logits, batch.labels),
        "spatial": 3 * growth * sum(distances) / len(distances),
        "flat": 11 * growth * flat,
    }
    assert len(distances) > 1 and flat > 1e-4
    torch.testing.assert_close(result["parts"], expected)
    torch.testing.assert_close(result["loss"], sum(expected.values()))
    assert torch.equal(result["logits"], new.logits)


def test_growth_is_of_all_classes_over_those_of_a_session(tiny):
    *_, context, _ = learning(tiny, "finetune", index=2)
    assert context.growth == 3
    context.protocol = make_protocol(tuple("abcdef"), 2, 1)  # the increment, not the session's own classes
    assert context.growth == 6
    context.protocol = make_protocol(tuple("abcdef"), 0, 0, sizes=(1, 2, 3))  # uneven: the session's own
    context.session = context.protocol.sessions[1]
    assert context.growth == 3 / 2


def test_the_old_model_is_asked_without_gradient_and_its_answers_may_be_learned_from(tiny):
    *_, context, batch = learning(tiny, "finetune")
    plain, staged = context.ask_old(batch.images), context.ask_old(batch.images, with_stages=True)
    assert plain.stages is None and staged.stages
    for answer in (plain.logits, plain.features, *staged.stages):
        assert not answer.requires_grad and not answer.is_inference()
    first = learning(tiny, "finetune", index=0)[1]
    with pytest.raises(AssertionError, match="no old model"):
        first.ask_old(batch.images)
    assert first.world == World()
    with pytest.raises(RuntimeError, match="no images"):
        next(first.batches())


def test_what_a_method_has_that_says_nothing_else(tiny):
    method, context, batch = learning(tiny, "finetune", index=0)
    assert method.options is context.experiment.options and method.context is context
    assert list(method.parameters()) == [] and method.state() == {} and method.targets(batch) is batch.labels
    assert not method.asks_old_scores and method.replays and method.sees == "session"
    torch.testing.assert_close(method.scores(context.model, batch.images), context.model(batch.images).logits.sigmoid())
    with pytest.raises(NotImplementedError):
        method.fit(context)
    assert not Method.has_own("fit") and not METHODS["krt"].has_own("scores")
    assert class_of("joint") is METHODS["joint"] and class_of("gone:Method") is Method
    assert METHODS["joint"].sees == "all" and not METHODS["joint"].replays
