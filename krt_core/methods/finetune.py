"""Fine-tuning: new data only, nothing protects the old classes. The lower bound (with replay: experience replay)."""

from __future__ import annotations

from .base import Method


class Finetune(Method):
    """Everything is inherited: the plain loss on the session's labels."""
