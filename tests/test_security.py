"""What could let a file, a name or another user do what its owner did not mean. `make audit` runs this too."""

import ast
import os
import re
import stat
from pathlib import Path

import pytest

from benchmarks.made_up_runs import finished
from krt_core.errors import ConfigError, printable
from krt_core.lab import figures
from krt_core.lab.bench.slots import Slots, take
from krt_core.lab.bench.view import View
from krt_core.lab.explorers.forgetting import ForgettingExplorer
from krt_core.lab.explorers.gallery import Gallery
from krt_core.lab.explorers.training import TrainingView
from krt_core.lab.report import collect, names_of, runs_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.machine.home import file_name
from krt_core.runs.progress import Progress

ROOT = Path(__file__).parents[1]
CODE = sorted(path for part in ("krt_core", "tools", "benchmarks") for path in (ROOT / part).rglob("*.py"))


def calls(path):
    """Every call in a file: its dotted name, its keywords, its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), keywords, f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_nothing_runs_what_a_file_says():
    wrong = []
    for path in (ROOT / "krt_core").rglob("*.py"):
        for name, keywords, place, _ in calls(path):
            last = name.rpartition(".")[2]
            unsafe = (
                name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load")
                or (
                    name.startswith(("pickle.", "marshal.", "shelve.", "dill."))
                    and last in ("load", "loads", "Unpickler")
                )
                or keywords.get("shell", "False") != "False"
                or keywords.get("allow_pickle", "False") != "False"
                or (name == "torch.load" and keywords.get("weights_only") != "True")
                or (name == "np.load" and keywords.get("allow_pickle") != "False")
                or name in ("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader")
                or name == "tempfile.mktemp"
            )
            if unsafe:
                wrong.append(f"{place}: {name}")
    assert not wrong, "\n".join(wrong)


def test_every_text_file_says_its_encoding():
    """A locale without UTF-8 must not decide what is read and written."""
    wrong = []
    for path in CODE:
        for name, keywords, place, node in calls(path):
            last = name.rpartition(".")[2]
            words = [leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
            modes = [word for word in words if isinstance(word, str) and re.fullmatch(r"[rwxab+t]{1,3}", word)]
            opens = last == "open" and not name.startswith(("os.", "Image.", "tarfile.", "archive."))
            opens = opens and not any("b" in mode for mode in modes)
            text = (last in ("read_text", "write_text") and "." in name) or opens or keywords.get("text") == "True"
            if text and "encoding" not in keywords:
                wrong.append(f"{place}: {name}")
    assert not wrong, "\n".join(wrong)


# ---- shared temporary folders ----


@pytest.fixture
def slots(tmp_path, monkeypatch):
    monkeypatch.setenv("KRT_SLOTS", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    return Slots("cpu", ("0",), 1), tmp_path / "shared" / "krt-slots"


def test_a_link_for_the_folder_of_the_slots_is_refused(slots, tmp_path):
    machine, folder = slots
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    folder.symlink_to(mine)
    with pytest.raises(ConfigError, match=r"krt-slots is a link\. Delete it"):
        take(machine, 1)
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700 and not any(mine.iterdir())
    folder.unlink()
    folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a link"):
        take(machine, 1)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(ConfigError, match="is no folder"):
        take(machine, 1)


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_what_is_no_file_among_the_locks_is_refused(slots, tmp_path, what):
    machine, folder = slots
    take(machine, 1).close()
    lock = folder / "cpu-0"
    lock.unlink()
    (tmp_path / "mine").write_text("")
    {"link": lambda: lock.symlink_to(tmp_path / "mine"), "fifo": lambda: os.mkfifo(lock), "folder": lock.mkdir}[what]()
    with pytest.raises(ConfigError, match=r"cpu-0 is (a link|no file)"):
        take(machine, 1)


def test_a_folder_of_the_slots_that_is_there_keeps_its_rights(slots):
    machine, folder = slots
    folder.mkdir(mode=0o750)
    take(machine, 1).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert [path.name for path in folder.parent.iterdir()] == ["krt-slots"]  # nothing left of its making


# ---- strings from data ----

HOSTILE = (
    "<script>alert(1)</script>", "../../escape", "$\\frac{x$", "\x1b[31mred", "</title><img src=x onerror=alert(1)>",
    "a_b & 50 %", "\u202eabc", "_hidden", "[bold]rich[/bold]", "'\"><b>",
)  # fmt: skip


@pytest.fixture
def hostile(tmp_path):
    """Two finished runs whose classes bear names that somebody else has chosen."""
    overrides = ["data.dataset=coco", "data.root=x/<i>y"]
    for method in ("krt", "pod"):
        finished(overrides=[*overrides, f"method={method}"], classes=sorted(HOSTILE), folder=f"outputs/r/{method}")
    return collect([tmp_path / "outputs"])[0]


def test_reports_show_names_as_text(hostile):
    page = html_report(hostile)
    for tag in ("<script>alert", "<img src=x", "<i>y", "'\"><b>"):
        assert tag not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    table = latex_report(hostile)
    assert "<i>" not in table and r"$<$i$>$" in table
    assert runs_table(hostile) is not None and all("<" in name or name for name in names_of(hostile))


def test_widgets_show_names_as_text(hostile, tmp_path):
    import ipywidgets

    def markup(widget):
        found = [widget.value] if isinstance(widget, ipywidgets.HTML) else []
        return found + [text for child in getattr(widget, "children", ()) for text in markup(child)]

    explorer, gallery = ForgettingExplorer("outputs/r"), Gallery("outputs/r")
    for view in (explorer, gallery):
        for index in range(len(view.views)):
            view.tabs.selected_index = index
            said = "".join(markup(view.widget))
            assert "Traceback" not in said, said
            assert not re.search(r"<(script|img|i>|b>)", said), said
    view = TrainingView([run.experiment for run in hostile], "outputs/r")
    view.message.value = ""
    view.refresh()
    assert "<i>" not in "".join(markup(view.widget))
    explorer.tabs.selected_index = list(explorer.views).index("Heat map")
    assert all(path.parent == tmp_path / "outputs" / "r" / "figures" for path in explorer.save())


def test_ids_do_not_leave_their_folder(tmp_path, hostile):
    figure = figures.session_curves(hostile)
    for name in ("evidence_../../escape", "evidence_a\0b", "../escape"):
        figures.save(figure, tmp_path / "figures", name)
    for name in (*HOSTILE, "..", "", ".", "a/b", "x" * 400, "\ud800", "a\0b", "日本", "~"):
        made = file_name(name)
        assert made and "/" not in made and "\0" not in made and made[0] != "." and len(made.encode()) < 180
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".pdf"}
    assert not (tmp_path / "escape.png").exists() and not (tmp_path.parent / "escape.png").exists()
    assert (
        file_name("a/b") != file_name("a_b") != file_name("a:b") and file_name("COCO_val2014_01") == "COCO_val2014_01"
    )


def test_a_terminal_is_not_steered():
    assert printable("\x1b[31mred\u202e\x07\r") == "\\x1b[31mred\\u202e\\x07\\r"
    assert printable("a\n\tb  −±日本") == "a\n\tb  −±日本"


# ---- the notebook server ----


def test_jupyter_listens_to_this_machine_and_asks_for_its_token():
    lab = re.search(r"^lab:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    server = (ROOT / "tests" / "browser" / "conftest.py").read_text()
    for text in (lab, server):
        assert "--ServerApp.ip=127.0.0.1" in text and "token=''" not in text and 'token="' not in text
        assert '--IdentityProvider.token="' not in text and "password" not in text
    assert "token={TOKEN}" in server


def test_lines_of_a_training_and_of_a_matrix_steer_no_terminal(tmp_path, capsys):
    Progress(tmp_path, "lines").log("session 1 (\x1b[31mred)")
    View(live=False).say("failed: \x1b]0;title\x07 [bold]x[/bold]")
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "[bold]x[/bold]" in said
