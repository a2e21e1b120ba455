"""Training on all labels: the upper bounds.

``joint`` trains once, in the first session, on all labels of all classes; after that the sessions only widen the set of
classes it is scored on. It therefore has no forgetting on a fixed test set, by construction.

``cumulative`` trains in every session anew from the first weights, at the rate of a first session, on all images shown
so far with the labels of all classes so far: what could be had after each session if nothing had to be thrown away. The
network has one head for all these classes. Where ``model.freeze=first`` the backbone is that of the first session.
Nothing is replayed, whatever ``replay`` says: everything is there.
"""

from __future__ import annotations

from typing import ClassVar

from ..protocol import Sees
from .base import Method


class Joint(Method):
    paper = "none: the upper bound"
    sees: ClassVar[Sees] = "all"
    replays = False
    knows_unknown = True


class Cumulative(Method):
    sees: ClassVar[Sees] = "seen"
    paper = "none: the upper bound of each session"
    stores = "all images"
    replays = False
    knows_unknown = True
