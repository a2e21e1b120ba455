"""What a model of a run is given when it is looked into: the maps that its run has kept, or else the images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data import MultiLabelDataset
from ...data.features import FeatureStore, feature_store
from ...data.store import image_store
from ...machine.device import choose_runtime
from ...model.still import features_of
from ...runs.folder import Run
from ...weights.convert import load_model


class Inputs:
    """Images of a data set for the models of a run, after any of its sessions.

    Where the backbone stood still from the start, the maps that training and testing have kept are read; nothing is
    added to them. Images that they lack, or that a backbone learned from, come as pixels.
    """

    def __init__(self, run: Run, dataset: MultiLabelDataset):
        e = run.experiment
        self.images = image_store(dataset, e.data.image_size, e.data.cache, cache_size=e.data.cache_size, build=False)
        self.features: FeatureStore | None = None
        if e.model.freeze == "all" and e.data.features and run.finished_sessions:
            network = load_model(run, 0)
            network.freeze_backbone()
            self.features = feature_store(self.images, features_of(network, choose_runtime(e.train.precision), "maps"))

    def of(self, rows: np.ndarray) -> Tensor:
        """Of rows (m,): maps (m, channels, h, w) float32 if those of all of them are kept, else images (m, 3, S, S) in
        [0, 1]. Either is what `krt_core.lab.analysis.explain.look` takes."""
        if self.features and self.features.has(rows):
            return self.features.rows(rows).float()
        return torch.from_numpy(self.images.rows(rows)).permute(0, 3, 1, 2) / 255
