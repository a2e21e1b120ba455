"""The shipped presets, and how a preset of any origin is read: YAML, one on top of another, with overrides on top."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, did_you_mean

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def preset_names() -> list[str]:
    return sorted(p.name[:-5] for p in resources.files("krt_core.presets").iterdir() if p.name.endswith(".yaml"))


def read_preset(preset: str | Path, extended_by: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """Content of a preset on top of the one it extends, and what to call it in messages."""
    path = Path(preset)
    if str(preset) in preset_names():
        text, where = (resources.files("krt_core.presets") / f"{preset}.yaml").read_text(), f"preset {preset}"
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text, where = path.read_text(), str(path)
    else:
        raise ConfigError(
            f"There is no preset {str(preset)!r} and no such YAML file.{did_you_mean(preset, preset_names())}"
        )
    if str(preset) in extended_by:
        raise ConfigError(f"{where} extends itself: {' -> '.join((*extended_by, str(preset)))}.")
    content = parse_yaml(text, where)
    if parent := content.pop("extends", None):
        below, _ = read_preset(parent, (*extended_by, str(preset)))
        below.pop("name", None)
        content = merge(below, content)
    return content, where


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping in YAML, read without making objects of it; an error names the file."""
    try:
        content = yaml.load(text, LOADER) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold 'key: value' lines, found a {type(content).__name__}.")
    return content


def nested(overrides: Mapping[str, Any] | list[str] | None) -> dict[str, Any]:
    """Dotted keys or ``key=value`` strings to one nested mapping."""
    if not overrides:
        return {}
    if not isinstance(overrides, Mapping):
        pairs = {}
        for item in overrides:
            key, sign, value = item.partition("=")
            if not sign:
                raise ConfigError(f"Override {item!r} must have the form key=value, as in train.epochs=3.")
            pairs[key.strip()] = yaml.load(value, LOADER) if value else ""
        overrides = pairs
    sections: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *parents, last = str(dotted).split(".")
        here = sections
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = merge(here.get(last, {}), value) if isinstance(value, Mapping) else value
    return sections


def merge(base: Any, top: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    return {**base, **{key: merge(base.get(key), value) for key, value in top.items()}}
