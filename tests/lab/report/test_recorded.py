"""Rows of earlier tables beside runs: the same lines and tests as from the run folders, marked, or a clear word."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from page import Page

from benchmarks.made_up_runs import finished
from krt_core.cli import main
from krt_core.errors import DataError
from krt_core.lab.explorers.leaderboard import Leaderboard
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.lab.report.paper_table import settings_of
from krt_core.lab.report.recorded import recorded
from krt_core.lab.report.significance import table_of_tests
from krt_core.lab.report.write import write_report

RESULTS = Path(__file__).parents[3] / "docs" / "results"
SKILLS = {"krt": 2, "finetune": 1, "joint": 6, "er replay.per_class=5": 1.5}


@pytest.fixture
def runs():
    found = {}
    for method, skill in SKILLS.items():
        name, *changes = method.split()
        found[method] = [
            finished(
                overrides=[f"method={name}", *changes, f"seed={s}", f"protocol.order_seed={s + 5}"],
                skill=skill + 0.3 * s,
                folder=f"outputs/{name}-{s}",
            )
            for s in range(3)
        ]
    return found


@pytest.fixture
def table(runs, home):
    """Of all but KRT's runs."""
    path = home / "field.csv"
    write_report([run for method, some in runs.items() if method != "krt" for run in some], csv=path)
    return path


def test_a_recorded_line_has_the_numbers_of_its_runs(runs, table):
    """Everything that tables, tests and ranks are made of, from the table as from the folders."""
    whole = settings_of([run for some in runs.values() for run in some])[0]
    (setting,) = settings_of(runs["krt"], recorded([table], runs["krt"]))
    told = {line.name: line for line in setting.lines}
    for line in whole.lines:
        other = told[line.name]
        assert other.recorded == ("" if line.name == "krt" else "field")
        assert other.places == line.places and other.counts == line.counts and other.replicates == line.replicates
        assert (other.buffer, other.bound, other.backbone, other.stored) == (
            line.buffer, line.bound, line.backbone, line.stored
        )  # fmt: skip
        for key, values in line.values.items():
            assert other.values[key] == pytest.approx(values, rel=1e-12), (line.name, key)
    tests = [table_of_tests(some).replace(r" \(recorded\)", "", regex=True) for some in ([whole], [setting])]
    pd.testing.assert_frame_equal(*tests)
    assert setting.best("average_mAP").name == "krt" and len(setting.runs) == 3
    assert any("recorded: only a table is left" in remark for remark in setting.remarks)


def test_what_is_here_already_or_elsewhere_is_left_out_aloud(runs, table):
    here = [*runs["krt"], runs["finetune"][0]]
    found = recorded([table], here)
    assert len(found.rows) == 8 and found.left_out == ("1 recorded rows: the same runs are here already",)
    assert len(recorded([table, table], runs["krt"]).rows) == 9  # the second file's are the same
    other = [finished(overrides=["protocol.increment=5", f"seed={s}"]) for s in range(2)]
    found = recorded([table], other)
    assert not len(found.rows) and found.left_out == (
        "9 recorded rows of digits · B0-C2: no run here is in that setting",
    )
    assert [line.name for line in settings_of(other, found)[0].lines] == ["krt"]


def test_two_tables_with_one_name_are_two_lines(runs, table, home):
    """Or a test would pair a run of the one with a run of the other."""
    second = [finished(overrides=["method=finetune", f"seed={s + 7}"], folder=f"outputs/late-{s}") for s in range(2)]
    write_report(second, csv=home / "late.csv")
    names = [
        line.label for line in settings_of(runs["krt"], recorded([table, home / "late.csv"], runs["krt"]))[0].lines
    ]
    assert {"finetune, field (recorded)", "finetune, late (recorded)", "joint (recorded)"} <= set(names)
    assert len(names) == len(set(names))


def test_only_holds_for_recorded_rows_too(runs, table):
    for wanted, names in (
        ("method=er", {"er"}), ("buffer=0", {"finetune", "joint"}), ("buffer=5/class", {"er", "joint"}),
        ("backbone=trained", {"er", "finetune", "joint"}), ("backbone=frozen", set()),
    ):  # fmt: skip
        found = recorded([table], runs["krt"], [wanted])
        assert {name.split(",")[0] for name in found.rows["name"]} == names, wanted


def test_every_page_marks_them(runs, table, home, capsys):
    html, csv, tex = home / "r.html", home / "r.csv", home / "r.tex"
    assert main(["report", *(str(run.folder) for run in runs["krt"]), "--beside", str(table),
                 "--html", str(html), "--csv", str(csv), "--latex", str(tex)]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "finetune (recorded)" in said and "joint (recorded)" in said and "krt (recorded)" not in said
    page = Page(html.read_text())
    assert page.text.count("recorded: field") >= 3 and "only a table is left" in page.text
    assert page.table("average mAP: krt against").keys() == {
        "finetune (recorded)", "joint (recorded)", "er, 5 exemplars per class (recorded)",
    }  # fmt: skip
    assert pd.read_csv(csv)["run"].tolist() == [run.folder.name for run in runs["krt"]]  # a line per run that is here
    assert "finetune (recorded)" in set(pd.read_csv(home / "r_tests.csv")["worse"])
    assert "(recorded)" in tex.read_text() and tex.read_text() == latex_report(
        runs["krt"], recorded([table], runs["krt"])
    )


def test_marks_stand_once(home):
    """An oracle's line has its mark, and its method is called as that of a run is."""
    made = [finished(overrides=["krt.oracle=true", f"seed={s}"], folder=f"outputs/oracle-{s}") for s in range(2)]
    own = [finished(overrides=["method=finetune", f"seed={s}"]) for s in range(2)]
    write_report(made, csv=home / "oracle.csv")
    earlier = recorded([home / "oracle.csv"], own)
    line, whole = (
        next(x for x in settings_of(*some)[0].lines if x.oracle) for some in ((own, earlier), ([*own, *made],))
    )
    assert line.label == "krt (ORACLE) (recorded)" and line.method == whole.method == "krt" and line.name == whole.name
    assert line.bound and line.buffer == whole.buffer


def test_a_leak_stays_a_leak(runs, home):
    """From a table, too, it is marked, never the best, and compared with nothing."""
    changes = [["method=pod", f"seed={s}", f"protocol.order_seed={s + 5}"] for s in range(3)]
    leaked = [finished(overrides=own, leak="it saw all", skill=9) for own in changes]
    write_report(leaked, csv=home / "leak.csv")
    (setting,) = settings_of([*runs["krt"], *runs["finetune"]], recorded([home / "leak.csv"], runs["krt"]))
    line = next(line for line in setting.lines if line.recorded)
    assert line.leak and line.label == "pod (LEAK) (recorded)" and setting.best("average_mAP").name == "krt"
    assert not table_of_tests([setting]).astype(str).stack().str.contains("pod").any()


def test_the_leaderboard_shows_them(runs, table):
    board = Leaderboard(runs=runs["krt"], headless=(), beside=[table])
    rows = board.table()
    assert rows.loc["finetune (recorded)", "source"] == "recorded: field"
    assert rows.loc["joint (recorded) (bound)", "runs"] == "3 (3 seeds, 3 orders)" and rows.loc["krt", "source"] == ""
    assert rows["s / session"].tolist().count("–") == 0
    for view in (board.differences, board.stability, board.cost):
        assert view()


def test_a_table_that_is_none_is_named(runs, table, home):
    good = pd.read_csv(table)
    for content, words in (
        (None, "There is no table"),
        ("", "is no table of runs"),
        (good.drop(columns=["bound", "seed"]).to_csv(), "no column seed, bound.*krt report RUNS --csv"),
        (good.assign(seed="one").to_csv(), "line 2, column seed: 'one' is no number"),
        (good.assign(last_mAP=["1.5", "x", *"1234567"]).to_csv(), "line 3, column last_mAP: 'x'"),
        (good.assign(bound="yes").to_csv(), "column bound: 'yes' is neither True nor False"),
        (good.assign(name=[None, *good.name[1:]]).to_csv(), "line 2, column name: nan is missing"),
    ):  # fmt: skip
        path = home / "bad.csv"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(DataError, match=words):
            recorded([path], runs["krt"])


def test_the_shipped_tables_are_some(runs):
    paths = [path for path in RESULTS.glob("*.csv") if not path.stem.endswith(("_tests", "_trials"))]
    assert paths and recorded(paths, runs["krt"]).left_out


def test_unknown_numbers_stay_unknown(runs, table):
    rows = pd.read_csv(table)
    rows.loc[rows["name"] == "finetune", ["peak_memory_mb", "forgetting"]] = np.nan
    rows.to_csv(table)
    (setting,) = settings_of(runs["krt"], recorded([table], runs["krt"]))
    line = next(line for line in setting.lines if line.name == "finetune")
    assert not len(line.values["forgetting"]) and len(line.values["average_mAP"]) == 3
    assert "–" in html_report(runs["krt"], earlier=recorded([table], runs["krt"]))
