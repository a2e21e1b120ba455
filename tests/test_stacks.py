"""`make stacks`, without its environments: what pip is asked for, and what is made of what the tests said."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
TOOL = Path(__file__).parent.parent / "tools" / "stacks.py"
XML = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><skipped message="no GPU"/></testcase>
<testcase classname="tests.a" name="three"><failure message="assert 1
  == 2"/></testcase>
<testcase classname="tests.a" name="four"><error message="gone"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def stacks():
    spec = importlib.util.spec_from_file_location("stacks", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_pip_is_asked_for(stacks):
    oldest, newest = stacks.requirements("oldest"), stacks.requirements("newest")
    assert "torch==2.6.0" in oldest and not [line for line in oldest if line.startswith("torch==2.1")]
    assert len(oldest) == len(newest) and "torch" in newest and not [line for line in newest if "=" in line]


def test_what_differs_is_reported(stacks, tmp_path):
    pins = {name: str(one.specifier).removeprefix("==") for name, one in stacks.project_pins().items()}
    here = [{"name": name, "version": "2.6.0" if name == "torch" else version} for name, version in pins.items()]
    (tmp_path / "versions.json").write_text(json.dumps(here))
    text, whole = stacks.report("oldest", tmp_path)
    assert not whole and "did not come to their end" in text
    (tmp_path / "tests.xml").write_text(XML)
    text, whole = stacks.report("oldest", tmp_path)
    assert not whole and "oldest: 1 passed, 1 skipped, 2 failed" in text
    assert f"not as pinned (the pin): torch 2.6.0 ({pins['torch']})\n" in text
    assert "tests.a::three: assert 1 == 2\n  tests.a::four: gone" in text
    (tmp_path / "tests.xml").write_text('<testsuite><testcase classname="tests.a" name="one"/></testsuite>')
    assert stacks.report("oldest", tmp_path)[1]
