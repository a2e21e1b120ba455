"""Keys of older versions, which presets and run folders may still have."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError

# key → its default, and what says the same today; empty: nothing reads it any more
RETIRED: dict[str, tuple[Any, str]] = {
    "train.augment_by": ("batch", ""),  # images are augmented one by one whatever it says
    "data.holdout": (0.0, "data.validation={} data.test=validation"),  # which holds out other images
}


def retire(content: dict[str, Any], where: str, stored: bool) -> tuple[tuple[str, Any], ...]:
    """Take keys of older versions out of their sections; those that were not at their default still name a run.

    stored: of a run folder; in anything else ConfigError says what to set instead.
    """
    found = []
    for dotted, (default, today) in RETIRED.items():
        section, key = dotted.split(".")
        if isinstance(content.get(section), dict) and key in content[section]:
            content[section] = dict(content[section])
            if (value := content[section].pop(key)) != default:
                if today and not stored:
                    raise ConfigError(f"{where}: {dotted} is no more: set {today.format(value)}.")
                found.append((dotted, value))
    return tuple(found)
