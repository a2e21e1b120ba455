"""The numbers of a whole run, from what its sessions left."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.cpu import falling_order
from ..metrics import precision_in_order
from ..protocol import Protocol


def summary_of(states: list[dict[str, Any]], lost: dict[str, float]) -> dict[str, Any]:
    """Means over the sessions, what was forgotten by every definition, and what it took.

    states: of every session, as in state.json; lost: `Run.forgetting`.
    """
    curve, last = np.array([state["metrics"]["mAP_seen"] for state in states]), states[-1]["metrics"]
    return {
        "average_mAP": round(float(curve.mean()), 4),
        "last_mAP": round(float(curve[-1]), 4),
        "forgetting": round(lost.get("max_class_fixed", 0.0), 4),
        "forgetting_definitions": {key: round(value, 4) for key, value in lost.items()},
        "mAP_per_session": curve.round(4).tolist(),
        **{key: round(last[key], 4) for key in ("CP", "CR", "CF1", "OP", "OR", "OF1")},
        "seconds": round(sum(state["seconds"] for state in states), 1),
        "peak_memory_mb": max((s["peak_memory_mb"] for s in states if "peak_memory_mb" in s), default=None),
        "exemplars": sum(len(ids) for ids in states[-1]["exemplar_ids"]),
        "weights": states[-1]["weights"],
    }


def ap_tables(protocol: Protocol, scores: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """AP (sessions, classes) by pool of test images from the scores (n, C seen) and labels (n, C) after each session.

    ``fixed``: the whole test set after every session; ``seen``: images with a class seen so far; ``own``: images with a
    class of the scored class's own session. NaN where a class is not yet learned.
    """
    tables = {pool: np.full((len(scores), len(protocol.classes)), np.nan) for pool in ("fixed", "seen", "own")}
    for t, (session, (s, y)) in enumerate(zip(protocol.sessions, scores, strict=False)):
        columns, present = np.ascontiguousarray(s.T), np.ascontiguousarray(y.T)
        seen = np.asarray(present[: session.stop].any(axis=0))
        for earlier in protocol.sessions[: t + 1]:
            own = np.asarray(present[earlier.columns].any(axis=0))
            for c in range(earlier.start, earlier.stop):
                order = falling_order(columns[c])  # sorted once for all pools
                ranked = present[c][order]
                for pool, chosen in (("fixed", slice(None)), ("seen", seen[order]), ("own", own[order])):
                    tables[pool][t, c] = precision_in_order(ranked[chosen])
    return tables
