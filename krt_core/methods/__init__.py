"""Registry of methods. A new method is one file with a `Method` subclass, and one line here."""

from .base import Context, Method
from .finetune import Finetune
from .joint import Joint
from .krt import KRT
from .pod import POD

METHODS: dict[str, type[Method]] = {"krt": KRT, "pod": POD, "finetune": Finetune, "joint": Joint}

__all__ = ["METHODS", "Context", "Method"]
