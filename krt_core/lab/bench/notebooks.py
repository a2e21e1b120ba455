"""The notebooks that a matrix executes: where they are, and what they may be told."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path
from typing import Any

from ...errors import ConfigError, did_you_mean
from ...machine.home import home


def notebook_path(notebook: str) -> Path:
    """The file of a notebook given by its name in notebooks/ or by a path."""
    path = Path(notebook)
    if path.suffix == ".ipynb":
        return path.resolve()
    return notebooks_dir() / f"{notebook}.ipynb"


def notebooks_dir() -> Path:
    """notebooks/ beside data/ and outputs/, else that of the checkout this package is in."""
    own = home() / "notebooks"
    return own if own.is_dir() else Path(__file__).resolve().parents[3] / "notebooks"


@functools.cache
def parameters_of(notebook: str) -> dict[str, tuple[str, Any]]:
    """Parameters of a notebook: name → type as annotated (or that of the default), default.

    Read from the cell tagged ``parameters`` by Python's own parser, since papermill's stumbles over a ``=`` in a value.
    """
    path = notebook_path(notebook)
    if not path.is_file():
        known = [p.stem for p in notebooks_dir().glob("*.ipynb")]
        raise ConfigError(f"There is no notebook {path}.{did_you_mean(notebook, known)}")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = ("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    found = {}
    for line in ast.parse(next(tagged, "")).body:
        if isinstance(line, (ast.AnnAssign, ast.Assign)) and line.value is not None:
            target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
            default = ast.literal_eval(line.value)
            kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else type(default).__name__
            found[ast.unparse(target)] = (kind, default)
    return found


def check_parameters(notebook: str, parameters: dict[str, Any]) -> None:
    """ConfigError where a parameter is not one of the notebook's, or has another type than it: papermill would go on
    with the default."""
    known = parameters_of(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise ConfigError(f"{notebook}: there is no parameter {name!r}.{did_you_mean(name, known)}")
        kind = known[name][0]
        if kind in ("str", "int", "float", "bool", "list", "dict") and type(value).__name__ != kind:
            raise ConfigError(f"{notebook}: parameter {name} must be of type {kind}, found {value!r}.")
