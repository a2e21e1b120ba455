"""Nearly right inputs: small changes of bytes, of JSON and YAML trees, of XML, as files suffer them and people make
them. Everything is drawn from the ``random.Random`` that is given, so that a seed makes the same again."""

import copy
import json
import re
from random import Random

import yaml

ODD = (
    None, True, False, -1, 0, 1, 7, 2**70, -0.0, 1e-320, float("inf"), float("nan"), 10**400, "", " ", "x", "nan", "1",
    "true", "null", "../../x", "a/b", "a\0b", "\ud800", "\x1b[31m", "é", "日本", "💥", "<b>", "$", "1" * 300, [], {},
    [None], [[[]]], {"a": 1}, [0, 0, 0, 0], [-1, "x"], {"": ""},
)  # fmt: skip
TEXTS = (*(text for text in ODD if isinstance(text, str)), "inf", "-1", "1e999", "&", "]]>", "&#0;", "&x;")


def bytes_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """The content of a file as a bad disk, a broken copy or an editor leaves it."""
    at = rng.randrange(len(content) + 1)
    to = min(len(content), at + rng.choice((1, 2, 8, 64, 1024)))
    kind = rng.randrange(10)
    if kind < 3:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 32)) if content else 0):
            changed[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(changed)
    if kind == 3:
        return content[:at]
    if kind == 4:
        return content[:at] + rng.randbytes(to - at) + content[at:]
    if kind == 5:
        return content[:at] + content[to:]
    if kind == 6:
        return content[:at] + bytes(to - at) + content[to:]
    if kind == 7:
        return rng.choice(others) if others else b""
    if kind == 8:
        return rng.choice((b"", b"\n", b"\0" * 100, b"\xef\xbb\xbf" + content, content + content, content[::-1]))
    text = content.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "latin-1", "utf-32", "cp1252")), "replace")


def tree_of(rng: Random, tree):
    """A tree of dicts and lists with one to three things changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed(rng, tree)
    return tree


def json_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    try:
        tree = tree_of(rng, json.loads(content))
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return bytes_of(rng, content, others)


def json_lines_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    lines = content.splitlines()
    if not lines:
        return bytes_of(rng, content, others)
    at = rng.randrange(len(lines))
    lines[at] = json_of(rng, lines[at], lines)
    return b"\n".join(lines) + b"\n"


def yaml_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """As a tree, or line by line: twice, left out, further in, with marks of YAML in its value."""
    if rng.random() < 0.5:
        try:
            return yaml.safe_dump(tree_of(rng, yaml.safe_load(content)), sort_keys=False).encode()
        except Exception:  # of a tag that was put in before
            return bytes_of(rng, content, others)
    lines = content.decode("utf-8", "replace").splitlines()
    at = rng.randrange(len(lines)) if lines else 0
    kind = rng.randrange(6)
    if kind == 0:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines or [""]))
    elif kind == 1 and lines:
        del lines[at]
    elif kind == 2 and lines:
        lines[at] = rng.choice(("  ", "\t", " ", "- ", "? ")) + lines[at]
    elif lines:
        key = lines[at].partition(":")[0]
        marks = ("@x", "*x", "&x", "!x", "%x", "`x`", "[x", "{x", "'x", '"x', "|", ">", "# x", "x: y", "<<", "<<: *x",
                 "!!python/object/apply:os.system [echo]", "!!int x", "!!timestamp x", "2001-99-99", "- x", "~", "=",
                 "&a [*a]", "!!binary é", "!!set {x}", "1:30", "010", "0x", "yes", "---", "...", "\x07")  # fmt: skip
        lines[at] = f"{key}: {rng.choice(marks)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def xml_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A tag left out, repeated or renamed, another text or encoding, an entity."""
    text = content.decode("utf-8", "replace")
    pieces = re.split(r"(<[^>]*>)", text)
    at = rng.randrange(len(pieces))
    kind = rng.randrange(6)
    if kind == 0:
        del pieces[at]
    elif kind == 1:
        pieces.insert(at, rng.choice(pieces))
    elif kind < 4:
        pieces[at] = str(rng.choice(TEXTS)) if not pieces[at].startswith("<") else rng.choice(pieces)
    elif kind == 4:
        name = rng.choice(("utf-8", "gbk", "utf-16", "latin-1", "nonsense", "ascii", "euc-jp", "utf-7"))
        pieces.insert(0, f'<?xml version="1.0" encoding="{name}"?>')
    else:
        pieces.insert(0, '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;">]>')
        pieces[-1 if rng.random() < 0.5 else len(pieces) // 2] += "&z;"
    return "".join(pieces).encode("utf-8", "surrogatepass")


def lines_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A list of names: one repeated, left out, changed, with more behind it."""
    lines = content.decode("utf-8", "replace").splitlines() or [""]
    at = rng.randrange(len(lines))
    lines[at] = rng.choice(
        ("", lines[at] * 2, f"{lines[at]}  -1", f"  {lines[at]}", f"# {lines[at]}", rng.choice(TEXTS))
    )
    if rng.random() < 0.3:
        lines.append(rng.choice(lines))
    return rng.choice(("\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass")


def table_of(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A cell changed or left out, a row or a column twice, another mark between cells or tags."""
    mark = "\t" if b"\t" in content else ","
    rows = [line.split(mark) for line in content.decode("utf-8", "replace").splitlines()] or [[""]]
    row, kind = rng.choice(rows), rng.randrange(7)
    at = rng.randrange(len(row))
    if kind < 3:
        row[at] = rng.choice(
            (*TEXTS, "0", "-1", "2", "train", '"', "cat;dog", "https://a/b.jpg", rng.choice(rng.choice(rows)))
        )
    elif kind == 3:
        del row[at]
    elif kind == 4:
        rows.insert(rng.randrange(len(rows) + 1), list(rng.choice(rows)))
    elif kind == 5:
        rows = [cells + cells[at : at + 1] for cells in rows]
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join((";" if kind == 6 else mark).join(cells) for cells in rows)
    return (text.replace("|", rng.choice(" ;,")) if rng.random() < 0.2 else text).encode("utf-8", "surrogatepass")


def _changed(rng: Random, tree):
    """One place of a tree changed."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return copy.deepcopy(rng.choice(ODD))
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, kind = rng.choice(keys), rng.randrange(8)
    if kind < 4:
        tree[key] = _changed(rng, tree[key])
    elif kind == 4:
        del tree[key]
    elif kind == 5:
        tree[key] = [tree[key]] if rng.random() < 0.5 else {"x": tree[key]}
    elif kind == 6:
        tree[key] = copy.deepcopy(tree[rng.choice(keys)])
    elif isinstance(tree, dict):
        tree[str(rng.choice(TEXTS))] = tree.pop(key)
    else:
        tree.append(copy.deepcopy(tree[key]))
    return tree
