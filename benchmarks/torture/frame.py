"""The frame: attempts by turns until the time is over, counted, and what went wrong kept and named."""

from __future__ import annotations

import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Lost(Exception):
    """Something that was finished is gone, or is not what it would have been."""


@dataclass(frozen=True)
class Attempt:
    """A kind of attempt. ``do(seed, folder)`` makes one in an empty folder, says how much of what it has tried, as in
    {"kills": 7}, and raises `Lost` (or whatever else) where it did not end well."""

    kind: str
    do: Callable[[int, Path], Counter[str]]
    share: float = 1.0  # of the time, against the other kinds


@dataclass
class Tally:
    """What was tried of one kind so far."""

    seeds: list[int] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def torture(
    attempts: Sequence[Attempt], folder: Path, seconds: float, seed: int, say: Callable[[str], None] = print
) -> dict[str, Tally]:
    """Try kinds by turns, each its share of the time; every kind at least once. The n-th attempt of a kind has the seed
    1000 · seed + n."""
    tallies, began = {attempt.kind: Tally() for attempt in attempts}, time.monotonic()
    while True:
        over = time.monotonic() - began > seconds
        waiting = [a for a in attempts if not tallies[a.kind].seeds] if over else list(attempts)
        if not waiting:
            return tallies
        turn = min(waiting, key=lambda a: (tallies[a.kind].seconds / a.share, len(tallies[a.kind].seeds)))
        tally = tallies[turn.kind]
        once(turn, 1000 * seed + len(tally.seeds), folder, tally, say)


def once(attempt: Attempt, seed: int, folder: Path, tally: Tally, say: Callable[[str], None] = print) -> None:
    """One attempt, added to the tally; its folder is kept where it did not end well."""
    own, began = folder / f"{attempt.kind}-{seed}", time.monotonic()
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    tally.seeds.append(seed)
    try:
        tried = attempt.do(seed, own)
    except Exception as error:  # whatever an attempt finds
        text = str(error) if isinstance(error, Lost) else traceback.format_exc()
        tally.lost.append(f"{attempt.kind}, --kinds {attempt.kind} --one {seed}: {text}\n  its files: {own}")
        say(f"LOST {tally.lost[-1]}")
    else:
        tally.tried += tried
        shutil.rmtree(own, ignore_errors=True)
        say(f"{attempt.kind} {seed}: {_listed(tried)}; {time.monotonic() - began:.0f} s")
    tally.seconds += time.monotonic() - began


def told(tallies: dict[str, Tally]) -> str:
    """The table at the end."""
    lines, every = [], Counter()
    for kind, tally in tallies.items():
        every += tally.tried
        seeds = f"seeds {tally.seeds[0]} to {tally.seeds[-1]}" if tally.seeds else "no seed"
        lines.append(f"{kind:<14} {len(tally.seeds)} attempts ({seeds}), {tally.seconds:.0f} s: {_listed(tally.tried)}")
    lost = [text for tally in tallies.values() for text in tally.lost]
    lines.append(f"in all: {_listed(every)}")
    lines.append("lost: " + ("nothing" if not lost else f"{len(lost)} attempts\n" + "\n".join(lost)))
    return "\n".join(lines)


def _listed(tried: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(tried.items())) or "nothing"
