"""What a method does to the loss: the contract in ``base``, then a file per method.

`krt_core.options` says which there are; one outside this package goes by its dotted place, ``mylab.lwf:LwF``.
"""

from ..errors import ConfigError
from ..options import METHODS as PLACES
from ..options import method_class
from .base import Context, Method

METHODS: dict[str, type[Method]] = {name: method_class(name) for name in PLACES}


def class_of(name: str) -> type[Method]:
    """The class of the method of a run that is only looked at; plain `Method` where one outside the package is gone."""
    try:
        return method_class(name)
    except ConfigError:
        return Method


__all__ = ["METHODS", "Context", "Method", "class_of", "method_class"]
