"""The shipped presets, and how a preset of any origin is read: YAML, one on top of another, with overrides on top."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean, shown
from .reading import parse_value, parse_yaml, read_text

Check = Callable[[str, Mapping[str, Any], str], None]  # of a method, what a preset changes for it, and where it stands


def preset_names() -> list[str]:
    return sorted(p.name[:-5] for p in resources.files("krt_core.presets").iterdir() if p.name.endswith(".yaml"))


def read_preset(
    preset: str | Path, method: str = "", check: Check = lambda method, changes, where: None
) -> tuple[dict[str, Any], str]:
    """Content of a preset on top of the one it extends, and what to call it in messages. A file that a preset extends
    is looked for beside that preset, then from the current folder.

    What a preset says under ``methods`` of the method goes on top of the rest of it, and below a preset that extends
    it. method: "" is the one that the preset names; check: raises ConfigError for what a method may not change.
    """
    levels = _levels(preset)
    method = method or next((level["method"] for level, _ in levels if "method" in level), "")
    content: dict[str, Any] = {}
    for level, where in reversed(levels):
        own = _of_methods(level.pop("methods", {}), check, where)
        content.pop("name", None)
        content = merge(merge(content, level), own.get(method, {}) if isinstance(method, str) else {})
    return content, where


def _levels(preset: str | Path, extended_by: tuple[str, ...] = ()) -> list[tuple[dict[str, Any], str]]:
    """A preset and all below it, each with its place in words."""
    if not isinstance(preset, (str, Path)):
        raise ConfigError(f"A preset goes by its name or by a YAML file, found {preset!r}.")
    path, place = Path(preset), Path(extended_by[-1]).parent if extended_by else Path()
    if str(preset) in preset_names():
        path, where = Path(str(resources.files("krt_core.presets") / f"{preset}.yaml")), f"preset {preset}"
    else:
        path = place / path if (place / path).is_file() else path
        where = str(path)
        if not path.is_file() or path.suffix.lower() not in (".yaml", ".yml"):
            hint = " (a YAML file ends in .yaml)" if path.is_file() else did_you_mean(preset, preset_names())
            by = f"{extended_by[-1]} extends it: " if extended_by else ""
            raise ConfigError(f"{by}There is no preset {str(preset)!r} and no such YAML file.{hint}")
    if str(path) in extended_by:
        raise ConfigError(f"{where} extends itself: {' -> '.join((*extended_by, str(path)))}.")
    said = parse_yaml(read_text(path), where).items()
    content = {key: value for key, value in said if value is not None}  # every line of a section may be commented out
    parent = content.pop("extends", None)
    if parent is None:
        return [(content, where)]
    if not isinstance(parent, str):
        raise ConfigError(f"{where}: extends must be the name of a preset or a YAML file, found {parent!r}.")
    return [(content, where), *_levels(parent, (*extended_by, str(path)))]


def _of_methods(methods: Any, check: Check, where: str) -> dict[str, dict[str, Any]]:
    """What a ``methods`` section changes for each, as nested sections."""
    if not isinstance(methods, Mapping) or not all(isinstance(own, (Mapping, type(None))) for own in methods.values()):
        raise ConfigError(f"{where}: methods must hold, for each method, what it changes: lwf: {{lwf.weight: 3}}.")
    found = {}
    for name, changes in methods.items():
        try:
            found[name] = nested(changes or {})
        except ConfigError as error:
            raise ConfigError(f"{where}: methods: {shown(name)}: {error}") from None
        check(name, found[name], f"{where}: methods: {shown(name)}")
    return found


def nested(
    overrides: Mapping[str, Any] | list[str] | str | None, kind_of: Callable[[str], str] = lambda key: ""
) -> dict[str, Any]:
    """Dotted keys or ``key=value`` strings, or a text of either, to one nested mapping. kind_of: what a dotted key
    holds, for `krt_core.presets.reading.parse_value`. ConfigError where a key is set twice."""
    if isinstance(overrides, str):
        whole = overrides.strip()
        overrides = parse_value("overrides", whole) if whole[:1] in ("{", "[") or ": " in whole else _words(whole)
    if overrides is None or overrides == "":
        return {}
    pairs: list[tuple[str, Any]] = []
    if isinstance(overrides, Mapping):
        pairs = [(str(key), value) for key, value in overrides.items()]
    elif isinstance(overrides, (list, tuple)):
        for item in overrides:
            key, sign, value = str(item).partition("=")
            if not sign or not key.strip():
                raise ConfigError(f"Override {item!r} must have the form key=value, as in train.epochs=3.")
            pairs.append((key.strip(), parse_value(key.strip(), value, kind_of(key.strip()))))
    else:
        raise ConfigError(f"overrides must be a mapping or a list of key=value, found {overrides!r}.")
    sections: dict[str, Any] = {}
    for dotted, value in pairs:
        _put(sections, dotted.split("."), value, dotted)
    return sections


def _words(text: str) -> list[str]:
    """``a.b=1 c=x y`` → ["a.b=1", "c=x y"]: what has no key of its own belongs to the value before it."""
    return re.split(r"\s+(?=[\w.]+=)", text) if text else []


def _put(into: dict[Any, Any], key: list[Any], value: Any, dotted: str) -> None:
    """Set one key of nested sections, where nothing has been set yet."""
    first, *rest = key
    if rest:
        here = into.setdefault(first, {})
        if not isinstance(here, dict):
            raise ConfigError(f"Override {dotted}: {first} is set as a whole already ({here!r}): give one of the two.")
        return _put(here, rest, value, dotted)
    if isinstance(value, Mapping) and isinstance(here := into.setdefault(first, {}), dict):
        for name, item in value.items():
            _put(here, [name], item, dotted)
        return
    if first in into:
        raise ConfigError(f"Override {dotted} is given twice, by itself or within its section: give it once.")
    into[first] = value


def merge(base: Any, top: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    return {**base, **{key: merge(base.get(key), value) for key, value in top.items()}}
