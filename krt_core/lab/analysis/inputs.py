"""What a model of a run is given when it is looked into: the maps that its run has kept, or else the images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data import MultiLabelDataset
from ...data.features import FeatureStore
from ...data.store import ImageStore
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
        self.images = ImageStore(dataset, e.data.image_size, e.data.cache, cache_size=e.data.cache_size, build=False)
        self.features: FeatureStore | None = None
        if e.model.freeze == "all" and e.data.features and run.finished_sessions:
            network = load_model(run, 0)
            network.freeze_backbone()
            self.features = FeatureStore(self.images, features_of(network, choose_runtime(e.train.precision), "maps"))

    def of(self, rows: np.ndarray) -> Tensor:
        """Of rows (m,): maps (m, channels, h, w) float32 if those of all of them are kept, else images (m, 3, S, S) in
        [0, 1]. Either is what `krt_core.lab.analysis.explain.look` takes."""
        file = self.features and self.features.files[0]
        if file and file.whole() and file.have(rows).all():
            return self.features.rows(rows).float()
        return torch.from_numpy(self.images.rows(rows)).permute(0, 3, 1, 2) / 255
