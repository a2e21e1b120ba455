"""Joint training: all labels of all classes at once, in one training. The upper bound.

It trains in the first session only, on every training image; after that the sessions only widen the set of classes it
is scored on. ``joint`` therefore has no forgetting on a fixed test set, by construction.
"""

from __future__ import annotations

from .base import Method


class Joint(Method):
    sees = "all"
    replays = False
    knows_unknown = True
