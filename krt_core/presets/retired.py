"""Keys of older versions, which presets and run folders may still have."""

from __future__ import annotations

from typing import Any

RETIRED = {"train.augment_by": "batch"}  # images are augmented one by one whatever it says


def retire(content: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Take keys of older versions out of their sections; those that were not at their default still name a run."""
    found = []
    for dotted, default in RETIRED.items():
        section, key = dotted.split(".")
        if isinstance(content.get(section), dict) and key in content[section]:
            content[section] = dict(content[section])
            if (value := content[section].pop(key)) != default:
                found.append((dotted, value))
    return tuple(found)
