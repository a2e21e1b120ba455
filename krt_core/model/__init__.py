"""Backbone, incremental cross-attention, heads, and reading of weights."""

from .network import Network, Output

__all__ = ["Network", "Output"]
