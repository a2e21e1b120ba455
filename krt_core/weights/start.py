"""The network a run begins with: built, given its first weights, and put where it is to learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..config import Experiment
from ..machine.device import Runtime
from ..model import Network
from ..model.norm import synchronise
from .convert import network_of
from .fit import load_backbone


def first_network(
    experiment: Experiment,
    runtime: Runtime,
    allow_leak: bool,
    log: Callable[[str], None],
    known: dict[str, Any] | None = None,
) -> tuple[Network, dict[str, Any]]:
    """The network before its first session, and what its first weights are (see `load_backbone`).

    What speaks against them is logged. Raises CheckpointError where they are not to be had, or have seen the labels to
    be learned and ``allow_leak`` is not said. known: what they are, of a run whose weights replace them anyway.
    """
    network = network_of(experiment)
    about = load_backbone(network.backbone, experiment.model, allow_leak) if known is None else known
    if about.get("trained_on", "").startswith("unknown"):
        log(f"{about['file']}: what it was trained on is unknown, so it may know labels to be learned")
    for note in about.get("notes", ()):
        log(f"{about['file']}: {note}")
    if about.get("leak"):
        log(f"LEAK: {about['file']} is used all the same, though {about['leak']}")
    network.to(runtime.device, runtime.weights_dtype).to(memory_format=torch.channels_last)
    if experiment.train.batch_norm == "sync" and runtime.world.size > 1:
        synchronise(network)
    return network, about


def renewed(first: Network, last: Network) -> Network:
    """A network as it was before its first session, for a training that begins anew; the backbone of the last one stays
    where that stands still."""
    network = copy.deepcopy(first)
    if last.still:
        network.backbone, network.looking, network.still = last.backbone, last.looking, True
    return network
