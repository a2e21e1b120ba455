"""Exemplars: which images are kept for replay, and what may be seen of their labels (docs/replay.md)."""

from ..config import Replay
from .base import Memory
from .ocdm import OCDM
from .prs import PRS
from .ranked import Ranked, herding

KINDS: dict[str, type[Memory]] = {"herding": Ranked, "random": Ranked, "prs": PRS, "ocdm": OCDM}


def memory_of(replay: Replay) -> Memory:
    """An empty memory of the kind that ``replay.selection`` names."""
    return KINDS[replay.selection](replay)
