"""Online EWC: elastic weight consolidation, with one running importance of every weight.

Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, PNAS 2017; online: Schwarz et al.,
*Progress & Compress*, ICML 2018, eq. 8 and 9. With θ* the weights at the end of the last session the loss is

    Σ ASL(z, y) + λ/2 Σ_i F_i (θ_i − θ*_i)²,      F ← γ F + (1/m) Σ_images (∂ℓ/∂θ)²  at the end of each session,

ℓ the asymmetric loss of one image. The diagonal Fisher F is taken image by image: the square of a batch's gradient
would mix the images' gradients, which cancel where the model fits, and grow with the batch. λ is that of a loss that is
a mean over images; as the loop's is a sum over `train.group` of them, the penalty is multiplied by that number.

Weights that learn no more (a backbone that stands still, old ICA heads and tokens) are left out, and the heads of new
classes have no penalty: nothing was learned in them yet.

Deviations: the Fisher is the empirical one, with the labels shown instead of labels drawn from the model, of the
asymmetric loss instead of a likelihood, and of at most ``ewc.images`` of the session's own images, spread evenly, with
test transforms in eval mode and full precision (an image alone has no batch statistics).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Experiment
from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..machine.precision import full_precision
from ..options import EWCOptions
from .base import Context
from .finetune import Finetune


class EWC(Finetune):
    Options = EWCOptions
    paper = "Schwarz et al., ICML 2018"
    stores = "importance and old value of every weight that learns"
    knows_unknown = True

    def __init__(self, options: EWCOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.group = experiment.train.group
        self.moves = experiment.model.freeze == "none"  # does the backbone learn after the first session?
        self.fisher: dict[str, Tensor] = {}  # F and θ* by the names of parameters
        self.anchor: dict[str, Tensor] = {}

    def start_session(self, context: Context) -> None:
        super().start_session(context)
        learned = learning(context.model)  # what no longer learns is left out from here on
        self.fisher = {name: F.to(learned[name].device) for name, F in self.fisher.items() if name in learned}
        self.anchor = {name: self.anchor[name].to(learned[name].device) for name in self.fisher}

    def loss(self, batch: Batch) -> dict[str, Any]:
        result = super().loss(batch)
        if self.fisher:
            penalty = self.options.weight / 2 * self.group * batch.share * self.penalty()
            result["parts"]["penalty"] = penalty
            result["loss"] = result["loss"] + penalty
        return result

    def penalty(self) -> Tensor:
        """Σ F (θ − θ*)², each weight's summed in one order, whether or not F and θ* lie in memory as θ does: read from
        a file they do not."""
        learned = learning(self.context.model)
        terms = [F * (full_precision(learned[name]) - self.anchor[name]).square() for name, F in self.fisher.items()]
        return torch.stack([term.contiguous().sum() for term in terms]).sum()

    def end_session(self, context: Context) -> None:
        fresh, before, decay = self._fisher(context), self.fisher, self.options.decay
        self.fisher = {name: F + decay * before[name] if name in before else F for name, F in fresh.items()}
        learned = learning(context.model)
        self.anchor = {name: learned[name].detach().clone() for name in fresh}

    def _fisher(self, context: Context) -> dict[str, Tensor]:
        """Mean over images of the squared gradient of each one's loss, by parameter."""
        model, world = context.model.eval(), context.world
        learned = {n: p for n, p in learning(model).items() if self.moves or not n.startswith("backbone.")}
        sums = {name: torch.zeros_like(parameter) for name, parameter in learned.items()}
        count = min(self.options.images or context.own, context.own)
        for batch in context.batches(np.arange(count) * context.own // count):
            if batch.weight != 1 and not world.main:
                continue  # what could not be shared counts once
            images = batch.images.to(next(iter(learned.values())).dtype)
            for image, labels in zip(images.split(1), batch.labels.split(1), strict=True):
                loss = asymmetric_loss(model(image).logits, labels)
                gradients = torch.autograd.grad(loss, [*learned.values()], allow_unused=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.square()
        moved = {name: total.cpu() for name, total in sums.items()}
        world.add_up(moved.values())
        return {name: total.to(sums[name].device) / count for name, total in moved.items()}

    def state(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchor": self.anchor}

    def load_state(self, state: dict[str, Any]) -> None:
        self.fisher, self.anchor = dict(state.get("fisher", {})), dict(state.get("anchor", {}))


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
