"""``python -m benchmarks.endurance [sessions table runs]``, see the package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from krt_core.machine.device import choose_runtime, environment
from krt_core.machine.home import atomic_write, outputs_dir

from . import runs, sessions, table
from .figure import draw

PARTS = ("sessions", "table", "runs")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--methods", nargs="+", choices=list(sessions.METHODS), default=list(sessions.METHODS))
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--increment", type=int, default=5, help="classes of a session")
    parser.add_argument(
        "--images", type=int, nargs=2, default=(10, 2), help="of each class, to learn from and for tests"
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument(
        "--folder", help="where it works; what was measured stays in result.json; default outputs/endurance"
    )
    parser.add_argument("--figure", metavar="FILE", help="draw the sessions that were measured, as PNG or PDF")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {*PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    folder = Path(options.folder or outputs_dir() / "endurance").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "result.json"
    result: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    result["machine"] = {key: value for key, value in environment(choose_runtime("auto")).items() if key != "host"}

    def keep() -> None:
        atomic_write(place, json.dumps(result, indent=1))

    faults: list[str] = []
    if "sessions" in options.parts:
        for method in options.methods:
            found = sessions.measure(folder, options.sessions, options.increment, *options.images, method)
            result.setdefault("sessions", {})[method] = found
            faults += sessions.judged(found)
            keep()
        rows = [sessions.row(found) for found in result["sessions"].values()]
        print(pd.DataFrame(rows).set_index("method").T.round(3).to_string())
        print(
            pd.DataFrame({found["method"]: sessions.parts(found) for found in result["sessions"].values()}).to_string()
        )
    if "table" in options.parts:
        result["table"] = found = table.measure(folder, options.rows)
        faults += table.judged(found, sessions.LARGEST_MB)
        keep()
        print(pd.DataFrame(found["steps"]).round(2).to_string(index=False))
        print(
            pd.DataFrame({key: value for key, value in found.items() if key.startswith("train")}).T.round(1).to_string()
        )
        print("\n".join(f"{what}: {said}" for what, said in found["faults"].items()))
    if "runs" in options.parts:
        result["runs"] = found = runs.measure(folder, options.runs)
        keep()
        print(pd.DataFrame(found["calls"]).round(2).to_string(index=False))
        print(pd.DataFrame(found["commands"]).T.round(1).to_string())
    if options.figure and "sessions" in result:
        draw(list(result["sessions"].values()), Path(options.figure))
    print("\n".join(["", "faults:", *faults] if faults else ["", "nothing grows faster than it may"]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
