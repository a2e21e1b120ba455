"""Do the tests see a fault? Puts one small fault at a time into a module and runs the tests that are to notice it.

    python tools/mutants.py krt_core/dpl.py tests/test_dpl.py [more tests] [--every 3] [--list]

A fault is a comparison turned, a number changed, a sign or an operator swapped, a condition negated, a statement left
out, an argument dropped. Each is tried in a process of its own, forked from one that has the libraries loaded. What no
test notices is printed with its line; it is a gap in the tests, or equivalent to the original.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = ("matplotlib.pyplot", "numpy", "pandas", "PIL.Image", "pycocotools.coco", "pydantic", "pytest", "timm",
             "torch")  # fmt: skip
COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
           ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
OPERATE = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
           ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
           ast.MatMult: ast.Mult}  # fmt: skip


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, what was done, the tree with it) for every fault; texts, docstrings, annotations and messages stay."""
    silent = _silent(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in silent:
            continue
        for what, change in _faults(node):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(changed)) if i == number)
            place = change(target) or target  # of a statement that was left out: itself
            text = ast.unparse(place if place is not target else node)
            ast.fix_missing_locations(changed)
            yield getattr(place, "lineno", 0), f"{what}: {text.splitlines()[0][:100]}", changed


def _silent(tree: ast.Module) -> set[int]:
    """Nodes whose change says nothing: messages of errors and logs, annotations, defaults that name a type."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Raise):
            parts = [node.exc]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts = [
                node.returns,
                *(a.annotation for a in [*node.args.args, *node.args.kwonlyargs]),
                *node.decorator_list,
            ]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "log"
        ):
            parts = [node]
        found |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
    return found


def _faults(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield "comparison turned", lambda n: n.ops.__setitem__(0, COMPARE[type(n.ops[0])]())
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATE:
        yield "operator swapped", lambda n: setattr(n, "op", OPERATE[type(n.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
        yield "sign dropped", lambda n: setattr(n, "op", ast.UAdd())
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "number changed", lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "truth turned", lambda n: setattr(n, "value", not n.value)
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition negated", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.BoolOp):
        yield "and/or swapped", lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And())
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "returns nothing", lambda n: setattr(n, "value", ast.Constant(None))
    for field in ("body", "orelse"):
        block = getattr(node, field, None)
        for i, statement in enumerate(block if isinstance(block, list) else ()):
            plain = isinstance(statement, (ast.Assign, ast.AugAssign, ast.Expr, ast.Continue, ast.Break))
            text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if plain and not text and not isinstance(node, (ast.Module, ast.ClassDef)):
                yield "statement left out", lambda n, f=field, i=i: _left_out(getattr(n, f), i)
    if isinstance(node, ast.Call):
        for i, _ in enumerate(node.keywords):
            yield "argument dropped", lambda n, i=i: n.keywords.pop(i)


def _left_out(block: list[ast.stmt], place: int) -> ast.stmt:
    gone, block[place] = block[place], ast.Pass()
    return gone


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module):
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        inside = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=inside)

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(
            compile(self.tree, str(self.path), "exec"), module.__dict__
        )  # the tree is made of this checkout's own file


def survives(name: str, path: Path, tree: ast.Module, tests: list[str], seconds: float) -> bool:
    """Do the tests pass with the changed module? A fault that hangs is noticed."""
    pid = os.fork()
    if not pid:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        sys.meta_path.insert(0, Changed(name, path, tree))
        import pytest

        off = [f"-pno:{plugin}" for plugin in ("cacheprovider", "anyio", "unraisableexception")]
        code = pytest.main(["-x", "-q", "--assert=plain", *off, *tests])
        os._exit(int(code))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--every", type=int, default=1, help="try each n-th fault only")
    parser.add_argument("--list", action="store_true", help="list the faults, try none")
    parser.add_argument("--seconds", type=float, default=120, help="a fault that takes longer hangs")
    options = parser.parse_args()
    path = options.module.resolve()
    name = ".".join(path.relative_to(Path.cwd()).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = list(mutants(tree))[:: options.every]
    if options.list:
        for line, what, _ in found:
            print(f"{line}: {what}")
        return 0
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # or every process would look through all of these libraries' objects
    if not survives(name, path, tree, options.tests, 600):
        sys.exit("The tests fail without any fault.")
    left = []
    for number, (line, what, changed) in enumerate(found, 1):
        if survives(name, path, changed, options.tests, options.seconds):
            left.append((line, what))
            print(f"{path.name}:{line}: {what}", flush=True)
        if number % 50 == 0:
            print(f"{number} of {len(found)}, {len(left)} not noticed", flush=True)
    print(f"{path.name}: {len(found) - len(left)} of {len(found)} faults noticed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
