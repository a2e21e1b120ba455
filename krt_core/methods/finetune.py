"""Fine-tuning: new data only, nothing protects the old classes. The lower bound (with replay: experience replay).

It teaches that old classes are absent wherever their labels are hidden. Masked fine-tuning does not: its loss is on
what a session shows alone.
"""

from __future__ import annotations

from ..config import Experiment
from ..options import FinetuneOptions
from .base import Method


class Finetune(Method):
    """The plain loss on the session's labels."""

    Options = FinetuneOptions
    paper = "none: the lower bound"
    knows_unknown = True

    def __init__(self, options: FinetuneOptions, experiment: Experiment):
        super().__init__(options, experiment)
        self.hidden = -1 if options.old == "unknown" else 0


class Masked(Method):
    """``finetune.old=unknown`` by a name of its own."""

    paper = "none: the honest lower bound"
    knows_unknown = True
    hidden = -1
