"""Does a matrix survive being killed? ``python -m benchmarks.interruptions MATRIX [--kills 5] [--seed 0]``.

Runs a matrix twice: once undisturbed, once killed (SIGKILL) at random moments and started again. In turn the victim is
the runner, the process of a job (papermill), a notebook's kernel, a torchrun process, and everything at once, as when
the power fails. After each kill of the runner no process may be left after ten seconds. At the end the results of both
must be equal to the last byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from krt_core.lab.bench.matrix import expand, load_matrix
from krt_core.machine.home import outputs_dir, resolve
from krt_core.machine.processes import MARK
from krt_core.runs.folder import find_runs

from .torture.same import differences

VICTIMS = ("runner", "job", "kernel", "torchrun", "everything")


def start(matrix: str, folder: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "krt_core.cli", "bench", matrix, "--folder", str(folder)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def of_matrix(folder: Path) -> list[psutil.Process]:
    """Processes of the jobs of a matrix."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(str(folder)):
                found.append(process)
    return found


def is_a(kind: str, process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = " ".join(process.cmdline())
        return {
            "job": "krt_core.lab.bench.worker" in words,
            "kernel": "ipykernel_launcher" in words,
            "torchrun": "krt_core.cli train" in words,
        }.get(kind, False)
    return False


def kill(victim: str, runner: subprocess.Popen, folder: Path, rng: random.Random) -> str:
    """Kill a victim; returns which it was ("" where none of its kind is running)."""
    processes = of_matrix(folder)
    chosen = [p for p in processes if is_a(victim, p)]
    if victim == "everything":
        chosen = processes
    elif victim != "runner":
        chosen = rng.sample(chosen, min(1, len(chosen)))
    if victim in ("runner", "everything"):
        runner.kill()
    for process in chosen:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return victim if chosen or victim == "runner" else ""


def left_after(folder: Path, seconds: float = 10.0) -> float:
    """Seconds until no process of the matrix is left; RuntimeError if that takes longer than ``seconds``."""
    began = time.monotonic()
    while left := of_matrix(folder):
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"still there after {seconds} s: {[p.cmdline() for p in left]}")
        time.sleep(0.1)
    return time.monotonic() - began


def apart(one: Path, two: Path) -> dict[str, list[str]]:
    """Of every run that is finished in either folder of a matrix, in what it differs between the two."""
    one, two = resolve(one), resolve(two)
    runs = [{run.folder.relative_to(folder) for run in find_runs(folder) if run.done} for folder in (one, two)]
    found = {str(name): ["it is finished in one alone"] for name in runs[0] ^ runs[1]}
    return found | {str(name): differences(one / name, two / name) for name in sorted(runs[0] & runs[1])}


def survive(
    matrix: str, folder: Path, victims: tuple[str, ...], pause: tuple[float, float], rng: random.Random
) -> list[str]:
    """Run a matrix, killing the victims one after the other, each a random time (from, to) after the last start."""
    done, log = [], folder.with_suffix(".log")
    runner = start(matrix, folder, log)
    for victim in victims:
        wait = rng.uniform(*pause)
        time.sleep(wait)
        if runner.poll() is not None:
            break
        if killed := kill(victim, runner, folder, rng):
            done.append(killed)
        if runner.poll() is not None or killed in ("runner", "everything"):
            runner.wait()
            print(f"{killed} killed after {wait:.1f} s; nothing left after {left_after(folder):.1f} s", flush=True)
            runner = start(matrix, folder, log)
        else:
            print(f"{killed or 'no ' + victim} killed after {wait:.1f} s", flush=True)
    while runner.wait() != 0:  # a job killed for the third time is left to the next start
        runner = start(matrix, folder, log)
        done.append("another start")
        if len(done) > 3 * len(victims) + 3:
            raise RuntimeError(f"the matrix does not end well: see {log}")
    return done


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("matrix")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, nargs=2, default=(12.0, 40.0), help="seconds between start and kill")
    parser.add_argument("--folder", help="holds both results; default outputs/interruptions")
    options = parser.parse_args(arguments)
    folder = Path(options.folder or outputs_dir() / "interruptions").resolve()
    report = interrupt(options.matrix, folder, options.kills, options.seed, tuple(options.pause))
    print(json.dumps(report))
    return 0 if report["equal"] else 1


def interrupt(matrix: str, folder: Path, kills: int, seed: int, pause: tuple[float, float]) -> dict[str, Any]:
    """Run a matrix undisturbed and killed: which ``victims`` there were, how many ``runs`` of how many there are,
    whether they are ``equal``, and in what they are ``apart``."""
    folder.mkdir(parents=True, exist_ok=True)
    torchrun = load_matrix(matrix).gpus_per_run > 1
    kinds = [victim for victim in VICTIMS if torchrun or victim != "torchrun"]
    victims = tuple(kinds[i % len(kinds)] for i in range(kills))
    if start(matrix, folder / "plain", folder / "plain.log").wait():
        raise RuntimeError(f"the matrix does not even run undisturbed: see {folder / 'plain.log'}")
    killed = survive(matrix, folder / "killed", victims, pause, random.Random(seed))
    runs = apart(folder / "plain", folder / "killed")
    trainings = sum(job.trains for job in expand(load_matrix(matrix)))
    differing = {name: why for name, why in runs.items() if why}
    equal = not differing and len(runs) == trainings
    return {"victims": killed, "runs": len(runs), "of": trainings, "equal": equal, "apart": differing}


if __name__ == "__main__":
    sys.exit(main())
