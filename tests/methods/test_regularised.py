"""LwF and online EWC: what they minimise, and what EWC keeps of the weights."""

import math

import numpy as np
import pytest
import torch
from interrupted import begun
from test_equations import GROUP, SHARE, asymmetric, binary, learning
from test_rehearsal import same

from krt_core.data.pipeline import Batch
from krt_core.errors import ConfigError
from krt_core.session import train


def test_lwf_distils_what_the_old_model_says_at_a_temperature(tiny):
    method, context, batch = learning(tiny, "lwf", index=2, weight=7.0, temperature=1.5)
    assert method.hidden == -1
    batch.labels[:2, :4] = -1  # the third is an exemplar that shows them
    result = method.loss(batch)
    new, old = context.model(batch.images).logits, context.old_model(batch.images).logits
    shown = asymmetric(new[:2, 4:], batch.labels[:2, 4:]) + asymmetric(new[2], batch.labels[2])
    parts = {
        "classification": 3 * shown,
        "distillation": 7 * 3 * binary(new[:, :4] / 1.5, torch.sigmoid(old / 1.5)),
    }
    torch.testing.assert_close(result["parts"], parts)
    torch.testing.assert_close(result["loss"], sum(parts.values()))
    result["loss"].backward()
    assert context.model.heads[0].weight.grad.abs().sum() > 0


def test_a_loss_of_its_own_is_bounded_and_named(tiny):
    for method, key, value, words in [
        ("lwf", "temperature", 0, "more than 0"), ("ewc", "decay", 1.5, "at most 1"), ("ewc", "images", -1, "at least"),
        ("derpp", "alpha", -1, "at least 0"), ("icarl", "weight", -1, "at least 0"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"{method}.{key} must be {words}"):
            tiny(method=method, **{f"{method}__{key}": value})


def likelihood(logits, labels):
    """The asymmetric loss with its gradient: none through the focal weight."""
    p = torch.sigmoid(logits)
    absent = (p - 0.05).clamp(min=0)
    return torch.where(labels > 0, -p.log(), -(absent.detach() ** 4) * (1 - absent).log()).sum()


def squared_gradients(model, images, labels):
    """Mean over images of the squared gradient of the asymmetric loss, one backward pass each."""
    sums = {}
    for image, line in zip(images, labels, strict=True):
        model.zero_grad()
        likelihood(model(image[None]).logits, line[None]).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad**2 / len(images)
    model.zero_grad()
    return sums


@pytest.mark.parametrize("head", ["linear", "ica"])
def test_ewc_holds_weights_by_the_importance_of_all_sessions(tiny, head):
    method, context, batch = learning(tiny, "ewc", index=0, head=head, weight=3.0, decay=0.6, images=3)
    model, asked = context.model, []

    def shown(places):
        asked.append(places.tolist())
        yield from (Batch(images[part], labels[part], part) for part in np.split(places, [2]))

    images, labels = torch.rand(5, 3, 32, 32), torch.eye(2)[[0, 1, 0, 1, 1]]
    context.batches, context.own = shown, 5
    method.end_session(context)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = squared_gradients(model, images[[0, 1, 3]], labels[[0, 1, 3]])
    assert asked == [[0, 1, 3]] and not model.training
    torch.testing.assert_close(method.state(), {"fisher": first, "anchor": {name: before[name] for name in first}})

    model.add_session(2)
    context.session = context.protocol.sessions[1]
    method.start_session(context)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch.labels = torch.tensor([[-1.0, -1, 0, 1], [-1, -1, 1, 0], [0, 1, 1, 0]])
    result, logits = method.loss(batch), model(batch.images).logits
    moved = {name: p for name, p in model.named_parameters() if p.requires_grad and name in first}
    assert not any(name.startswith("heads.1") for name in moved) and (head == "linear") == ("heads.0.weight" in moved)
    apart = sum((first[name] * (p - before[name]) ** 2).sum() for name, p in moved.items())
    shown_loss = asymmetric(logits[:2, 2:], batch.labels[:2, 2:]) + asymmetric(logits[2], batch.labels[2])
    torch.testing.assert_close(result["parts"]["classification"], 3 * shown_loss)
    torch.testing.assert_close(result["parts"]["penalty"], 3 / 2 * GROUP * SHARE * apart)
    torch.testing.assert_close(result["loss"], sum(result["parts"].values()))

    labels = torch.tensor([[-1.0, -1, 0, 1]] * 5)
    model.zero_grad()
    method.end_session(context)
    for name, total in method.state()["fisher"].items():
        torch.testing.assert_close(method.state()["anchor"][name], dict(model.named_parameters())[name].detach())
        fresh = own_gradients(model, images[[0, 1, 3]], name)
        torch.testing.assert_close(total, fresh + (0.6 * first[name] if name in moved else 0))


def test_ewc_says_the_same_penalty_however_its_tensors_lie_in_memory(tiny):
    """As they are read from a file, or as a training has made them."""
    method, context, _ = learning(tiny, "ewc", index=0)
    context.model.to(memory_format=torch.channels_last)
    method.anchor = {n: torch.zeros_like(p) for n, p in context.model.named_parameters() if p.dim() == 4}
    for seed in range(10):
        said = []
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.manual_seed(seed)
            method.fisher = {n: torch.rand(p.shape).contiguous(memory_format=layout) for n, p in method.anchor.items()}
            said.append(method.penalty().item())
        assert said[0] == said[1] > 0


def own_gradients(model, images, name):
    """Mean squared gradient of one parameter where only the last two classes are known, 0 and 1."""
    parameter = dict(model.named_parameters())[name]
    total = torch.zeros_like(parameter)
    for image in images:
        loss = likelihood(model(image[None]).logits[:, 2:], torch.tensor([[0.0, 1.0]]))
        gradient = torch.autograd.grad(loss, parameter, allow_unused=True)[0]
        total += 0 if gradient is None else gradient**2 / len(images)
    return total


def test_of_all_images_where_none_are_left_out(tiny):
    method, context, _ = learning(tiny, "ewc", index=0, images=0)
    asked = []
    context.own, context.batches = 4, lambda places: asked.append(places.tolist()) or iter(())
    method.end_session(context)
    method.options = learning(tiny, "ewc", index=0)[0].options
    method.end_session(context)
    assert asked == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("freeze", ["none", "first", "all"])
def test_ewc_trains_and_what_stands_still_has_no_importance(tiny, tmp_path, freeze):
    changes = dict(method="ewc", model__freeze=freeze, train__epochs=2, train__evaluate_every=0)
    run = train(tiny(**changes), tmp_path / "whole", show="none", device="cpu")
    again = train(tiny(**changes), begun(tiny(**changes), tmp_path / "parts", at=(1, 0)), show="none", device="cpu")
    same(run, again)
    state, model = run.method_state(1), run.model_state(1)
    for kept in (run.method_state(0), state):  # after the first session too: there it would serve nobody
        assert any(name.startswith("backbone.") for name in kept["fisher"]) == (freeze == "none")
    assert {"heads.0.weight", "heads.1.weight"} <= state["fisher"].keys() == state["anchor"].keys()
    assert all(torch.equal(state["anchor"][name], model[name]) for name in state["anchor"])
    assert run.session_state(1)["method_bytes"] == 2 * sum(tensor.nbytes for tensor in state["anchor"].values())
    penalties = [line.get("penalty") for line in run.epochs]
    assert penalties[:2] == [None, None] and all(p > 0 and math.isfinite(p) for p in penalties[2:])


def test_a_heavy_penalty_keeps_the_weights(tiny, tmp_path):
    moved = []
    for weight in (0.0, 1e6):
        changes = dict(method="ewc", ewc__weight=weight, train__epochs=2, train__evaluate_every=0)
        run = train(tiny(**changes), tmp_path / str(weight), show="none")
        first, last, F = run.model_state(0), run.model_state(1), run.method_state(0)["fisher"]
        moved.append(sum(float((F[name] * (last[name] - first[name]) ** 2).sum()) for name in F))
    assert moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize("replay", [0, 2])
def test_lwf_trains_and_goes_on(tiny, tmp_path, replay):
    changes = dict(method="lwf", replay__per_class=replay, train__epochs=2, train__evaluate_every=0)
    run = train(tiny(**changes), tmp_path / "whole", show="none", device="cpu")
    again = train(tiny(**changes), begun(tiny(**changes), tmp_path / "parts", at=(1, 0)), show="none", device="cpu")
    same(run, again)
    assert "distillation" in run.epochs[2] and "distillation" not in run.epochs[0]
