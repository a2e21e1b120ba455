"""Parameters as papermill and notebooks pass them: a list or a number that may be text."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError
from .reading import parse_value

WORDS = {int: "whole numbers", str: "texts", bool: "true or false"}
TRUTH = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


def listed(name: str, value: Any, kind: type[int] | type[str]) -> list[Any]:
    """A list of whole numbers or of texts: as one, as one of its members, or as the text of either. ConfigError names
    the parameter that is none."""
    if isinstance(value, str) and (kind is int or value.strip()[:1] == "["):
        value = read_as(name, value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    found = list(value)
    if kind is int:
        found = [int(v) if isinstance(v, numbers.Integral) and not isinstance(v, bool) else v for v in found]
    for one in found:
        if type(one) is not kind:
            example = "[0, 1]" if kind is int else '["one", "two"]'
            raise ConfigError(f"{name} must be {WORDS[kind]} in a list, such as {example}; found {one!r}.")
    return found


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number, or the text of one."""
    found = read_as(name, value) if isinstance(value, str) else value
    if not isinstance(found, numbers.Integral) or isinstance(found, bool) or found < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, found {value!r}.")
    return int(found)


def truth(name: str, value: Any) -> bool:
    """True or false, or a text that says so."""
    found = TRUTH.get(str(value).strip().lower())
    if found is None:
        raise ConfigError(f"{name} must be true or false, found {value!r}.")
    return found


def read_as(name: str, text: str) -> Any:
    """What a text holds as YAML or JSON; ConfigError names the parameter where it is neither."""
    return parse_value(name, text) if text.strip() else None
