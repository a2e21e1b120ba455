"""Parameters as papermill and notebooks pass them: a list or a number that may be text."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from .reading import parse_value

WORDS = {int: "whole numbers", str: "texts", bool: "true or false"}
NUMBERS = re.compile(r"\s*\(?\s*-?(0|[1-9][0-9]*)([\s,]+-?(0|[1-9][0-9]*))*[\s,]*\)?\s*")
TRUTH = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


def listed(name: str, value: Any, kind: type[int] | type[str]) -> list[Any]:
    """A list of whole numbers or of texts: as one, as one of its members, or as the text of either. ConfigError names
    the parameter that is none."""
    if isinstance(value, str):
        value = _of_text(name, value, kind)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        value = [value]
    found = [_plain(one, kind) for one in value]
    for one in found:
        if type(one) is not kind:
            example = "[0, 1]" if kind is int else '["one", "two"]'
            raise ConfigError(f"{name} must be {WORDS[kind]} in a list, such as {example}; found {one!r}.")
    return found


def _of_text(name: str, text: str, kind: type) -> Any:
    """A list as YAML writes it, "krt, pod", "0, 1", "0 1" or "(0, 1)"; else the text."""
    if kind is int and NUMBERS.fullmatch(text):
        return [int(one) for one in re.findall(r"-?[0-9]+", text)]
    if kind is int or text.strip()[:1] == "[":
        return parse_value(name, text, "names" if kind is str else "")
    if "," in text and "=" not in text:
        return [one.strip() for one in text.split(",") if one.strip()]
    return text


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number, or the text of one."""
    found = parse_value(name, value) if isinstance(value, str) else value
    if not isinstance(found, numbers.Integral) or isinstance(found, bool):
        raise ConfigError(f"{name} must be a whole number, found {value!r}.")
    if found < least:
        raise ConfigError(f"{name} must be at least {least}, found {value!r}.")
    return int(found)


def truth(name: str, value: Any) -> bool:
    """True or false, or a text that says so."""
    found = TRUTH.get(str(value).strip().lower())
    if found is None:
        raise ConfigError(f"{name} must be true or false, found {value!r}.")
    return found


def _plain(value: Any, kind: type) -> Any:
    """Whole numbers of any making as Python's; where texts are asked for, a number is the text of one."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return kind(value)
    return value
