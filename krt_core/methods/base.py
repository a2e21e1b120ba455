"""The contract between a method and the session loop.

A method owns what happens to model and loss, never the loop: it gets each session's context, turns a batch into a loss,
and hands over the small state that must survive a restart. Resume, mixed precision, replay, evaluation, plots and
notebooks come from the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import Experiment
from ..data.pipeline import Batch
from ..losses import asymmetric_loss
from ..model import Network, Output
from ..protocol import Protocol, Session


@dataclass
class Context:
    """What a method may know and use in one session."""

    experiment: Experiment
    protocol: Protocol
    session: Session
    model: Network  # already grown for this session
    old_model: Network | None  # frozen copy from the end of the last session, in eval mode; None in the first
    forward: Callable[..., Output]  # the model as training must call it
    old_scores: Callable[[], np.ndarray]  # probabilities (m, C_old) of the old model on the session's training images
    class_frequency: np.ndarray  # (C seen before,) share of the images seen so far that were shown with the class
    log: Callable[[str], None]

    def ask_old(self, images: Tensor, with_stages: bool = False) -> Output:
        """What the old model says to images (B, 3, S, S): plain numbers without gradient."""
        with torch.inference_mode():
            output = self.old_model(images, with_stages=with_stages)
        return output.clone()  # out of inference mode, so that losses may keep it for their gradient


class Method:
    """Plain training on what the session shows: sum-reduced asymmetric loss. Base of every other method."""

    @dataclass(frozen=True)
    class Options:
        head: Literal["ica", "linear"] = "linear"  # incremental cross-attention, or pooling and a growing linear layer

    sees: ClassVar[Literal["session", "all"]] = "session"  # "all": every label of every class, in one training
    replays: ClassVar[bool] = True  # are exemplars mixed into later sessions, when replay is configured?
    asks_old_scores: bool = False  # does start_session use context.old_scores?

    def __init__(self, options: Any, experiment: Experiment):
        self.options = options
        # The published loss is summed over the 64 images of one GPU and averaged over GPUs. The same balance against
        # mean-reduced terms at any batch size and number of processes: sum over the global batch · group / batch.
        self.scale = experiment.train.group / experiment.train.batch_size
        self.context: Context = None  # set by start_session

    def start_session(self, context: Context) -> None:
        """Called after the model has grown, before the first step; also when a session is resumed."""
        self.context = context

    def targets(self, batch: Batch) -> Tensor:
        """(B, C) what the classifier is to learn from this batch."""
        return batch.labels

    def loss(self, batch: Batch) -> dict[str, Any]:
        """``loss`` (scalar to minimise), ``parts`` (name → scalar, for the log) and ``logits`` (B, C).

        Where several processes share a batch, each returns its part and the parts add up: sums over images need no
        care, means over images are multiplied by ``batch.share``.
        """
        output = self.context.forward(batch.images)
        classification = self.scale * asymmetric_loss(output.logits, self.targets(batch))
        return {"loss": classification, "parts": {"classification": classification}, "logits": output.logits}

    def end_session(self, context: Context) -> None:
        """Called after the last epoch of a session, before exemplars are chosen."""

    def state(self) -> dict:
        """What must survive a restart, as plain JSON values."""
        return {}

    def load_state(self, state: dict) -> None:
        """Take back what `state` gave."""
