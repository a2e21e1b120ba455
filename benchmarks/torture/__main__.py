"""``python -m benchmarks.torture --minutes 30 --seed 0``, see the package."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path

from krt_core.machine.home import outputs_dir

from . import changes, faults, halfway, kills, matrix
from .frame import Attempt, Tally, once, told, torture

ATTEMPTS = [
    Attempt("train", kills.trained, share=3),
    Attempt("often", kills.often, share=2),
    Attempt("closed", kills.closed),
    Attempt("still", kills.still),
    Attempt("extend", kills.extended),
    Attempt("several", kills.several, share=2),
    Attempt("halfway", halfway.trained, share=3),
    Attempt("halfway-extend", halfway.extended),
    Attempt("bench", matrix.benched, share=2),
    Attempt("full", faults.full),
    Attempt("refused", faults.refused),
    Attempt("read-only", faults.read_only),
    Attempt("clock", faults.jumping),
    Attempt("numbers", faults.numbers),
    Attempt("unreadable", faults.unreadable),
    Attempt("locks", faults.unlocked, share=0.5),
    Attempt("shm", faults.shared_memory, share=0.5),
    Attempt("data", changes.data),
    Attempt("damaged", changes.damaged, share=2),
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    kinds = [attempt.kind for attempt in ATTEMPTS]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="of these kinds alone")
    parser.add_argument("--one", type=int, metavar="SEED", help="one attempt of each kind, by its seed, and no more")
    parser.add_argument("--folder", help="where it works, and keeps what went wrong; default outputs/torture")
    options = parser.parse_args(arguments)
    folder = Path(options.folder or outputs_dir() / "torture").resolve()
    chosen = [attempt for attempt in ATTEMPTS if attempt.kind in options.kinds]
    say, began = functools.partial(print, flush=True), time.monotonic()
    if options.one is None:
        tallies = torture(chosen, folder, 60 * options.minutes, options.seed, say)
    else:
        tallies = {attempt.kind: Tally() for attempt in chosen}
        for attempt in chosen:
            once(attempt, options.one, folder, tallies[attempt.kind], say)
    say(f"\n{told(tallies)}\n{time.monotonic() - began:.0f} s, seed {options.seed}")
    return int(any(tally.lost for tally in tallies.values()))


if __name__ == "__main__":
    os.nice(10)  # whatever else runs here goes first
    sys.exit(main())
