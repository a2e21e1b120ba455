"""What a method does to the loss: the contract in ``base``, then a file per method.

`krt_core.options` says which there are; one outside this package goes by its dotted place, ``mylab.lwf:LwF``.
"""

from ..data.dataset import MultiLabelDataset
from ..errors import ConfigError
from ..options import METHODS as PLACES
from ..options import method_class
from .base import Context, Method, is_oracle

METHODS: dict[str, type[Method]] = {name: method_class(name) for name in PLACES}


def class_of(name: str) -> type[Method]:
    """The class of the method of a run that is only looked at; plain `Method` where one outside the package is gone."""
    try:
        return method_class(name)
    except ConfigError:
        return Method


def check_knows(name: str, train_set: MultiLabelDataset) -> None:
    """ConfigError where training labels are unknown and a method does not say that it can do without them."""
    if train_set.unknown is not None and not vars(method_class(name)).get("knows_unknown"):
        raise ConfigError(
            f"method {name}: {train_set.unknown.sum()} training labels of {train_set.source or train_set.root} are "
            "unknown, -1 in a batch, and the method does not say that it leaves them out. Set knows_unknown = True in "
            "its class if it does."
        )


__all__ = ["METHODS", "Context", "Method", "check_knows", "class_of", "is_oracle", "method_class"]
