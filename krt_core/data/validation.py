"""Which training images are held out for validation: the same for every method, seed and class order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def held_out(
    ids: Sequence[str] | np.ndarray, labels: np.ndarray, share: float, salt: str = "", steady: bool = False
) -> np.ndarray:
    """(n,) bool: a share of the images in which each class has its share too, as nearly as whole images allow.

    ids (n,) of the images, labels (n, C) bool. Iterative stratification (Sechidis et al., ECML PKDD 2011) with two
    parts: the images of the class with the fewest undecided ones are given out first, each to the part that lacks more
    of that class. A hash of the id stands in for chance, so the order of the rows does not matter, and labels are
    looked at as a whole, so an image that comes back in several sessions is held out in all of them or in none. Every
    class keeps an image to learn from.

    salt goes into the hash, so that each chooses others. steady: of the images of a class those with the least hashes
    are held out, in place of every so many. The shares are the same; but where images come to those that were there,
    few of these change sides (that none does, and every class has its share, cannot be had together).
    """
    digests = [hashlib.sha256(f"{salt}{one}".encode("utf-8", "surrogatepass")).digest()[:8] for one in ids]
    order = np.argsort(np.array([int.from_bytes(one, "big") for one in digests], np.uint64), kind="stable")
    shown = np.ascontiguousarray(labels[order])  # from here on in the order of the hashes
    counts, size = shown.sum(axis=0), len(shown)
    lacks_held = np.minimum(share * counts, np.maximum(counts - 1, 0))  # images of each class that a part still lacks
    lacks_kept = counts - lacks_held
    held, undecided, left = np.zeros(size, bool), np.ones(size, bool), counts.copy()
    while left.any():
        rarest = int(np.where(left > 0, left, size + 1).argmin())
        rows = np.flatnonzero(undecided & shown[:, rarest])
        lacks = share * size - held.sum(), (1 - share) * size - (~undecided & ~held).sum()
        mine = _given_out(len(rows), (lacks_held[rarest], lacks_kept[rarest]), lacks)
        mine = np.arange(len(rows)) < mine.sum() if steady else mine
        held[rows[mine]], undecided[rows] = True, False
        taken = shown[rows[mine]].sum(axis=0)
        given = shown[rows].sum(axis=0)
        lacks_held, lacks_kept, left = lacks_held - taken, lacks_kept - (given - taken), left - given
    rows = np.flatnonzero(undecided)  # without a label
    held[rows[: round(share * len(rows))]] = True
    out = np.zeros(size, bool)
    out[order] = held
    return out


def _given_out(count: int, lacks: tuple[float, float], in_all: tuple[float, float]) -> np.ndarray:
    """(count,) bool: which of the images of a class go to the held ones, by what the held and the kept ones lack of the
    class, and where that is equal, of all images."""
    (held, kept), (all_held, all_kept), mine = lacks, in_all, np.zeros(count, bool)
    for place in range(count):
        more = held - kept if abs(held - kept) > 1e-9 else all_held - all_kept
        if more > 0:
            mine[place], held, all_held = True, held - 1, all_held - 1
        else:
            kept, all_kept = kept - 1, all_kept - 1
    return mine
