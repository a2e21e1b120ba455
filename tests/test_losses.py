import numpy as np
import pytest
import torch

from krt_core.losses import asymmetric_loss, pod_spatial, token_distillation


def test_asymmetric_loss_is_the_formula():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), (torch.rand(5, 3) < 0.4).float()
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-x))
        pm = max(p - 0.05, 0)
        total += -np.log(p) if y else -(pm**4) * np.log(1 - pm)
    assert float(asymmetric_loss(logits, targets)) == pytest.approx(total, rel=1e-5)


def test_asymmetric_loss_worked_by_hand():
    even, yes, no = torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1)  # p = 1/2
    ln2 = pytest.approx(np.log(2))
    assert float(asymmetric_loss(even, yes)) == ln2
    assert float(asymmetric_loss(even, yes, gamma_pos=3)) * 8 == ln2
    assert float(asymmetric_loss(even, no, gamma_neg=2, clip=0)) * 4 == ln2
    assert float(asymmetric_loss(even, no, gamma_neg=1, clip=0.25)) == pytest.approx(-0.25 * np.log(0.75))
    assert float(asymmetric_loss(even - 3, no)) == 0  # p below the clip: no loss at all


def test_losses_stay_finite_in_half_precision_and_at_extremes():
    logits = torch.tensor([[60.0, -60.0]], dtype=torch.float16, requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_token_distillation_compares_concatenated_old_tokens_only():
    torch.manual_seed(0)
    old, new = torch.randn(4, 2, 8), torch.randn(4, 3, 8)
    a, b = old.flatten(1), new[:, :2].flatten(1)
    expected = (1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean()
    torch.testing.assert_close(token_distillation(old, new), expected)
    assert float(token_distillation(old, torch.cat([3 * old, new[:, 2:]], 1))) == pytest.approx(0, abs=1e-6)


def test_pod_needs_the_same_stages_of_both_models():
    stage = torch.ones(2, 3, 4, 4)
    assert float(pod_spatial([stage, stage], [stage, 2 * stage])) == pytest.approx(0, abs=1e-6)  # strength is free
    with pytest.raises(ValueError):
        pod_spatial([stage, stage], [stage])


def test_what_is_unknown_adds_nothing_to_the_asymmetric_loss():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3, requires_grad=True), (torch.rand(5, 3) < 0.4).float()
    known = torch.rand(5, 3) < 0.6
    asymmetric_loss(logits, targets.where(known, -1), gamma_pos=1).backward()
    alone = logits.detach()[known].requires_grad_(True)
    asymmetric_loss(alone, targets[known], gamma_pos=1).backward()
    assert torch.equal(logits.grad[known], alone.grad) and (logits.grad[~known] == 0).all()
    assert float(asymmetric_loss(logits.detach(), -torch.ones(5, 3))) == 0
