"""A matrix of `krt bench` whose runner, jobs and kernels are killed in turn (`benchmarks.interruptions`)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from random import Random
from unittest.mock import patch

import yaml

from benchmarks.interruptions import interrupt

from .frame import Lost
from .world import TRAINED, some

PAUSE = 5.0, 15.0  # seconds between a start and the next kill


def benched(seed: int, folder: Path) -> Counter[str]:
    """Two runs, each in a notebook of its own, and five kills."""
    rng = Random(f"bench {seed}")
    some(TRAINED, folder, seed, rng)
    (matrix := folder / "matrix.yaml").write_text(
        yaml.safe_dump({"presets": ["experiment.yaml"], "seeds": [0, 1], "analysis": [], "workers": 2}),
        encoding="utf-8",
    )
    with patch.dict(os.environ, OMP_NUM_THREADS="1", KRT_HOME=str(folder), KRT_SLOTS=str(folder / "slots")):
        found = interrupt(str(matrix), folder / "both", kills=5, seed=seed, pause=PAUSE)
    if not found["equal"]:
        raise Lost(f"{found['runs']} of {found['of']} runs are there; {found['apart']}")
    return Counter(kills=len(found["victims"])) + Counter(f"of {victim}" for victim in found["victims"])
