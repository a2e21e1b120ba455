"""YAML as people write it: text in several encodings, no key twice, values of overrides."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, shown


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Without two surprises of YAML 1.1: 010 would be 8, and 1:30 would be 90. Here they are texts."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":int", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(([0-9][0-9_]*)?\.[0-9_]+|[0-9][0-9_]*\.)([eE][-+][0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"), list("-+0123456789")
)
PLAIN = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # reads every scalar as text
LARGEST = 1_000_000  # nodes, aliases counted as often as they stand there
MARKS = (  # the first bytes of a file → its encoding; that of 32 bits begins like that of 16
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def read_text(path: Path) -> str:
    """Text in UTF-8, or as the mark at its beginning says. ConfigError names the line that is in neither."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = content[error.start : error.start + 1].hex()
        raise ConfigError(f"{path}, line {line}: byte 0x{found} is not {encoding}: save the file as UTF-8.") from None


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping in YAML, read without making objects of it; an error names the file."""
    try:
        content = _load(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold 'key: value' lines, found a {type(content).__name__}.")
    return content


def parse_value(key: str, text: str, kind: str = "") -> Any:
    """The value of ``key=text``. kind "text": of a key that holds text, taken as it stands unless it is quoted;
    "names": of a list of texts. ConfigError names the override where it is neither YAML nor such a text."""
    if not text.strip():
        return ""
    try:
        if kind != "text":
            if _has_comment(text):
                raise ValueError("what follows # would be a comment: put it in quotes")
            return _load(text, PLAIN if kind == "names" else Loader)
        value = _load(text) if text.strip()[0] in "'\"" and not _has_comment(text) else None
    except ValueError as error:
        if kind != "text":
            raise ConfigError(f"Override {key}={shown(text)[1:-1]}: {error}.") from None
        value = None
    return value if isinstance(value, str) else text.strip()


def _load(text: str, kind: Any = Loader) -> Any:
    """The only document of a text. ValueError says in one line what is wrong."""
    loader = None
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except ValueError:  # ours, or of int() and datetime where !!int and a date are none
        raise
    except yaml.MarkedYAMLError as error:
        said = ", ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark and "\n" in text.strip() else ""
        raise ValueError(f"{place}{said}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except Exception as error:  # a tag that its value does not fit: !!bool x is a KeyError, !!timestamp x worse
        raise ValueError(f"{type(error).__name__}: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes there are below one. An error where a key stands twice, where a node is within itself, and where
    aliases of aliases would be more than memory holds."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (size := sizes.get(id(node))) is not None:
        if not size:
            raise yaml.MarkedYAMLError(problem="an alias stands within what it names", problem_mark=node.start_mark)
        return size
    sizes[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        below = [part for pair in node.value for part in pair]
    else:
        below = node.value
    size = 1 + sum(_check(part, sizes) for part in below)
    if size > LARGEST:
        raise ValueError(f"it holds more than {LARGEST} values")
    sizes[id(node)] = size
    return size


def _has_comment(text: str) -> bool:
    """Would YAML leave something out? Between two tokens there is white space or a comment."""
    end = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if "#" in text[end : token.start_mark.index]:
                return True
            end = token.end_mark.index
    except yaml.YAMLError:  # as reading it will say
        return False
    return "#" in text[end:]
