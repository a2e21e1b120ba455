"""Arrows point down: who may import whom, and that no circle is left (the floors of the README's map)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "krt_core"

# From the roof to the ground. A module may import from its own floor and from those below it.
FLOORS = (
    ("cli",),
    ("lab",),
    ("tagger",),
    ("launch",),
    ("session", "learn", "evaluate", "remember", "calibrate"),
    ("weights",),
    ("runs",),
    ("methods",),
    ("protocol", "memory", "losses", "dpl", "metrics"),
    ("model",),
    ("data",),
    ("machine",),
    ("config", "options", "presets", "reference", "errors"),
)
FACADE = "krt_core"  # the package itself names what others use and loads it on demand
LONGEST_FILE, LONGEST_FUNCTION, FILES_AT_THE_ROOT = 350, 60, 14


def modules(package: Path) -> dict[str, Path]:
    """Dotted name (the package itself is its folder's name) → file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's own modules that a module imports, wherever in it the line stands; those for types alone too."""
    base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names if alias.name != "__version__"]  # which loads nothing
            found |= {s if (s := f"{source}.{name}") in known else source for name in names}
    return {other for other in found if other in known and other != name}


def floor_of(name: str) -> int:
    room = name.split(".")[1]
    return next((level for level, rooms in enumerate(FLOORS) if room in rooms), -1)


def faults(package: Path) -> list[str]:
    """Every import that breaks the rule: the file, the import, the rule."""
    known, wrong = modules(package), []
    graph = {name: imports(name, path, known) for name, path in known.items()}
    for name, others in graph.items():
        if name == FACADE:
            continue
        file = known[name].relative_to(package.parent)
        if floor_of(name) < 0:
            wrong.append(f"{file}: its room is on no floor; give it one in {Path(__file__).name}")
            continue
        for other in sorted(others - {FACADE}):
            if floor_of(other) < floor_of(name):
                wrong.append(f"{file} imports {other}: arrows point down, and that is a floor above")
    for circle in circles(graph):
        first = known[circle[0]].relative_to(package.parent)
        wrong.append(f"{first} imports itself by {' -> '.join([*circle, circle[0]])}: no circle")
    return wrong


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One way round for each set of modules that import one another."""
    found, done = [], set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            circle = way[way.index(name) :]
            if not any(set(circle) & set(other) for other in found):
                found.append(circle)
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def test_arrows_point_down():
    assert not faults(PACKAGE), "\n".join(faults(PACKAGE))


def write(root, **files):
    for name, text in {"__init__": "", **files}.items():
        path = root / "krt_core" / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "krt_core"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"metrics": "def f():\n    from .lab import naming\n", "lab__in__naming": ""},
         ["krt_core/metrics.py imports krt_core.lab.naming: arrows point down, and that is a floor above"]),
        ({"config": "from .methods.base import Method", "methods__in__base": ""},
         ["krt_core/config.py imports krt_core.methods.base: arrows point down, and that is a floor above"]),
        ({"dpl": "from . import memory", "memory": "import krt_core.dpl"},
         ["krt_core/dpl.py imports itself by krt_core.dpl -> krt_core.memory -> krt_core.dpl: no circle"]),
        ({"attic": ""}, ["krt_core/attic.py: its room is on no floor; give it one in test_rooms.py"]),
        ({"cli": "from .lab import naming", "lab__in__naming": "from ..metrics import f", "metrics": "f = 1"}, []),
    ],
)  # fmt: skip
def test_an_import_turned_around_is_named(tmp_path, files, said):
    assert faults(write(tmp_path, **files)) == said


def test_the_paper_is_on_the_first_screen():
    files = [path.name for path in PACKAGE.glob("*.py")]
    assert len(files) <= FILES_AT_THE_ROOT, sorted(files)


def test_files_and_functions_are_short():
    """A file fits a head, a function fits a screen."""
    long = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{path.relative_to(PACKAGE.parent)}: {lines} lines, at most {LONGEST_FILE}")
        for node in ast.walk(ast.parse(text)):
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if function and (lines := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
                long.append(f"{path.relative_to(PACKAGE.parent)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)
