"""MULTI-LANE against its equations, written out lane by lane."""

import math

import torch
from test_equations import learning
from test_kbk import block, norm

from krt_core.data.pipeline import Batch


def answer(lane, image, heads=4):
    """Logits of one image's map (channels, h, w)."""
    patches = image.flatten(1).T  # (N, channels)
    summed = [torch.softmax(patches @ s / math.sqrt(len(s)), dim=0) @ patches for s in lane.selectors]
    tokens = [lane.token[0, 0], *(lane.projection.weight @ s + lane.projection.bias for s in summed)]
    read = norm(block(torch.stack(tokens), lane.block, heads)[0], lane.norm)
    return lane.head.weight @ (read / read.norm()) + lane.head.bias


def test_the_loss_is_cross_entropy_of_the_session_s_own_labels(tiny):
    method, context, batch = learning(tiny, "multilane", index=2, selectors=3)
    torch.manual_seed(1)
    for parameter in method.head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    labels = batch.labels.clone()
    labels[:, :4] = torch.tensor([-1.0, 1, 0, 1])  # of old classes it learns nothing, whatever is shown
    labels[2, 5] = -1
    result = method.loss(Batch(batch.images, labels, batch.rows, 0.75))
    features = context.model(batch.images).features
    logits = torch.stack([torch.cat([answer(lane, image) for lane in method.head.lanes]) for image in features])
    torch.testing.assert_close(result["logits"], logits, rtol=1e-5, atol=1e-5)
    loss = 0.0
    for i in range(3):
        for c in (4, 5):
            if labels[i, c] >= 0:
                p = torch.sigmoid(logits[i, c])
                loss = loss - (p if labels[i, c] else 1 - p).log()
    torch.testing.assert_close(result["loss"], 3 * loss, rtol=1e-5, atol=1e-5)
    assert result["parts"].keys() == {"classification"} and method.hidden == -1
    result["loss"].backward()
    for t, lane in enumerate(method.head.lanes):
        for parameter in lane.parameters():
            assert parameter.requires_grad == (t == 2) and (parameter.grad is not None) == (t == 2)
    assert all(p.grad is None for p in context.model.parameters()) and context.model.still


def test_a_lane_starts_as_a_copy_of_the_last_but_for_its_head(tiny):
    method, *_ = learning(tiny, "multilane", index=1)
    first, second = (dict(lane.named_parameters()) for lane in method.head.lanes)
    assert all(torch.equal(first[name], second[name]) == (not name.startswith("head.weight")) for name in first
               if name != "head.bias" )  # fmt: skip
    assert not torch.equal(first["head.bias"], second["head.bias"])
    assert not {id(p) for p in first.values()} & {id(p) for p in second.values()}


def test_the_backbone_learns_in_the_first_session_only_where_it_is_asked_to(tiny):
    for adapt, index, learns in ((False, 0, False), (True, 0, True), (True, 1, False)):
        method, context, batch = learning(tiny, "multilane", index=index, adapt=adapt)
        said = method.loss(batch)["loss"]
        said.backward()
        got = [p.grad for p in context.model.backbone.parameters() if p.grad is not None]
        assert bool(got) == learns and context.model.still != learns
