"""A section of a preset as a dataclass of options, or what is wrong with it in our words."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, did_you_mean, shown

WRITABLE = re.compile("[^\0\ud800-\udfff]*")  # no zero byte, and nothing that was no UTF-8 where it was typed
SAID = {  # pydantic's kind of error → what is asked for, in our words
    "int_type": "a whole number", "int_from_float": "a whole number", "bool_type": "true or false",
    "string_type": "text", "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "a section of keys",
    "dataclass_type": "a section of keys", "greater_than_equal": "at least {ge}", "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}", "less_than": "less than {lt}", "string_too_short": "a name",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' only",
}  # fmt: skip


def convert(kind: Any, value: Any, key: str, where: str) -> Any:
    """``value`` as the dataclass ``kind``, or a ConfigError that names the key below ``key``, what it must be and what
    was found. YAML reads 1e-4 as text; here it becomes a number."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {key} must be a section of keys, found {shown(value)} ({type(value).__name__}).")
    hints, out = _hints(kind), {}
    for name, item in value.items():
        dotted = f"{key}.{name}".lstrip(".")
        if name not in hints:
            raise ConfigError(f"{where}: unknown key {shown(dotted)}.{did_you_mean(shown(name), hints)}")
        if dataclasses.is_dataclass(hints[name]):
            item = convert(hints[name], item, dotted, where)
        elif (of := typing.get_args(hints[name])) and dataclasses.is_dataclass(of[0]) and isinstance(item, list):
            item = tuple(convert(of[0], one, f"{dotted}[{i}]", where) for i, one in enumerate(item))
        elif hints[name] is float and isinstance(item, str):
            with contextlib.suppress(ValueError):
                item = float(item)
        elif isinstance(item, str) and not WRITABLE.fullmatch(item):
            raise ConfigError(f"{where}: {dotted} holds bytes that are no text, found {shown(item)}.")
        out[name] = item
    try:
        return kind(**out)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error.errors()[0], hints, key)}") from None


def check_changes(changes: Mapping[str, Any], sections: Mapping[str, Any], where: str) -> None:
    """ConfigError where nested changes are of no section (name → dataclass), or wrong by themselves."""
    for name, keys in changes.items():
        if name not in sections:
            raise ConfigError(
                f"{where}: {shown(name)} is no section: what a method changes is section.key, such as train.lr."
                f"{did_you_mean(shown(name), sections)}"
            )
        convert(sections[name], keys, name, where)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _explain(error: Any, hints: dict[str, Any], key: str) -> str:
    """What pydantic found wrong, in our words."""
    name, *place = error["loc"]
    dotted = f"{key}.{name}".lstrip(".") + "".join(f"[{part}]" for part in place)
    found, kind = error["input"], error["type"]
    if kind == "value_error":  # of a check of our own
        return f"{dotted} {error['ctx']['error']}"
    if kind == "missing":
        return f"{dotted} is needed."
    if kind == "literal_error":
        choice = [str(one) for one in typing.get_args(hints[name])]
        return f"{dotted} must be one of {', '.join(choice)}; found {shown(found)}.{did_you_mean(shown(found), choice)}"
    asked = SAID[kind].format(**error.get("ctx", {})) if kind in SAID else error["msg"]
    return f"{dotted} must be {asked}, found {shown(found)} ({type(found).__name__})."
