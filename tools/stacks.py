"""The default tests in fresh environments of the oldest and of the newest packages: ``python tools/stacks.py``.

*oldest*: what tools/oldest.txt names, in these versions, and the pins of pyproject.toml for the rest. *newest*: all
that pyproject.toml names, each in the newest version that fits the others. Each has a folder in outputs/stacks with
its environment, what is installed there (versions.json) and what the tests say (tests.txt, tests.xml). At the end:
which packages differ from the pins, and which tests failed. Needs Python 3.11.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OLDEST = ROOT / "tools" / "oldest.txt"
EXTRAS = ("dev", "photos")
STACKS = ("oldest", "newest")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", nargs="+", choices=STACKS, default=STACKS)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "stacks")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="arguments of pytest, to run some alone")
    options = parser.parse_args(arguments)
    said, failed = [], False
    for stack in options.stack:
        folder = options.folder.resolve() / stack
        folder.mkdir(parents=True, exist_ok=True)
        run_tests(folder, set_up(folder, requirements(stack), options.python), options.tests)
        text, whole = report(stack, folder)
        said.append(text)
        failed |= not whole
    print("\n\n".join(said))
    return int(failed)


def requirements(stack: str) -> list[str]:
    """What pip is asked for."""
    pins = project_pins()
    if stack == "newest":
        return sorted(pins)
    oldest = [line for line in OLDEST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    named = {canonicalize_name(Requirement(line).name) for line in oldest}
    return oldest + [str(one) for name, one in pins.items() if name not in named]


def project_pins() -> dict[str, Requirement]:
    """The pins of pyproject.toml that hold for this Python, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [one for extra in EXTRAS for one in project["optional-dependencies"][extra]]
    wanted = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one for one in wanted if not one.marker or one.marker.evaluate()}


def set_up(folder: Path, wanted: list[str], interpreter: str) -> str:
    """An environment with these packages and this checkout; returns its Python. One that is whole is taken as it is."""
    python = str(folder / ".venv" / "bin" / "python")
    versions = folder / "versions.json"
    if not versions.exists():
        print(f"setting up {folder}: minutes and gigabytes", flush=True)
        (listed := folder / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder / ".venv")], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-r", str(listed)], check=True)
        subprocess.run([*pip, "install", "--no-deps", "-e", str(ROOT)], check=True)
        listing = [python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
        found = subprocess.run(listing, check=True, stdout=subprocess.PIPE).stdout
        versions.write_bytes(found)
    return python


def run_tests(folder: Path, python: str, arguments: list[str]) -> None:
    """As `make test` does."""
    shares = ["--numprocesses", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
    command = [python, "-m", "pytest", *shares, f"--junit-xml={folder / 'tests.xml'}", *arguments]
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    print(f"running the tests; what they say: {folder / 'tests.txt'}", flush=True)
    (folder / "tests.xml").unlink(missing_ok=True)  # tests that do not come to their end leave none
    with (folder / "tests.txt").open("wb") as file:
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, stdout=file, stderr=file, check=False)


def report(stack: str, folder: Path) -> tuple[str, bool]:
    """What differs, in words, and whether every test passed."""
    pins = {name: str(one.specifier).removeprefix("==") for name, one in project_pins().items()}
    installed = json.loads((folder / "versions.json").read_bytes())
    here = {canonicalize_name(one["name"]): one["version"] for one in installed}
    differ = sorted(name for name, pin in pins.items() if pin != here[name] and pin[0] != ">")
    other = ", ".join(f"{name} {here[name]} ({pins[name]})" for name in differ)
    if not (folder / "tests.xml").exists():
        return f"{stack}: the tests did not come to their end: see {folder / 'tests.txt'}", False
    counts, failed = {"passed": 0, "skipped": 0, "failed": 0}, []
    for case in ElementTree.parse(folder / "tests.xml").iter("testcase"):
        kinds = [part.tag for part in case]
        bad = next((part for part in case if part.tag in ("failure", "error")), None)
        counts["skipped" if "skipped" in kinds else "passed" if bad is None else "failed"] += 1
        if bad is not None:
            said = " ".join(bad.get("message", "").split())[:200]
            failed.append(f"  {case.get('classname')}::{case.get('name')}: {said}")
    lines = [
        f"{stack}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}",
        f"not as pinned (the pin): {other or 'none'}",
        *failed,
    ]
    return "\n".join(lines), not failed and counts["passed"] > 0


if __name__ == "__main__":
    sys.exit(main())
