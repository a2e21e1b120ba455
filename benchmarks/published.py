"""The published way of doing things, stated again in the plainest form: what ours is timed against and must equal.

Every image is decoded, resized and augmented by PIL each time it is used; ICA runs once per session; the old model runs
in full precision beside the new one; base, seen and new images are evaluated in a pass each.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from krt_core.config import Experiment
from krt_core.data import MultiLabelDataset
from krt_core.data.augment import augment, draw
from krt_core.data.store import load_image
from krt_core.dpl import search_threshold
from krt_core.learn import make_optimiser
from krt_core.losses import asymmetric_loss, token_distillation
from krt_core.memory import herding
from krt_core.model import Network, Output
from krt_core.model.ica import looped
from krt_core.protocol import Protocol, View


class Images(Dataset):
    """Images of a data set by row with the labels (m, C) they are to show, decoded at every use."""

    def __init__(self, dataset: MultiLabelDataset, rows: np.ndarray, labels: np.ndarray, size: int, kind: str = "none"):
        self.dataset, self.rows, self.labels, self.size, self.kind = dataset, rows, labels, size, kind
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        image = load_image(self.dataset.path(self.rows[item]), self.size)
        draws = {name: values[0] for name, values in draw(self.kind, 1, self.rng).items()}
        pixels = torch.from_numpy(augment(image, self.kind, draws).copy())
        image = pixels.permute(2, 0, 1).contiguous().to(torch.get_default_dtype()).div(255)
        return image, torch.from_numpy(self.labels[item]).float()


def forward(network: Network, images: Tensor) -> Output:
    """The network with ICA session by session, all in the precision of its weights."""
    features = network.backbone(images)
    tokens, _ = looped(network.ica, network.patch_tokens(features))
    logits = torch.cat([head(tokens[:, t]) for t, head in enumerate(network.heads)], dim=1)
    return Output(logits, tokens, features)


def loss(model: Network, old: Network, images: Tensor, labels: Tensor, threshold: float, weight: float) -> Tensor:
    """KRT's loss of one batch: pseudo labels of the old model, classification, distillation of the tokens."""
    output = forward(model, images)
    with torch.no_grad():
        before = forward(old, images)
        confident = torch.sigmoid(before.logits) > threshold
        labels = labels.clone()
        labels[:, : confident.shape[1]][confident] = 1
    return asymmetric_loss(output.logits, labels) + weight * token_distillation(before.tokens, output.tokens)


def train_step(model: Network, old: Network, optimiser, images, labels, threshold: float, weight: float) -> float:
    value = loss(model, old, images, labels, threshold, weight)
    value.backward()
    optimiser.step()
    optimiser.zero_grad()
    return value.item()


def make_published_optimiser(model: Network, weight_decay: float) -> torch.optim.Optimizer:
    """Adam parameter by parameter, over the same groups."""
    groups = [{k: g[k] for k in ("params", "weight_decay")} for g in make_optimiser(model, weight_decay).param_groups]
    return torch.optim.Adam(groups, lr=1e-5, foreach=False)


@torch.no_grad()
def predict(model: Network, images: Images, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (m, C) and pooled features (m, channels)."""
    model.eval()
    like = next(model.parameters())
    outputs = [forward(model, batch.to(like)) for batch, _ in DataLoader(images, batch_size)]
    scores = torch.cat([torch.sigmoid(output.logits) for output in outputs])
    return scores.cpu().numpy(), torch.cat([output.pooled for output in outputs]).cpu().numpy()


def average_precision(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    """AP of each class, one after the other, in percent."""
    values = []
    for score, label in zip(scores.T, labels.T, strict=True):
        hits, total = 0, 0.0
        for rank, row in enumerate(np.argsort(-score, kind="stable"), start=1):
            if label[row]:
                hits += 1
                total += hits / rank
        values.append(100 * total / max(hits, 1))
    return values


def evaluate(
    model: Network, dataset: MultiLabelDataset, protocol: Protocol, session: int, size: int, batch: int
) -> dict:
    """mAP of base, seen and new: a pass over the images of each."""
    labels, out = protocol.reorder(dataset.labels), {}
    for subset, (rows, columns) in protocol.test_subsets(labels, session).items():
        scores, _ = predict(model, Images(dataset, np.arange(len(labels))[rows], labels[rows], size), batch)
        out[f"mAP_{subset}"] = float(np.mean(average_precision(scores[:, columns], labels[rows][:, columns])))
    return out


def session(
    experiment: Experiment, model: Network, old: Network, train: MultiLabelDataset, test: MultiLabelDataset,
    protocol: Protocol, index: int, view: View, orders: list[list[int]] | None = None,
) -> dict:  # fmt: skip
    """One whole later session of KRT: pseudo-label threshold, training, validation after every epoch, herding.

    model: already grown; old: the one before; view: what the session may see; orders: of its images in each epoch
    (None: at random). Returns threshold, exemplars per new class, metrics and loss of each epoch.
    """
    t, krt, size, like = experiment.train, experiment.options, experiment.data.image_size, next(model.parameters())
    start, stop = protocol.sessions[index].start, protocol.sessions[index].stop
    seen = Images(train, view.rows, view.labels, size)
    scores, _ = predict(old, seen, t.eval_batch_size)
    threshold = search_threshold(scores, krt.mean_labels * start / len(protocol.classes)).threshold
    weight = krt.token_weight * math.sqrt(stop / experiment.protocol.increment)
    optimiser = make_published_optimiser(model, t.weight_decay)
    steps = math.ceil(len(view.rows) / t.batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, t.lr, steps_per_epoch=steps, epochs=t.epochs, pct_start=t.warmup
    )
    metrics, losses = [], []
    for epoch in range(t.epochs):
        model.train()
        images = Images(train, view.rows, view.labels, size, t.augment)
        order = orders[epoch] if orders else torch.randperm(len(images)).tolist()
        total = 0.0
        for batch, wanted in DataLoader(images, t.batch_size, sampler=order):
            total += train_step(model, old, optimiser, batch.to(like), wanted.to(like), threshold, weight)
            rate.step()
        losses.append(total / steps)
        metrics.append(evaluate(model, test, protocol, index, size, t.eval_batch_size))
    own = view.rows[: view.own]
    _, features = predict(model, Images(train, own, view.labels, size), t.eval_batch_size)
    stored, chosen = set(view.rows[view.own :].tolist()), []
    for column in range(start, stop):
        candidates = np.array([i for i in np.flatnonzero(view.labels[: view.own, column]) if own[i] not in stored])
        chosen.append(own[candidates[herding(features[candidates], experiment.replay.per_class)]].tolist())
        stored.update(chosen[-1])
    return {"threshold": threshold, "exemplars": chosen, "metrics": metrics, "losses": losses}
