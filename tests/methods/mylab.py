"""Methods, a reader, a transform and a callback as somebody outside the package would write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from krt_core.data import MultiLabelDataset
from krt_core.losses import asymmetric_loss
from krt_core.methods import Method
from krt_core.runs.callbacks import Callback


class Frozen(Method):
    """A backbone that stays still after its first session."""

    def start_session(self, context):
        super().start_session(context)
        if context.session.index:
            context.model.backbone.requires_grad_(False)


class Means(Method):
    needs_maps = False


class Scaled(Method):
    """A learned factor on every logit: parameters of the method's own, kept as a tensor."""

    @dataclass(frozen=True)
    class Options:
        head: str = "linear"
        start: Annotated[float, Field(gt=0)] = 1.0

    def __init__(self, options, experiment):
        super().__init__(options, experiment)
        self.factor = nn.Parameter(torch.empty(0))

    def start_session(self, context):
        super().start_session(context)
        device = next(context.model.parameters())
        fresh = torch.full((context.session.stop - len(self.factor),), self.options.start).to(device)
        self.factor = nn.Parameter(torch.cat([self.factor.detach().to(device), fresh]))

    def parameters(self):
        return [self.factor]

    def loss(self, batch):
        output = self.context.forward(batch.images)
        loss = self.scale * asymmetric_loss(output.logits * self.factor, self.targets(batch))
        return {"loss": loss, "parts": {"classification": loss}, "logits": output.logits}

    def scores(self, model, images):
        return torch.sigmoid(model(images).logits * self.factor)

    def state(self):
        return {"factor": self.factor, "sessions": [{"seen": len(self.factor)}]}

    def load_state(self, state):
        with torch.no_grad():
            if len(self.factor) == len(state["factor"]):
                self.factor.copy_(state["factor"])
            else:
                self.factor = nn.Parameter(state["factor"].clone())


class Ridge(Method):
    """Ridge regression on pooled features over all sessions, without gradients: what is not shown counts as 0."""

    def __init__(self, options, experiment):
        super().__init__(options, experiment)
        self.gram = self.shown = None

    def fit(self, context):
        gram, shown = 0.0, 0.0
        for batch in context.batches():
            features = context.model(batch.images).pooled.double()
            gram = gram + batch.weight * features.T @ features
            shown = shown + batch.weight * features.T @ batch.labels.double()
        gram, shown = (torch.from_numpy(sum(context.world.gather(x.cpu().numpy()[None]))) for x in (gram, shown))
        if self.gram is not None:
            gram, shown[:, : self.shown.shape[1]] = gram + self.gram, shown[:, : self.shown.shape[1]] + self.shown
        self.gram, self.shown = gram, shown

    def scores(self, model, images):
        ridge = self.gram + 1e-3 * self.gram.trace() / len(self.gram) * torch.eye(len(self.gram))
        weights = torch.linalg.solve(ridge, self.shown)
        return model(images).pooled.double() @ weights

    def state(self):
        return {} if self.gram is None else {"gram": self.gram, "shown": self.shown}

    def load_state(self, state):
        if state:
            self.gram, self.shown = state["gram"], state["shown"]


class Careless(Method):
    """Keeps what no file of a run can hold."""

    def state(self):
        return {"deep": [{"table": np.zeros(3)}]}


def read(root: Path, split: str) -> MultiLabelDataset:
    """Lines of ``tags_<split>.csv``: image, then its tags."""
    lines = [line.split(",") for line in (root / f"tags_{split}.csv").read_text().split()]
    classes = tuple(sorted({tag for _, *tags in lines for tag in tags}))
    labels = np.array([[name in tags for name in classes] for _, *tags in lines])
    names = np.array([name for name, *_ in lines])
    return MultiLabelDataset("tags", split, root, names, names, labels, classes)


def read_wrong(root: Path, split: str) -> MultiLabelDataset:
    made = read(root, split)
    return MultiLabelDataset("tags", split, root, made.ids, made.paths, 2 * made.labels.astype(int), made.classes)


def flip(images: Tensor) -> Tensor:
    """Half of the images (B, 3, S, S), mirrored."""
    chosen = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class Mirror(Callback):
    """Numbers of every epoch and session, one JSON object a line, for whatever tracks experiments."""

    def epoch(self, record):
        self.write("epoch", record)

    def session(self, state):
        self.write("session", state["metrics"])

    def write(self, kind, content):
        with (self.run.folder.parent / "tracker.jsonl").open("a") as file:
            file.write(json.dumps({"run": self.run.folder.name, "kind": kind, **content}) + "\n")


class Away(Callback):
    def epoch(self, record):
        raise ConnectionError("the tracker is away")
