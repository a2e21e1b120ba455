"""Every reader of files against inputs that are nearly right: each must end in data or in an error that is written for
the user, never in a traceback.

``make fuzz`` (``python tests/fuzz.py``) tries KRT_FUZZ inputs (100,000), spread over the kinds, in as many processes as
there are cores. It prints its seed, and for every input that went wrong how to make it again and where its files are.
``--seed``, ``--kind`` and ``--one`` make one input again.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import fuzz_worlds as worlds  # noqa: E402
import torch  # noqa: E402

from krt_core.errors import KRTError  # noqa: E402

LONGEST = 30  # seconds for one input
MANY = 100_000


@dataclass(frozen=True)
class Wrong:
    """An input that ended in something else than data or an error of ours."""

    kind: str
    seed: int
    number: int
    error: str
    files: str = ""

    def __str__(self) -> str:
        again = f"python tests/fuzz.py --kind {self.kind} --seed {self.seed} --one {self.number}"
        return f"{again}\n{self.error.strip()}\n{self.files}"


def try_one(kind: str, seed: int, number: int, folder: Path, keep: Path | None = None) -> Wrong | None:
    """Make one input in a folder and read it; what went wrong, if anything did."""
    rng, world = Random(f"{seed} {kind} {number}"), worlds.KINDS[kind]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = dict(_files(kind))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(files))
        others = [content for other, content in files.items() if other != name] + _strangers()
        files[name] = world.mutation(name, rng)(rng, files[name], others)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    error = outcome(lambda: world.read(folder, rng))
    if not error:
        return None
    if keep is not None:
        kept = keep / f"{kind}-{seed}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True)
    return Wrong(kind, seed, number, error, f"files: {kept}" if keep is not None else "")


def outcome(read: Callable[[], object]) -> str:
    """Empty where a reader ends well; else the traceback."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except KRTError as error:
        return "" if str(error).strip() else "an error without a word"
    except TimeoutError:
        return traceback.format_exc()
    except OSError as error:
        return "" if error.filename is not None else traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return ""


@contextlib.contextmanager
def own_home():
    """A home and a folder for inputs that are gone afterwards, in memory where that is possible."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    before = os.environ.get("KRT_HOME")
    with tempfile.TemporaryDirectory(prefix="krt-fuzz-", dir=place) as scratch:
        os.environ["KRT_HOME"] = f"{scratch}/home"
        try:
            yield Path(scratch)
        finally:
            os.environ.pop("KRT_HOME") if before is None else os.environ.update(KRT_HOME=before)


def try_many(kind: str, seed: int, numbers: range, keep: Path | None = None) -> list[Wrong]:
    """Inputs of one kind by their numbers."""
    torch.set_num_threads(1)
    with own_home() as scratch:
        found = []
        for number in numbers:
            shutil.rmtree(scratch / "home", ignore_errors=True)
            if wrong := try_one(kind, seed, number, scratch / "input", keep):
                found.append(wrong)
        return found


@cache
def _files(kind: str) -> dict[str, bytes]:
    """Name → content of the whole world of a kind, as it should be."""
    with tempfile.TemporaryDirectory(prefix="krt-fuzz-") as folder:
        worlds.KINDS[kind].make(Path(folder))
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name[0] != ".")
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@cache
def _strangers() -> list[bytes]:
    """A file of other kinds each, as somebody may put it in the wrong place."""
    return [next(iter(_files(kind).values())) for kind in ("preset", "coco", "image", "weights")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--kind", choices=sorted(worlds.KINDS), help="of this kind alone")
    parser.add_argument("--one", type=int, help="the input with this number alone")
    parser.add_argument("--keep", type=Path, default=Path("outputs/fuzz"), help="where files that went wrong are kept")
    options = parser.parse_args()
    count = int(os.environ.get("KRT_FUZZ", MANY))
    shares = {kind: worlds.KINDS[kind].share for kind in ([options.kind] if options.kind else worlds.KINDS)}
    total, began = sum(shares.values()), time.monotonic()
    print(f"seed {options.seed}, {1 if options.one is not None else count} inputs", flush=True)
    if options.one is not None:
        chosen = options.kind or parser.error("--one needs --kind")
        found = try_many(chosen, options.seed, range(options.one, options.one + 1), options.keep)
    else:
        numbers = {kind: range(round(count * share / total)) for kind, share in shares.items()}
        pieces = [(kind, options.seed, all_[i : i + 200]) for kind, all_ in numbers.items() for i in all_[::200]]
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = []
            for wrong in pool.map(try_many, *zip(*pieces, strict=True), [options.keep] * len(pieces)):
                found += wrong
                for one in wrong:
                    print(one, "\n", flush=True)
    if options.one is not None:
        print(*found, sep="\n\n")
    print(f"{len(found)} went wrong; {time.monotonic() - began:.0f} s, seed {options.seed}")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
