"""Cumulative ridge regression: a linear head in closed form on a backbone that stands still, no gradient, no exemplars.

Each session adds its images' embeddings and labels to sums (`krt_core.methods.statistics`), in which those of all
sessions before still are, as negatives above all; a label that a session does not show counts as absent. Nothing is
forgotten, and the order of the sessions does not matter: it is one ridge regression on everything ever shown. The idea
is that of analytic class-incremental learning (Zhuang et al., *ACIL*, NeurIPS 2022; McDonnell et al., *RanPAC*, NeurIPS
2023; for several labels Zhang et al., *L3A*, ICML 2025), here with an intercept and a penalty chosen by leaving each
image out in turn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Experiment
from ..options import CensusOptions, L3AOptions, RidgeOptions
from .base import Context, Method, Moments
from .statistics import Statistics

PENALTIES = [10 ** (power / 4) for power in range(-16, 9)]  # λ tried, as shares of the mean diagonal of G
FEW = 4096  # images of a session, of which the embeddings stay at hand until the next one
SLOPE = 8.0  # a regression value v becomes the logit SLOPE (v − 1/2): 0 and 1 become 0.02 and 0.98


class Learned(NamedTuple):
    """What was added to the sums: embeddings (m, d), labels (m, C), known (m, C), weights (m,) of rows (m,)."""

    embedded: Tensor
    labels: Tensor
    known: Tensor
    weights: Tensor
    rows: np.ndarray


def collected(context: Context) -> tuple[Tensor, Tensor, np.ndarray]:
    """Embeddings (m, d) float64, labels (m, C) and rows (m,) of this process's images of the session."""
    embedded, labels, rows = [], [], []
    for numbers, batch in context.embeddings():
        if batch.weight == 1 or context.world.main:  # what could not be shared counts once
            embedded.append(numbers.double().cpu())
            labels.append(batch.labels.double().cpu())
            rows.append(batch.rows)
    if not embedded:
        none = torch.zeros(0, dtype=torch.float64)
        return none.new_zeros(0, context.model.width), none.new_zeros(0, context.session.stop), np.zeros(0, np.int64)
    return torch.cat(embedded), torch.cat(labels), np.concatenate(rows)


def rare_weights(context: Context, labels: Tensor) -> Tensor:
    """(m,) weights of images with labels (m, k) in [0, 1]: the mean of v over the classes an image shows, v_k ∝ n_k^−½
    with mean 1 for a class that n_k images of the session show. Zhang et al., *L3A*, ICML 2025."""
    counts = labels.sum(dim=0)
    context.world.add_up([counts])
    rare = counts.clamp(min=1).rsqrt()
    rare = rare / rare[counts > 0].mean()
    return (labels @ rare) / labels.sum(dim=1).clamp(min=1)


def set_head(head: nn.Linear, W: Tensor, b: Tensor) -> None:
    """Logits from regression values φW + b of labels 0 and 1; W (d, k), b (k,)."""
    head.weight.copy_(SLOPE * W.T)
    head.bias.copy_(SLOPE * (b - 0.5))


def set_heads(heads: Iterable[nn.Module], W: Tensor, b: Tensor) -> None:
    """All of them, one after the other; W (d, C) and b (C,)."""
    start = 0
    for head in heads:
        stop = start + head.out_features
        set_head(head, W[:, start:stop], b[start:stop])
        start = stop


def read_heads(heads: Iterable[nn.Module]) -> tuple[Tensor, Tensor] | None:
    """W (d, C) and b (C,), float64, for logits φW + b; None without heads."""
    read = [(head.weight.detach().double().cpu(), head.bias.detach().double().cpu()) for head in heads]
    return (torch.cat([w for w, _ in read]).T, torch.cat([b for _, b in read])) if read else None


class Ridge(Method):
    Options: ClassVar[type] = RidgeOptions
    paper = "Zhuang et al., NeurIPS 2022; McDonnell et al., NeurIPS 2023"
    stores = "sums over all images: Σφφᵀ, Σφ, Σφyᵀ, Σy"
    goes_on_from = ("sums",)
    knows_unknown = True

    def __init__(self, options: RidgeOptions | L3AOptions | CensusOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.statistics: Statistics | None = None
        self.curve = torch.zeros(len(PENALTIES), dtype=torch.float64)  # errors of classes so far, by penalty
        self.penalty = options.penalty
        self.hidden = 0 if options.old == "zero" else -1
        self.share = " of the mean diagonal"  # what λ is counted in, in words
        self.old: tuple[Tensor, Tensor] | None = None  # heads of the old classes before the session
        self.learned: Learned | None = None  # this process's images of the session, where they are few

    def fit(self, context: Context) -> None:
        """Add the session's images to the sums, choose the penalty, and set the head's weights."""
        model, session = context.model, context.session
        embedded, labels, rows = collected(context)
        if self.statistics is None:
            self.statistics = Statistics(model.width)
        sums = self.statistics
        labels, known = self._labels(context, embedded, labels, sums)
        sums.widen(session.stop - session.start, self.options.old != "unknown")
        weights = self._weights(context, labels)
        sums.part(torch.from_numpy(context.world.gather(known.numpy())))
        added = sums.like_empty()
        added.add(embedded, labels, known, weights, self._repeated(context, rows))
        context.world.add_up(added.tensors)
        sums.merge(added)
        self.learned = Learned(embedded, labels, known, weights, rows) if context.own <= FEW else None
        if not self.options.penalty:
            self._choose(context, embedded, labels, known, weights)
        self._set_heads(context)
        size = sum(tensor.nbytes for tensor in sums.tensors)
        context.log(f"{type(self).__name__}: λ = {self.penalty:.3g}{self.share}; its sums take {size / 1e6:.1f} MB")

    def solution(self, sums: Statistics) -> tuple[Tensor, Tensor]:
        """W (d, C) and b (C,), for regression values φW + b."""
        return sums.solution(self.penalty)

    def _labels(self, context: Context, embedded: Tensor, labels: Tensor, sums: Statistics) -> tuple[Tensor, Tensor]:
        """Labels (m, C) in [0, 1] to regress on, and which are known (m, C)."""
        known, start = labels >= 0, context.session.start
        if start and (said := self._said(embedded, sums)) is not None:
            labels[:, :start] = torch.where(known[:, :start], labels[:, :start], said)
            known[:, :start] = True
        return labels.clamp(min=0), known

    def _said(self, embedded: Tensor, sums: Statistics) -> Tensor | None:
        """(m, C old) what labels that are not shown count as; None: as `hidden` says."""
        if self.options.old == "class_mean":
            return sums.frequency.expand(len(embedded), -1)
        if self.options.old == "soft":
            W, b = self.solution(sums)
            return (embedded @ W + b).clamp(0, 1)
        return None

    def _weights(self, context: Context, labels: Tensor) -> Tensor:
        """(m,) what each image counts for: ``rare``, the more, the rarer those of the session's classes are that it
        shows."""
        own = context.session.columns
        if self.options.weights == "equal" or own.start == own.stop:
            return labels.new_ones(len(labels))
        return rare_weights(context, labels[:, own])

    def _repeated(self, context: Context, rows: np.ndarray) -> Tensor:
        """(m,) bool: which images are not to be counted again, only their labels?"""
        return torch.zeros(len(rows), dtype=torch.bool)

    def _choose(self, context: Context, embedded: Tensor, labels: Tensor, known: Tensor, weights: Tensor) -> None:
        """The penalty with the least error, each image left out in turn, relative to each class's variance and added up
        over all classes so far: every class is judged once, in its own session."""
        assert self.statistics is not None  # nosec B101
        session = context.session
        shown = labels[:, session.columns].sum(dim=0)
        context.world.add_up([shown])
        told = can_be_left_out(context, shown)
        for columns in self.statistics.together(range(session.start, session.stop)):
            columns = [column for column in columns if told[column - session.start]]
            if not columns:
                continue
            rows = known[:, columns[0]]
            y, w = labels[rows][:, columns], weights[rows]
            errors = self.statistics.solve(columns).press(embedded[rows], y, w, PENALTIES)
            moments = torch.stack([w @ y, w @ y.square(), w.sum().expand(len(columns))])
            context.world.add_up([errors, moments])
            variance = moments[1] - moments[0].square() / moments[2]
            self.curve += (errors / variance.clamp(min=1e-12)).sum(dim=1)
        if self.curve.any():
            self.penalty = PENALTIES[int(self.curve.argmin())]
        else:
            self.penalty = self.penalty or 1.0

    def _set_heads(self, context: Context) -> None:
        assert self.statistics is not None  # nosec B101
        W, b = self.solution(self.statistics)
        self.old = self._old_heads(context)
        set_heads(context.model.heads, W, b)

    def without(self, rows: np.ndarray) -> AbstractContextManager[None] | None:
        return None if self.learned is None else self._without(rows)

    @contextmanager
    def _without(self, rows: np.ndarray) -> Iterator[None]:
        """The sums less those of these images, as if no group had counted them before either."""
        assert self.statistics is not None  # nosec B101
        assert self.learned is not None  # nosec B101
        taken, less = self.statistics.like_empty(), Statistics.from_state(self.statistics.state())
        mine = torch.from_numpy(np.isin(self.learned.rows, rows))
        taken.add(*(part[mine] for part in self.learned[:4]))
        self.context.world.add_up(taken.tensors)
        less.merge(taken, -1)
        heads = self.context.model.heads
        learned = copy.deepcopy(heads.state_dict())
        with torch.no_grad():
            set_heads(heads, *self.solution(less))
        try:
            yield
        finally:
            heads.load_state_dict(learned)

    @staticmethod
    def _old_heads(context: Context) -> tuple[Tensor, Tensor] | None:
        """`read_heads` of the classes before the session; one that brings no class has no head of its own."""
        heads, own = list(context.model.heads), context.session
        return read_heads(heads[:-1] if own.start < own.stop else heads)

    def drift(self) -> Moments | None:
        """From the sums: no image is needed."""
        if self.statistics is None or self.old is None:
            return None
        (W, b), now = self.old, self._old_heads(self.context)
        assert now is not None  # nosec B101
        moments = W.new_zeros(4, len(b))
        for columns in self.statistics.together(range(len(b))):
            solver = self.statistics.solve(columns)
            moments[:, columns] = solver.moments(now[0][:, columns], W[:, columns])
        moments[:2] += torch.stack([now[1], b])
        return tuple(moments.numpy())

    # ---- what must survive a restart ----

    def state(self) -> dict[str, Any]:
        sums = {} if self.statistics is None else {"sums": self.statistics.state()}
        return {"penalty": self.penalty, "curve": self.curve, **sums}

    def load_state(self, state: dict[str, Any]) -> None:
        self.penalty, self.curve = state.get("penalty", self.penalty), state.get("curve", self.curve)
        self.statistics = Statistics.from_state(state["sums"]) if "sums" in state else None


def can_be_left_out(context: Context, shown: Tensor) -> Tensor:
    """(k,) bool: which of the session's classes, shown by so many images (k,), have one to leave out and another to
    learn from? Names the others."""
    classes = context.protocol.classes[context.session.columns]
    single = [name for name, n in zip(classes, shown, strict=True) if n <= 1]
    if single:
        rest = "the other classes" if len(single) < len(classes) else "no class of this session"
        context.log(f"ridge: of {', '.join(single)} there is one image; the penalty is chosen by {rest}")
    return shown > 1


class JointRidge(Ridge):
    """All labels of all classes at once: what cumulative ridge regression is to be measured by."""

    paper = "none: the upper bound of ridge"
    sees = "all"
    replays = False
    knows_unknown = True
