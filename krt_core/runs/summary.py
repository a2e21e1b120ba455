"""The numbers of a whole run, from what its sessions left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data.grown import arrived_of
from ..machine.cpu import falling_order
from ..metrics import precision_in_order
from ..protocol import Protocol
from .scores import POOLS

SHARES = ("CP", "CR", "CF1", "OP", "OR", "OF1")  # of the last session
STORED = ("exemplar_bytes", "method_bytes")  # of the files of the exemplars, and of the tensors that the method keeps


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
        **{key: round(last[key], 4) for key in SHARES},
        "seconds": round(sum(state["seconds"] for state in states), 1),
        "peak_memory_mb": max((s["peak_memory_mb"] for s in states if "peak_memory_mb" in s), default=None),
        "exemplars": sum(len(ids) for ids in states[-1]["exemplar_ids"]),
        **{key: states[-1][key] for key in STORED if key in states[-1]},
        **({"oracle": True} if any(state.get("oracle") for state in states) else {}),
        "weights": states[-1]["weights"],
    }


def ap_of_session(
    protocol: Protocol, session: int, scores: np.ndarray, labels: np.ndarray, ids: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """AP (C seen,) after a session by pool of test images; scores (n, ≥ C seen), labels (n, C), ids (n,).

    ``fixed``: the whole test set after every session; ``seen``: images with a class seen so far; ``own``: images with a
    class of the scored class's own session. Of a run that has grown (then ids are needed), ``fixed`` is the test images
    that were there when a class was learned, and the AP of a class that none of them shows, or all, is NaN; on ``own``
    that of one that none shows.
    """
    stop = protocol.sessions[session].stop
    found = {pool: np.zeros(stop) for pool in POOLS}
    arrived = arrived_of(ids) if protocol.added and ids is not None else None
    present = np.ascontiguousarray(labels.T)
    seen = np.asarray((present[:stop] > 0).any(axis=0))
    for earlier in protocol.sessions[: session + 1]:
        own = np.asarray((present[earlier.columns] > 0).any(axis=0))
        for c in range(earlier.start, earlier.stop):
            order = falling_order(np.ascontiguousarray(scores[:, c]))  # sorted once for all pools
            ranked = present[c][order]
            fixed = slice(None) if arrived is None else (arrived <= protocol.arrival(earlier.index))[order]
            for pool, chosen in (("fixed", fixed), ("seen", seen[order]), ("own", own[order])):
                of = ranked[chosen]
                told = (of > 0).any() and (pool == "own" or (of == 0).any())
                found[pool][c] = np.nan if arrived is not None and not told else precision_in_order(of)
    return found


def tables_of(protocol: Protocol, sessions: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`ap_of_session` of each session so far → AP (sessions, classes) by pool, NaN where a class is not yet learned."""
    tables: dict[str, list[np.ndarray]] = {pool: [] for pool in POOLS}
    for found in sessions:
        for pool, ap in found.items():
            row = np.full(len(protocol.classes), np.nan)
            row[: len(ap)] = ap
            tables[pool].append(row)
    return {pool: np.array(rows).reshape(-1, len(protocol.classes)) for pool, rows in tables.items()}


def ap_tables(protocol: Protocol, scores: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """AP (sessions, classes) by pool from the scores (n, C seen) and labels (n, C) after each session."""
    return tables_of(protocol, (ap_of_session(protocol, t, s, y) for t, (s, y) in enumerate(scores)))
