"""A command of ``krt``: its name, its arguments and the function that answers it, before anything heavy is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def number(least: int) -> Callable[[str], int]:
    """For an argument that is a whole number of at least so much."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, found {text!r}")
        return value

    return read


Argument = tuple[tuple[str, ...], dict[str, Any]]
COMMANDS: list[tuple[str, str, tuple[Argument, ...], Callable[[argparse.Namespace], int | None]]] = []


def arg(*names: str, **about: Any) -> Argument:
    return names, about


def command(name: str, about: str, *arguments: Argument) -> Callable:
    """Make a function a command with these arguments."""

    def add(function: Callable) -> Callable:
        COMMANDS.append((name, about, arguments, function))
        return function

    return add
