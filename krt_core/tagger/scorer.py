"""What the model of a run says to images, by the same steps as in its tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.pipeline import batches
from ..errors import KRTError, RunError
from ..machine.device import Runtime
from ..machine.precision import full_precision
from ..methods import Method
from ..model import Network
from ..model.inference import for_inference
from ..model.still import seen_in_tests
from ..options import is_dotted
from ..runs.folder import Run
from ..weights.convert import load_method, load_model
from .photos import Photos


class Scorer:
    """The model of a run after a session, 0 is the first. Raises RunError, with the way out, where its files are
    missing or damaged, and where a method from outside the package cannot answer outside of a training."""

    def __init__(self, run: Run, session: int, runtime: Runtime):
        self.run, self.session, self.runtime = run, session, runtime
        network, self.method = reopened(run, session, runtime)
        self.features = seen_in_tests(network, runtime, self.method, run.experiment, session)
        self.network = for_inference(network, runtime.dtype)
        self.classes = run.protocol.sessions[session].stop
        self.batch_size = run.experiment.train.eval_batch_size

    @torch.inference_mode()
    def scores(self, images: Tensor) -> np.ndarray:
        """(B, C) float32 of images (B, 3, S, S) in [0, 1] on the device."""
        given = images
        if self.features is not None:
            given = self.features.of(images)
            given = full_precision(given) if given.shape[-1] == 1 else given.contiguous()  # as they come from disk
        with self.runtime.autocast():
            said = self.method.scores(self.network, given)
        found = said[:, : self.classes].float().cpu().numpy()
        if np.isnan(found).any():
            raise RunError(f"{self.run.folder.name}: the model's scores are not numbers (NaN).")
        return found

    def each(self, photos: Photos) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray]]:
        """Batch by batch, of which threads prepare two ahead: rows (B,), images (B, 3, S, S) and scores (B, C)."""
        rows = np.arange(len(photos.images))
        for batch in batches(photos, rows, np.zeros((len(rows), 0), bool), self.batch_size, self.runtime):
            yield batch.rows, batch.images, self.scores(batch.images)


def reopened(run: Run, session: int, runtime: Runtime) -> tuple[Network, Method]:
    """Network and method as they were after a session, on the device."""
    model = run.session_folder(session) / "model.safetensors"
    if not model.is_file():
        raise RunError(
            f"{model} is missing, and without its weights a model names nothing. Copy it from where the run was made, "
            f"or {run.way_out(session)}"
        )
    network = load_model(run, session)
    network.backbone.compiled = False  # a few photos are done before a compiler is
    network.to(runtime.device, runtime.weights_dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    method = load_method(run, session, network)
    for name, value in vars(method).items():
        if isinstance(value, (torch.nn.Module, Tensor)) and runtime.device.type != "cpu":
            setattr(method, name, value.to(runtime.device))
    if is_dotted(run.experiment.method) and method.has_own("scores"):
        _try(method, network, runtime)
    return network, method


@torch.inference_mode()
def _try(method: Method, network: Network, runtime: Runtime) -> None:
    """A method of others may need what only a training makes."""
    size = network.backbone.image_size or 32
    image = torch.zeros(1, 3, size, size, dtype=runtime.weights_dtype, device=runtime.device)
    try:
        method.scores(network, image)
    except KRTError:
        raise
    except Exception as error:
        kind = type(method).__name__
        raise RunError(
            f"method {kind} cannot answer outside of a training ({type(error).__name__}: {error}): what its scores "
            f"need must be there after load_state, or be made by a {kind}.reopen (docs/your_method.md)."
        ) from None
