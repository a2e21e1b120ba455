"""The contract between a method and the session loop.

A method owns what happens to model and loss, never the loop: it gets each session's context, turns a batch into a loss,
and hands over the state that must survive a restart. Resume, several processes, mixed precision, replay, evaluation,
plots and notebooks come from the loop. docs/your_method.md builds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Experiment
from ..data.pipeline import Batch
from ..errors import ConfigError
from ..losses import asymmetric_loss
from ..machine.distributed import World
from ..memory import memory_of
from ..model import Network, Output
from ..options import Options
from ..protocol import Protocol, Sees, Session

# Each (C_old,), of the logits of old classes over some images: means now and before the session, the variance of those
# now, and the covariance of the two.
Moments = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _no_images(*_: Any) -> Any:
    raise RuntimeError("This context has no images.")


def is_oracle(kind: type[Method], options: Any) -> bool:
    """Does a method of this class, with these options, see the true labels of old classes? options: a dataclass, or the
    dict of them that a run folder has."""
    get = options.get if isinstance(options, dict) else lambda key: getattr(options, key, False)
    return bool(kind.oracle and get(kind.oracle))


@dataclass
class Context:
    """What a method may know and use in one session."""

    experiment: Experiment
    protocol: Protocol
    session: Session
    model: Network  # already grown for this session
    old_model: Network | None  # frozen copy from the end of the last session, in eval mode; None in the first
    forward: Callable[..., Output]  # the model as training must call it; set for good after start_session
    old_scores: Callable[[], np.ndarray]  # probabilities (m, C_old) of the old model on the session's training images
    class_frequency: np.ndarray  # (C seen before,) share of the images seen so far that were shown with the class
    log: Callable[[str], None]
    batches: Callable[..., Iterator[Batch]] = _no_images  # the session's images once, as in a test, with its labels:
    # this process's share of each batch; of places (m,) in the session's view, where they are given, those only
    embeddings: Callable[[], Iterator[tuple[Tensor, Batch]]] = _no_images  # the same with what a linear head reads of
    # the images, (B, width) float32
    world: World = field(default_factory=World)  # the processes that share the session, to add up what each has found
    own: int = 0  # the session's own images; at places from there on (`Batch.places`) its view has replayed exemplars
    ids: Sequence[str] = ()  # of the training images, by row (`Batch.rows`)
    logits: Callable[[np.ndarray], np.ndarray] = _no_images  # (m, C) of the model as it is at the time, for rows (m,)
    # of the training set, as in a test; the same in all processes

    @property
    def growth(self) -> float:
        """C / increment, by whose root the distillation of KRT and POD is weighed."""
        own = self.session.stop - self.session.start
        return self.session.stop / (self.protocol.increment or own or self.session.stop)

    def annotated(self, batch: Batch) -> Tensor:
        """(B, C) bool: labels that somebody has looked for, of images that came with data of their own (`krt extend`).
        What is absent there is absent, and not only hidden from the session."""
        place, arrived = self.protocol.arrival(self.session.index), self.protocol.arrived
        if not place or arrived is None:
            return torch.zeros_like(batch.labels, dtype=torch.bool)
        own = torch.from_numpy(arrived[batch.rows] == place).to(batch.labels.device)
        return own[:, None] & (batch.labels >= 0)

    def ask_old(self, images: Tensor, with_stages: bool = False) -> Output:
        """What the old model says to images (B, 3, S, S): plain numbers without gradient."""
        assert self.old_model is not None, "the first session has no old model"  # a slip of a method's own  # nosec B101
        with torch.inference_mode():
            output = self.old_model(images, with_stages=with_stages)
        return output.clone()  # out of inference mode, so that losses may keep it for their gradient


def check_exemplars(context: Context) -> None:
    """ConfigError where nothing is stored though the method learns from exemplars."""
    experiment, classes = context.experiment, len(context.protocol.classes)
    method, replay = experiment.method, experiment.replay
    if not (replay.per_class or replay.budget):
        raise ConfigError(
            f"method {method} learns from exemplars, and none are stored: set replay.per_class, or replay.budget."
        )
    if not memory_of(replay).keeps(classes):
        raise ConfigError(
            f"method {method} learns from exemplars, and replay.budget={replay.budget} leaves none for each of "
            f"{classes} classes: set replay.budget={classes} or more."
        )


class Method:
    """Plain training on what the session shows: sum-reduced asymmetric loss. Base of every other method."""

    Options: ClassVar[type] = Options  # a dataclass; what it holds can be set in the preset's section of the method
    paper: ClassVar[str] = ""  # as "Li & Hoiem, ECCV 2016", for `krt methods`
    stores: ClassVar[str] = "nothing"  # what stays behind of a session beside the network and exemplars, in words
    sees: ClassVar[Sees] = "session"  # "seen": all images and labels shown so far, each session trained anew from the
    # first weights; "all": every label of every class, in one training
    replays: ClassVar[bool] = True  # are exemplars mixed into later sessions, when replay is configured?
    only_new: ClassVar[bool] = False  # does its loss look at labels of a session's own classes alone?
    needs_exemplars: ClassVar[bool] = False  # is there nothing to it without them?
    asks_old_scores: bool = False  # does start_session use context.old_scores?
    goes_on_from: ClassVar[tuple[str, ...]] = ()  # keys of `state` without which it cannot learn a further session
    needs_maps: ClassVar[bool | None] = None  # does it read the maps in an output's features, not just their mean?
    # Where it does not say so, one from outside the package is given whole maps
    knows_unknown: ClassVar[bool] = False  # can it learn where labels are unknown, -1? Each class says so for itself:
    # what it inherits does not count
    whole_batch: bool = False  # does its loss weigh images by what else is in their batch, so that pieces of it
    # (`Batch.pieces`) would give another one?
    hidden: int = 0  # what labels of old classes read in its batches where the session does not show them: 0 or -1
    oracle: ClassVar[str] = ""  # its option that, where true, has the loop show it the true labels of old classes, too:
    # a bound for what restored labels can bring, which every table marks, and no method

    def __init__(self, options: Any, experiment: Experiment):
        self.options = options
        # The published loss is summed over the 64 images of one GPU and averaged over GPUs. The same balance against
        # mean-reduced terms at any batch size and number of processes: sum over the global batch · group / batch.
        self.scale = experiment.train.group / experiment.train.batch_size
        self.context: Context = None  # type: ignore[assignment]  # set by start_session

    @property
    def is_oracle(self) -> bool:
        """Is it to see what a method may not? The loop asks here, and nowhere else."""
        return is_oracle(type(self), self.options)

    # ---- learning ----

    def start_session(self, context: Context) -> None:
        """Called after the model has grown, before the first step; also when a session is resumed. What is frozen here
        stays still."""
        if self.needs_exemplars:
            check_exemplars(context)
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

    def parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the method's own that the optimiser is to learn beside the model's; the same, in the same
        order, whenever a session is resumed. They belong into `state`."""
        return ()

    def fit(self, context: Context) -> None:
        """Learn the session without gradients, for instance in closed form from ``context.batches()``. A method that
        has this is not trained by epochs."""
        raise NotImplementedError

    def end_session(self, context: Context) -> None:
        """Called after the session is learned, before exemplars are chosen."""

    def remember(self, exemplars: np.ndarray) -> None:
        """Called where exemplars were chosen, after `end_session`: rows (m,) of the training set of all that are now
        stored. What is kept of them belongs into `state`."""

    def renumber(self, rows: dict[int, int]) -> None:
        """Called after `load_state` where the training set has other rows than it had: old row → new one, of all
        exemplars."""

    # ---- answering ----

    def scores(self, model: Network, images: Tensor) -> Tensor:
        """Scores (B, C) of images (B, 3, S, S) in [0, 1], columns in learning order; higher means rather there.
        ``model`` is a copy for looking only. The thresholds of F1 and pseudo labels take them for probabilities."""
        return torch.sigmoid(model(images).logits)

    def before(self) -> Method:
        """It as it was at the end of the last session, for `scores` of the old model; only after start_session."""
        return self

    def drift(self) -> Moments | None:
        """How the logits of old classes were moved by the session, over all images seen so far; None: not known, and it
        is measured on images held out of the session. Asked after `end_session`."""
        return None

    def without(self, rows: np.ndarray) -> AbstractContextManager[None] | None:
        """Inside, the model is what it would be had it not learned from some of the session's images, rows (m,) of the
        training set, so that these can be scored as new ones. None: this cannot be had. Asked after `end_session`, in
        all processes at once."""
        return None

    # ---- what must survive a restart ----

    def state(self) -> dict[str, Any]:
        """Plain JSON values and tensors, in dicts and lists."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave, or the main process's: before start_session when resumed, and again after it."""

    def reopen(self, model: Network, state: dict[str, Any]) -> None:
        """Be as it was after a session, to answer outside of a training: by `scores` alone, for ``model`` as it was
        then. ``state`` is what `state` gave. One whose modules grow in `start_session` lets them grow here, too."""
        if state:
            self.load_state(state)

    @classmethod
    def has_own(cls, name: str) -> bool:
        """Does the method define ``fit`` or ``scores`` itself?"""
        return getattr(cls, name) is not getattr(Method, name)
