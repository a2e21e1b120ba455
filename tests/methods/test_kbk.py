"""KBK against its equations, written out image by image and class by class."""

import math

import numpy as np
import pytest
import torch
from test_equations import learning

from krt_core.data.pipeline import Batch
from krt_core.errors import ConfigError
from krt_core.methods.kbk import entropy


def norm(x, layer):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * layer.weight + layer.bias


def block(tokens, of, heads):
    """(n, D) of one image's tokens (n, D), each token and head on its own."""
    n, dim = tokens.shape
    size = dim // heads
    q, k, v = (torch.stack([norm(t, of.norm1) for t in tokens]) @ of.qkv.weight.T + of.qkv.bias).split(dim, dim=1)
    out = []
    for i in range(n):
        parts = []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            weights = torch.softmax(k[:, own] @ q[i, own] / math.sqrt(size), dim=0)
            parts.append(weights @ v[:, own])
        token = tokens[i] + of.proj.weight @ torch.cat(parts) + of.proj.bias
        hidden = torch.nn.functional.gelu(of.mlp.fc1.weight @ norm(token, of.norm2) + of.mlp.fc1.bias)
        out.append(token + of.mlp.fc2.weight @ hidden + of.mlp.fc2.bias)
    return torch.stack(out)


def embeddings(head, features, heads=4):
    """(B, C, D)."""
    every = []
    for image in features:
        patches = image.flatten(1).T @ head.projection.weight.T + head.projection.bias + head.position[0]
        tokens = torch.cat([patches, *head.queries])
        for one in head.blocks:
            tokens = block(tokens, one, heads)
        every.append(torch.stack([norm(token, head.norm) for token in tokens[len(patches) :]]))
    return torch.stack(every)


def term(logit, label):
    p = torch.sigmoid(logit)
    absent = (p - 0.05).clamp(min=0)
    return -p.log() if label else -(absent.detach() ** 4) * (1 - absent).log()


def shaken(method, confidence):
    """Weights away from their small first values, and means of sure and unsure classes."""
    torch.manual_seed(1)
    for head in (method.head, method.old_head):
        for parameter in head.parameters() if head is not None else ():
            parameter.data += 0.3 * torch.randn_like(parameter)
    method.confidence = torch.tensor(confidence, dtype=torch.float64)


def restored(method, batch, old_logits):
    """Old label := 1 iff p ≥ μ and entropy ≤ its mean."""
    labels, count = batch.labels.clone(), 0
    for i, row in enumerate(torch.sigmoid(old_logits).tolist()):
        for c, p in enumerate(row):
            mean, high = (float(x) for x in method.confidence[c, :2] / method.confidence[c, 2])
            if p >= mean and -p * math.log(p) - (1 - p) * math.log(1 - p) <= high:
                labels[i, c], count = 1, count + 1
    return labels, count


# Sums of p and entropy, and images: classes 0 and 2 are restored easily, 1 if sure, 3 hardly.
CONFIDENCE = [[0.8, 1.4, 2], [1.2, 1.35, 2], [0.9, 2.0, 3], [1.98, 0.02, 2]]


def test_the_loss_is_the_sum_of_its_parts_written_out(tiny):
    method, context, batch = learning(tiny, "kbk", index=2, blocks=2, unknown_weight=0.7)
    shaken(method, CONFIDENCE)
    features = context.model(batch.images).features
    z, head = embeddings(method.head, features), method.head
    rows, biases = torch.cat(list(head.rows)), torch.cat(list(head.biases))
    logits = torch.stack([torch.stack([rows[c] @ image[c] + biases[c] for c in range(6)]) for image in z])

    old = context.old_model(batch.images).features
    z_old, h = embeddings(method.old_head, old), method.old_head
    old_logits = (z_old * torch.cat(list(h.rows))).sum(-1) + torch.cat(list(h.biases))
    assert old_logits.shape == (3, 4)
    p = torch.sigmoid(old_logits.detach()).double()
    low, high = (p.sort(dim=0).values[places].mean(dim=0) for places in (slice(2), slice(1, 3)))  # around the middle
    least = torch.stack([low[0], 0 * low[1], high[2], high[3]])
    most = torch.stack([entropy(high[0]), entropy(high[1]), entropy(low[2]) + 1, entropy(low[3])])
    method.confidence = torch.stack([3 * least, 3 * most, torch.full((4,), 3.0)], dim=1).double()
    labels, count = restored(method, batch, old_logits.detach())
    assert (p < 0.5).all() and count == 1 + 2 + 1  # the middle image; all but the last; the last; none
    result = method.loss(batch)
    torch.testing.assert_close(result["logits"], logits, rtol=1e-5, atol=1e-5)

    gaps = (torch.sigmoid(logits) - labels).abs().detach()
    classification = 0.0
    for c in range(6):
        for i in range(3):
            weight = 1.0
            if c < 4:
                session = slice(0, 2) if c < 2 else slice(2, 4)
                alike = labels[:, session] == labels[i, c]
                weight = gaps[i, c] / gaps[:, session][alike].mean()
            classification = classification + weight * term(logits[i, c], labels[i, c])
    torch.testing.assert_close(result["parts"]["classification"], 3 * classification, rtol=1e-5, atol=1e-5)

    unknown = 0.0
    for image, label in zip(z, labels, strict=True):
        says = lambda x: (head.unknown.weight @ x + head.unknown.bias)[0]  # noqa: E731
        if (label == 0).any():
            unknown = unknown + term(says(image[label == 0].mean(dim=0)), 1)
        for there in image[label == 1]:
            unknown = unknown + term(says(there), 0)
    torch.testing.assert_close(result["parts"]["unknown"], 0.7 * 3 * unknown, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result["loss"], sum(result["parts"].values()))


def test_in_the_first_session_there_is_nothing_old(tiny):
    method, context, batch = learning(tiny, "kbk", index=0)
    result = method.loss(batch)
    plain = sum(term(x, y) for x, y in zip(result["logits"].flatten(), batch.labels.flatten(), strict=True))
    torch.testing.assert_close(result["parts"]["classification"], 3 * plain)
    assert result["parts"].keys() == {"classification", "unknown"} and method.old_head is None


def test_each_part_is_an_option(tiny):
    classic = {"thresholds": "none", "balance": False, "unknown_weight": 0.0}
    method, context, batch = learning(tiny, "kbk", index=1, **classic)
    shaken(method, CONFIDENCE[:2])
    result = method.loss(batch)
    plain = sum(term(x, y) for x, y in zip(result["logits"].flatten(), batch.labels.flatten(), strict=True))
    torch.testing.assert_close(result["loss"], 3 * plain)
    assert result["parts"].keys() == {"classification"}
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())  # processes would wait for others
    for change in ({"thresholds": "class"}, {"balance": True}, {"unknown_weight": 1.0}):
        other, _, _ = learning(tiny, "kbk", index=1, **{**classic, **change})
        shaken(other, [[0, 1.4, 2], [0, 1.4, 2]])  # everything is restored
        assert not torch.isclose(other.loss(batch)["loss"], result["loss"])


def test_limits_are_of_each_class_or_shared_and_none_where_nothing_was_seen(tiny):
    for kind, least, highest in (
        ("class", [0.4, 0.6, math.inf, 0.99], [0.7, 0.675, 0.0, 0.01]), ("shared", [3.98 / 6] * 4, [2.77 / 6] * 4)
    ):  # fmt: skip
        method, *_ = learning(tiny, "kbk", index=2, thresholds=kind)
        shaken(method, [*CONFIDENCE[:2], [0, 0, 0], CONFIDENCE[3]])
        mean, high = method.limits()
        assert mean.tolist() == pytest.approx(least) and high.tolist() == pytest.approx(highest)
    assert entropy(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, math.log(2), 0])


def test_what_is_unknown_is_restored_or_counts_nowhere(tiny):
    method, context, batch = learning(tiny, "kbk", index=1)
    shaken(method, CONFIDENCE[:2])
    labels = torch.tensor([[-1.0, -1, -1, 1], [0, 0, 1, -1], [1, 1, 0, 0]])
    sure, unsure = torch.logit(torch.tensor([0.95, 0.95])), torch.logit(torch.tensor([0.3, 0.3]))
    assert method.restore(labels, torch.stack([sure, unsure, unsure])).tolist() == [
        [1, 1, -1, 1], [0, 0, 1, -1], [1, 1, 0, 0]
    ]  # fmt: skip
    method.restore = lambda labels, old: labels
    result = method.loss(Batch(batch.images, labels, batch.rows, 1.0))
    result["logits"].retain_grad()
    result["parts"]["classification"].backward()
    assert (result["logits"].grad[labels < 0] == 0).all() and (result["logits"].grad != 0).any()
    embedded = torch.randn(3, 4, 32, requires_grad=True)
    method.unknown_loss(embedded, labels).backward()
    assert (embedded.grad[labels < 0] == 0).all() and (embedded.grad[1] != 0).any(dim=-1).tolist() == [1, 1, 1, 0]


def test_confidence_is_measured_on_the_images_that_show_the_class(tiny):
    method, context, batch = learning(tiny, "kbk", index=1)
    shaken(method, CONFIDENCE[:2])
    known = torch.tensor([[0.0, 1, 1, -1], [1, 0, 1, 0], [0, 1, -1, 1]])
    context.batches = lambda: [Batch(batch.images[i], known[i], np.arange(3)[i]) for i in (slice(0, 2), slice(2, 3))]
    method.end_session(context)
    p = torch.sigmoid(method.head(context.model(batch.images).features)).detach().double()
    h = entropy(p)
    assert method.confidence[:2].tolist() == CONFIDENCE[:2]
    wanted = [[p[0, 2] + p[1, 2], h[0, 2] + h[1, 2], 2], [p[2, 3], h[2, 3], 1]]
    torch.testing.assert_close(method.confidence[2:], torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_queries_and_rows_freeze_with_their_session(tiny):
    method, *_ = learning(tiny, "kbk", index=2)
    named = {name: p.requires_grad for name, p in method.head.named_parameters()}
    growing = {name: on for name, on in named.items() if name.split(".")[0] in ("queries", "rows", "biases")}
    assert growing == {f"{kind}.{t}": t == 2 for t in range(3) for kind in ("queries", "rows", "biases")}
    assert all(on for name, on in named.items() if name not in growing)


def test_heads_must_divide_the_width(tiny):
    with pytest.raises(ConfigError, match=r"model\.embed_dim must be a multiple of kbk\.heads \(5\)"):
        learning(tiny, "kbk", heads=5)
