"""A weights file, explained: what it is, what it was trained on, whether it may know the labels to be learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..machine.home import data_dir, file_digest, home, resolve
from ..reference import known_checkpoint
from ..runs.files import is_still
from .files import read
from .parts import parts_of
from .provenance import Provenance, explain

BACKBONE = "backbone.body."
WITHOUT = (
    "it holds no backbone: that stood still, and is in session_00/model.safetensors of its run alone. Name that file "
    "for the backbone, or this one where the run has it"
)


@dataclass
class Checkpoint(Provenance):
    """What `explain` says of a file, and which file."""

    path: Path = Path()
    sha256: str = ""

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self.tensors.values())

    @property
    def leaks(self) -> str:
        """Whether it leaks, in words: "yes: ...", "no reason known" or "unknown: ..."."""
        if self.leak:
            return f"yes: {self.leak}"
        unknown = self.trained_on.startswith("unknown")
        return "unknown: what it was trained on does not show" if unknown else "no reason known"


def inspect(path: str | Path) -> Checkpoint:
    """Explain a .safetensors, .pt or .pth file. CheckpointError if it is missing, cut short or not plain tensors."""
    try:
        named, path = home() / Path(path).expanduser(), resolve(path)
    except (OSError, ValueError, RuntimeError) as error:  # a name with a null byte, a circle of links, no such user
        raise CheckpointError(f"{str(path)!r} cannot be the name of a weights file ({error}).") from None
    content, metadata, notes = _whole(named, *read(named))
    parts, about = parts_of(content)
    if not parts:
        keys = (
            f", but the keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) and content else ""
        )
        raise CheckpointError(f"{path} holds no tensors by name (a {type(content).__name__}){keys}. Save a state_dict.")
    found = Checkpoint(**vars(explain(parts, {**about, **metadata})), path=path, sha256=file_digest(path))
    found.notes += notes
    known = known_checkpoint(path.name, found.sha256, data_dir() / "pretrained" / "checkpoints.csv")
    if known and known["leaks"] == "yes" and not found.leak:
        found.trained_on = known["trained_on"]
        found.leak = f"it is known as trained on {known['trained_on']} ({known['source']})"
    elif known and found.trained_on.startswith("unknown"):
        found.trained_on = f"{known['trained_on']} ({known['source']})"
    return found


def _whole(path: Path, content: Any, metadata: dict[str, str]) -> tuple[Any, dict[str, str], list[str]]:
    """A later session of a run whose backbone stands still holds none: it is in the file of the run's first session,
    and taken from there as long as that lies where the run left it."""
    if "krt" not in metadata or any(name.startswith(BACKBONE) for name in content):
        return content, metadata, []
    first = path.resolve().parent.parent / "session_00" / "model.safetensors"
    if first.is_file():
        below, said = read(first)
        if said.get("krt") == metadata["krt"]:
            still = {name: tensor for name, tensor in below.items() if is_still(name) and name not in content}
            return still | content, metadata, [f"its backbone stands still and is taken from {first}"]
    return content, metadata, [WITHOUT]
