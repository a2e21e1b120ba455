"""What a GPU does for training, within a time: ``python -m benchmarks.gpu [--tests] [--seconds 480] [--quick] ...``.

Writes gpu.json and gpu.log into a folder (outputs/gpu), the JSON anew after each measurement; needs no network and no
data. A measurement that fails leaves its error there, and the next one begins; what there is no time for is listed.
``--tests`` first runs what of the tests needs a GPU (`make gpu`). ``--device cpu --quick`` rehearses all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from krt_core.machine.device import Runtime, choose_runtime, environment
from krt_core.machine.home import atomic_write

from . import gpu_loop, gpu_step

ROOT = Path(__file__).parents[1]
LIMIT = 100.0  # seconds that one measurement may take
FOR_TESTS = 0.5  # share of the time
OUTCOME = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


@dataclass
class Look:
    """One start of the benchmark."""

    runtime: Runtime
    folder: Path
    began: float  # seconds since the epoch
    seconds: float  # to be done in
    quick: bool
    result: dict[str, Any] = field(default_factory=lambda: {"measured": {}, "errors": {}, "left_out": []})

    @property
    def left(self) -> float:
        return self.began + self.seconds - time.time()

    @property
    def backbones(self) -> tuple[str, str]:
        return ("resnet10t", "test_resnet") if self.quick else ("tresnet_m", "tf_efficientnet_lite0")

    @property
    def size(self) -> int:
        """Side of the images, pixels."""
        return 64 if self.quick else 224

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to try, the next one where the memory does not hold the one before."""
        return (8,) if self.quick else (128, 64, 32)

    @property
    def repeats(self) -> int:
        return 2 if self.quick else 7

    def say(self, text: str) -> None:
        print(text, flush=True)
        with (self.folder / "gpu.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def save(self) -> None:
        self.result["took_seconds"] = round(time.time() - self.began, 1)
        atomic_write(self.folder / "gpu.json", json.dumps(self.result, indent=1) + "\n")


# ---- the measurements ----


def machine(look: Look) -> dict:
    about: dict[str, Any] = {k: v for k, v in environment(look.runtime).items() if k != "host"}
    if look.runtime.device.type == "cuda":
        of = torch.cuda.get_device_properties(look.runtime.device)
        about["gpus"] = torch.cuda.device_count()
        about["gpu"] = {
            "name": of.name,
            "memory_gb": round(of.total_memory / 1e9, 1),
            "processors": of.multi_processor_count,
        }
        about["capability"], about["built_for"] = f"{of.major}.{of.minor}", torch.cuda.get_arch_list()
        about["cudnn"] = torch.backends.cudnn.version()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run(
                ["nvidia-smi"], capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
            )
            about["nvidia_smi"] = asked.stdout.splitlines()
    return about


def tests(look: Look) -> dict:
    """What of the tests needs a GPU; on the CPU, what of them can do without."""
    of = "gpu" if look.runtime.device.type == "cuda" else "not slow"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-rs", "-p", "no:cacheprovider", "-o",
               "addopts=--strict-markers", "-m", of]  # fmt: skip
    until = time.time() + FOR_TESTS * look.left
    outcomes: dict[str, str] = {}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        start_new_session=True,
    )  # fmt: skip
    with _after(until - time.time(), lambda: os.killpg(process.pid, signal.SIGKILL)):
        for line in process.stdout or ():
            look.say(line.rstrip())
            if match := OUTCOME.match(line):
                outcomes[match[1]] = match[2]
        process.wait()
    counts = {word: list(outcomes.values()).count(word) for word in sorted(set(outcomes.values()))}
    bad = [name for name, word in outcomes.items() if word in ("FAILED", "ERROR", "XPASS")]
    return {"counts": counts, "failed": bad, "ended": process.returncode >= 0, "exit_code": process.returncode}


def step(look: Look, backbone: str, sessions: int) -> dict:
    """A training step and an evaluation, published and ours, and what they make of COCO B0-C10."""
    peak = look.result["measured"].get("peak", {}).get("flops", {}).get("auto")
    work = partial(
        gpu_step.measure, backbone, sessions, runtime=look.runtime, best=peak, repeats=look.repeats, size=look.size
    )
    row = _largest(look, lambda batch: work(batch=batch))
    rows = [row, *(r for name, r in look.result["measured"].items() if name.startswith(f"step {backbone} "))]
    look.result.setdefault("hours", {})[backbone] = gpu_step.projected_hours(rows)
    look.say(f"{backbone}: hours of COCO B0-C10 without decoding: {json.dumps(look.result['hours'][backbone])}")
    return row


def profile(look: Look) -> dict:
    trace = str(look.folder / "trace.json") if not look.quick else None
    name = look.backbones[0]
    return {name: gpu_step.where_time_goes(name, look.batches[0], look.runtime, look.size, trace)}


def loop(look: Look, precision: str = "auto", compile: bool = False) -> dict:
    """Epochs of the learning loop, images prepared by threads beside it."""
    sessions = 2 if look.quick else 8
    work = partial(
        gpu_loop.epochs,
        look.runtime,
        look.backbones[0],
        sessions=sessions,
        size=look.size,
        precision=precision,
        compile=compile,
    )
    return _largest(look, lambda batch: work(batch=batch, steps=3 if look.quick else 12))


def measurements(look: Look, with_tests: bool) -> dict[str, Callable[[], dict]]:
    """By name, what tells most first."""
    first, second = look.backbones
    threads, between = ((1, 2), ()) if look.quick else ((1, 2, 4, 8, 16), (4, 2))
    return {
        "machine": lambda: machine(look),
        "peak": lambda: gpu_loop.peaks(look.runtime, look.repeats),
        **({"tests": lambda: tests(look)} if with_tests else {}),
        f"step {first} 8": lambda: step(look, first, 8),
        "loop": lambda: loop(look),
        "input": lambda: gpu_loop.inputs(look.runtime, threads, look.size, 64 if look.quick else 1024),
        f"step {first} 1": lambda: step(look, first, 1),
        "processes": lambda: gpu_loop.together(look.runtime, look.backbones[0], look.batches[0], look.size),
        f"step {second} 8": lambda: step(look, second, 8),
        "loop float16": lambda: loop(look, "float16"),
        "profile": lambda: profile(look),
        **{f"step {first} {n}": partial(step, look, first, n) for n in between},
        f"step {second} 1": lambda: step(look, second, 1),
        "loop float32": lambda: loop(look, "float32"),
        **({} if look.quick else {"loop compiled": lambda: loop(look, compile=True)}),
    }


# ---- one after the other ----


def run(look: Look, plan: dict[str, Callable[[], dict]]) -> bool:
    """Measure what is not there yet; False if the GPU has to be started anew for the rest."""
    measured, errors = look.result["measured"], look.result["errors"]
    for name in [name for name in plan if name not in measured and name not in errors]:
        if look.left < 5:
            break
        look.say(f"== {name} ({look.left:.0f} s left)")
        began = time.time()
        limit = look.left if name == "tests" else min(LIMIT, look.left)
        try:
            with _after(limit, _too_long):
                measured[name] = plan[name]()
            measured[name]["took_seconds"] = round(time.time() - began, 1)
            look.say(json.dumps({k: v for k, v in measured[name].items() if k != "nvidia_smi"}))
        except Exception as error:
            measured.pop(name, None)
            errors[name] = "".join(traceback.format_exception(error))
            look.say(errors[name])
            if "CUDA error" in str(error):  # nothing works in this process any more
                look.save()
                return False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        look.result["left_out"] = [other for other in plan if other not in measured and other not in errors]
        look.save()
    return True


def _largest(look: Look, work: Callable[[int], dict]) -> dict:
    """With the largest batch that the memory holds."""
    for batch in look.batches:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            if batch == look.batches[-1]:
                raise
            look.say(f"a batch of {batch} does not fit")
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("no batch size")


def _too_long() -> None:
    raise TimeoutError("took too long")


@contextlib.contextmanager
def _after(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Within the block, act when so many seconds are over; one around it goes on afterwards."""
    before = signal.signal(signal.SIGALRM, lambda *_: act())
    rest, began = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))[0], time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(rest - (time.monotonic() - began), 0.1) if rest else 0)
        signal.signal(signal.SIGALRM, before)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    parser.add_argument("--seconds", type=float, help="to be done in; default: 480, --quick 170")
    parser.add_argument("--tests", action="store_true", help="also the tests that need a GPU, within half of the time")
    parser.add_argument("--quick", action="store_true", help="small images and batches: a rehearsal")
    parser.add_argument("--only", nargs="+", metavar="NAME", help='some measurements, as in "step tresnet_m 8"')
    parser.add_argument("--folder", default=str(ROOT / "outputs" / "gpu"))
    parser.add_argument("--go-on", action="store_true", help="with what gpu.json lacks")
    options = parser.parse_args(arguments)
    folder, began = Path(options.folder), time.time()
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.loads((folder / "gpu.json").read_text(encoding="utf-8")) if options.go_on else None
    if not stored:
        (folder / "gpu.log").write_text("", encoding="utf-8")
    runtime = choose_runtime("auto", options.device)
    seconds = options.seconds or (170 if options.quick else 480)
    look = Look(runtime, folder, stored["began"] if stored else began, seconds, options.quick)
    look.result = stored or {"began": began, "device": str(runtime.device), "quick": options.quick, **look.result}
    plan = measurements(look, options.tests)
    if unknown := set(options.only or ()) - plan.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(plan)}")
    plan = {name: work for name, work in plan.items() if not options.only or name in options.only}
    if not run(look, plan):
        os.execv(
            sys.executable,
            [sys.executable, "-m", "benchmarks.gpu", *(a for a in arguments if a != "--go-on"), "--go-on"],
        )
    look.save()
    measured, errors, left = (look.result[key] for key in ("measured", "errors", "left_out"))
    failed = measured.get("tests", {}).get("failed", [])
    look.say(
        f"{len(measured)} measured, failed: {', '.join(errors) or 'none'}, without time: {', '.join(left) or 'none'}"
    )
    look.say(f"tests that failed: {', '.join(failed) or 'none'}; {folder / 'gpu.json'}")
    return 1 if errors or failed else 0


if __name__ == "__main__":
    sys.exit(main())
