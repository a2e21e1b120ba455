"""Two folders of results, compared to the last byte. What two equal runs may differ in is named here alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEASURED = ("seconds", "images_per_second", "peak_memory_mb")  # keys of JSON files: measured, not computed
# Files that tell of starts and of the time: what was said, how far it was, on what and when it was begun.
PERSONAL = ("log.txt", "progress.json", "environment.json", "README.md", "output.txt")
LOCKS = (".lock", ".rows")  # empty files that are locked


def differences(one: Path, two: Path) -> list[str]:
    """In what two folders differ, in words; empty where they are equal. Every file counts, also one left behind."""
    files = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (one, two)]
    own = [{name for name in names if not name.endswith(LOCKS)} for names in files]
    found = [f"{name} is in {one} alone" for name in sorted(own[0] - own[1])]
    found += [f"{name} is in {two} alone" for name in sorted(own[1] - own[0])]
    for name in sorted(own[0] & own[1]):
        if Path(name).name not in PERSONAL and (why := _differ(one / name, two / name)):
            found.append(f"{name}: {why}")
    return found


def _differ(one: Path, two: Path) -> str:
    a, b = one.read_bytes(), two.read_bytes()
    if a == b:
        return ""
    if one.suffix in (".json", ".jsonl") or one.name == "DONE":
        return _apart(*([_computed(json.loads(line)) for line in _documents(one, text)] for text in (a, b)))
    places = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    first = f", the first at {places[0]}" if places else ""
    return f"{len(a)} and {len(b)} bytes, {len(places)} differ{first}"


def _documents(path: Path, text: bytes) -> list[bytes]:
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _computed(value: Any) -> Any:
    """Without what is measured."""
    if isinstance(value, dict):
        return {key: _computed(item) for key, item in value.items() if key not in MEASURED}
    return [_computed(item) for item in value] if isinstance(value, list) else value


def _apart(one: Any, two: Any, place: str = "") -> str:
    """Where two JSON values part first, and how; empty where they are equal."""
    if isinstance(one, dict) and isinstance(two, dict):
        if alone := one.keys() ^ two.keys():
            return f"{place}.{min(alone)} is in one alone: {(one | two)[min(alone)]}".lstrip(".")
        return next((why for key in one if (why := _apart(one[key], two[key], f"{place}.{key}"))), "")
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        parts = enumerate(zip(one, two, strict=True))
        return next((why for i, (x, y) in parts if (why := _apart(x, y, f"{place}.{i}"))), "")
    return "" if one == two else f"{place.lstrip('.')}: {str(one)[:200]} and {str(two)[:200]}"
