"""Learning in one session: optimiser, schedule, and one pass over the images."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import Train
from .data.pipeline import Batch, batches, small_work
from .data.pipeline import steps as steps_of
from .data.store import ImageStore
from .errors import ConfigError
from .machine.device import Runtime
from .machine.failures import memory_told
from .machine.finite import Watch
from .methods import Context, Method
from .model import Network
from .model.inference import for_inference
from .model.norm import takes_statistics
from .protocol import View


class Learner:
    """Optimises a model through the epochs of one session, on this process's share of every batch."""

    def __init__(self, model: nn.Module, method: Method, config: Train, first: bool, view: View, runtime: Runtime):
        self.model, self.method, self.config, self.view, self.runtime = model, method, config, view, runtime
        self.own = list(method.parameters())
        self.optimiser = make_optimiser(model, config.weight_decay, config.optimiser, config.layer_decay, self.own)
        steps = config.epochs * steps_of(len(view.rows), config.batch_size)
        peak = config.base_lr if first else config.lr
        self.schedule = make_schedule(self.optimiser, config.schedule, peak, steps, config.warmup)
        self._check_pieces()
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)

    def state(self) -> dict[str, Any]:
        """What must survive a restart beside the model: tensors and numbers."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])

    def epoch(
        self, store: ImageStore, seed: tuple[int, ...], on_step: Callable[[], None], max_steps: int | None = None
    ) -> dict[str, float]:
        """One pass; returns the mean of each part of the loss over steps (summed over processes), rate (of the layers
        that learn fastest), images and seconds. Everything random in it follows from ``seed``, which ends with session
        and epoch, so a repeated epoch is the same epoch.

        Steps whose loss overflowed float16, which change no weight, are left out of the means and counted as
        ``overflowed`` (by each process). Raises RunError, in all processes and with the ids of a batch's images, where
        the loss is not finite otherwise, or in every step; and where there is too little memory.
        """
        with small_work(store, self.runtime.device), memory_told("images are learned from", self._ways_out):
            return self._pass(store, seed, on_step, max_steps)

    def _pass(
        self, store: ImageStore, seed: tuple[int, ...], on_step: Callable[[], None], max_steps: int | None
    ) -> dict[str, float]:
        began, sums, images, steps = time.perf_counter(), {}, 0, 0
        skips, finite_steps = self.scaler.is_enabled(), 0
        world, config = self.runtime.world, self.config
        watch = Watch(world, store.dataset.ids, f"in session {seed[-2] + 1}, epoch {seed[-1] + 1}", skips)
        set_seed(*seed, world.rank)
        self.model.train()
        view = self.view
        for batch in batches(
            store, view.rows, view.labels, config.batch_size, self.runtime, config.augment, seed, shuffle=True
        ):
            parts = self._step(batch)
            finite = torch.isfinite(parts["loss"])  # stays on the device: asking would wait for it
            finite_steps += finite
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + (part.where(finite, 0.0) if skips else part)
            images += len(batch.rows) * batch.weight
            steps += 1
            watch.saw(finite, batch.rows)
            on_step()
            if steps == max_steps:
                break
        counted = int(finite_steps) if skips else steps
        means = world.sum({name: float(value) / counted if counted else math.nan for name, value in sums.items()})
        overflowed = round(world.sum({"steps": float(steps - counted)})["steps"])
        images = round(world.sum({"images": images})["images"])
        seconds = time.perf_counter() - began
        if not math.isfinite(means["loss"]):
            watch.end(means["loss"])
        watch.check_weights(self._learned())
        return {
            **means, **({"overflowed": overflowed} if overflowed else {}), "lr": max(self.schedule.get_last_lr()),
            "images": images, "seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1),
        }  # fmt: skip

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from a batch, piece by piece; returns this process's part of the loss and of what it is made of."""
        made: dict[str, Tensor] = {}
        pieces, world = batch.pieces(self.config.micro_batch), self.runtime.world
        alone = getattr(self.method.context.forward, "no_sync", contextlib.nullcontext)
        for piece in pieces:
            # Processes may have different numbers of pieces: gradients are exchanged once, at the last.
            with contextlib.nullcontext() if piece is pieces[-1] else alone():
                result = self._loss(piece)
                # Each process has its part of the loss; the wrapper averages gradients, and the parts are to be added.
                self.scaler.scale(result["loss"] * batch.weight * world.size).backward()
            for name, part in {"loss": result["loss"], **result["parts"]}.items():
                part = part.detach() * batch.weight
                made[name] = made[name] + part if name in made else part
        world.average_gradients(self.own)
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self._learned(), self.config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.schedule.step()
        return made

    def _learned(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    # ---- pieces of a batch ----

    @property
    def _share(self) -> int:
        """Images of a whole batch that are learned from at a time."""
        share = -(-self.config.batch_size // self.runtime.world.size)
        return min(self.config.micro_batch or share, share)

    def _no_pieces(self) -> str:
        """Why a batch cannot be learned from in pieces, with what may be done instead; empty where it can."""
        if self.method.whole_batch:
            return (
                "the method weighs images by what else is in their batch. Take --processes that share it (their count "
                "may change where train.batch_norm is not batch), a GPU with more memory, or, in a new folder, a "
                "smaller train.batch_size"
            )
        if takes_statistics(self.model):
            return (
                f"train.batch_norm={self.config.batch_norm} takes statistics of all images of a batch that a process "
                "has. Take a GPU with more memory, or, in a new folder, train.batch_norm=frozen or a smaller "
                "train.batch_size"
            )
        return ""

    def _check_pieces(self) -> None:
        if self._share < -(-self.config.batch_size // self.runtime.world.size) and (why := self._no_pieces()):
            raise ConfigError(f"train.micro_batch={self.config.micro_batch}: {why}.")

    def _ways_out(self) -> str:
        if why := self._no_pieces():
            return f"A batch cannot be learned from in pieces (train.micro_batch): {why}."
        if self._share > 1:
            return (
                f"Set train.micro_batch={self._share // 2}: each batch is learned from in pieces of so many images, "
                "and the same folder goes on."
            )
        return "One image at a time is the least. Free memory, or take smaller images or a smaller network."

    def _loss(self, batch: Batch) -> dict[str, Any]:
        try:
            with self.runtime.autocast():
                return self.method.loss(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"train.batch_size: a step of {len(batch.rows)} image leaves batch norm one value per channel, and "
                "that teaches nothing. Let each process have two images or more, or set train.batch_norm=frozen."
            ) from None


def planned_steps(images: int, config: Train, max_steps: int | None) -> int:
    """Training steps of a session with so many images."""
    steps = steps_of(images, config.batch_size)
    return config.epochs * min(steps, max_steps or steps)


@torch.no_grad()
def fit(model: nn.Module, method: Method, context: Context, images: int, seed: tuple[int, ...]) -> dict[str, float]:
    """Have a method learn its session of so many images in closed form; returns what `Learner.epoch` does."""
    began = time.perf_counter()
    set_seed(*seed)
    model.eval()
    method.fit(context)
    seconds = time.perf_counter() - began
    return {"images": images, "seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1)}


@torch.no_grad()
def embedded(model: Network, images: Iterable[Batch], runtime: Runtime) -> Iterator[tuple[Tensor, Batch]]:
    """Batches with what a linear head reads of their images, (B, width) float32."""
    looking = for_inference(model, runtime.dtype)
    for batch in images:
        with runtime.autocast():
            features = looking.features(batch.images)
        yield looking.embed(features), batch


def make_optimiser(
    model: nn.Module,
    weight_decay: float,
    kind: str = "adam",
    layer_decay: float = 1.0,
    own: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimiser with decay on matrices only: none on biases, norms and other 1-D parameters.

    kind: "adam" (as published, decay added to the gradient), "adamw" or "sgd" (momentum 0.9). layer_decay: factor on
    the rate from each layer of the backbone to the one below it (kept as ``lr_scale`` of a group, for `make_schedule`).
    own: parameters of the method's own.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    if layer_decay != 1:
        from timm.optim import param_groups_layer_decay

        body = model.backbone.body
        groups = param_groups_layer_decay(body, weight_decay=weight_decay, layer_decay=layer_decay)
        named = [(name, p) for name, p in named if not name.startswith("backbone.body.")]
    named += [("own", p) for p in own]
    plain = [p for name, p in named if p.dim() <= 1 or name.endswith(".bias")]
    decayed = [p for name, p in named if not (p.dim() <= 1 or name.endswith(".bias"))]
    groups += [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    start = 1e-5  # the schedule sets the rate
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=start, momentum=0.9, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](groups, lr=start, fused=True)


def make_schedule(
    optimiser: torch.optim.Optimizer, kind: str, peak: float, steps: int, warmup: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The rate of a session with so many steps, up to ``peak`` (times a group's ``lr_scale``).

    kind: "onecycle" (as published: up for the share ``warmup`` of all steps, then down, along cosines), "cosine" (up
    along a line, down to 0 along a cosine) or "constant".
    """
    peaks = [peak * group.get("lr_scale", 1.0) for group in optimiser.param_groups]
    if kind == "onecycle":
        steps = max(steps, 2)  # the last one's rate is next to nothing
        if math.isclose(warmup * steps, 1):  # PyTorch divides by the steps after the first in which the rate rises
            warmup *= 1 - 1e-6  # it begins at the peak
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, peaks, total_steps=steps, pct_start=warmup)
    for group, rate in zip(optimiser.param_groups, peaks, strict=True):
        group["lr"] = group["initial_lr"] = rate
    rising = max(1, round(warmup * steps))

    def share(step: int) -> float:
        if kind == "constant":
            return 1.0
        if step < rising:
            return (step + 1) / rising
        return (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def set_seed(*numbers: int) -> None:
    """Seed torch from several numbers, such as (seed, session, epoch); NumPy and Python too, by which a method or a
    transform of one's own may draw."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
