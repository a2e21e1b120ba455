"""Runs that no table may take for what they look like: mixed ones, copies, replicates of changed data."""

import json
import shutil

import pytest

from benchmarks.made_up_runs import finished
from krt_core.cli import main
from krt_core.lab.analysis.compare import comparable_runs, curves_table
from krt_core.lab.figures import session_curves
from krt_core.lab.report import collect, definitions, labels_of, names_of, runs_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.lab.report.paper_table import settings_of
from krt_core.runs.folder import Run


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _of_data(run, inputs, images=None):
    made_with = {"inputs": inputs, "max_steps": None, "processes": 1}
    made_with |= {"images": {"sizes": images, "times": "t", "sample": "s"}} if images else {}
    _edit(run.session_folder(0) / "state.json", made_with=made_with)
    return run


@pytest.fixture
def two():
    return [finished(overrides=[f"seed={seed}"]) for seed in (0, 1)]


def test_a_mixed_run_is_marked_in_tables_figures_and_words(two):
    runs = [*two, finished(overrides=["method=finetune"])]
    _edit(two[1].folder / "DONE", mixed=["commit: abc123, then def456"])
    assert labels_of(runs) == ["krt (mixed)", "krt (mixed)", "finetune"]  # replicates share a line and a curve
    assert names_of(runs) == ["krt, seed 0", "krt (mixed), seed 1", "finetune, seed 0"]
    assert runs_table(runs)["mixed"].tolist() == ["", "commit: abc123, then def456", ""]
    legend = [line.get_label() for line in session_curves(runs).axes[0].get_lines()]
    assert any(label.startswith("krt (mixed)") for label in legend)
    setting = settings_of(runs)[0]
    assert definitions.MIXED in setting.remarks
    page = html_report(runs)
    assert page.count("commit: abc123, then def456") == 1 and ">mixed</span>" in page
    assert "krt (mixed)" in latex_report(runs)
    for text in (html_report([two[0]]), latex_report([two[0]])):
        assert "mixed" not in text


def test_a_leaking_mixed_run_has_both_marks():
    run = finished(leak="it had seen them")
    _edit(run.folder / "DONE", mixed=["python: 3.11, then 3.12"])
    line = settings_of([run])[0].lines[0]
    assert line.label == "krt (LEAK) (mixed)" and line.name == "krt" and line.leak and line.mixed


@pytest.mark.parametrize("name", ["a (copy)", "0 copied first", "backup/deep/a"])
def test_a_copy_counts_once_and_is_named(two, tmp_path, capsys, name):
    shutil.copytree(two[0].folder, tmp_path / "outputs" / name)
    runs, left_out = collect(["outputs"])
    assert len(runs) == 2 and len(left_out) == 1 and "a copy of" in left_out[0].reason
    assert main(["report", str(tmp_path / "outputs")]) == 0
    said = capsys.readouterr()
    assert "a copy of" in said.err and "± 0.00" not in said.out
    assert len(curves_table(comparable_runs("outputs"))) == 2


def test_a_copy_that_was_trained_again_is_one_too(two, tmp_path):
    """Other seconds, another date: the scores tell."""
    folder = tmp_path / "outputs" / "again"
    shutil.copytree(two[0].folder, folder)
    _edit(folder / "DONE", seconds=99.0, commit="other")
    assert len(collect(["outputs"])[0]) == 2


def test_the_same_experiment_with_other_scores_is_no_copy(two, tmp_path):
    folder = tmp_path / "outputs" / "again"
    shutil.copytree(two[0].folder, folder)
    _edit(folder / "DONE", mAP_per_session=[1.0, 2.0, 3.0, 4.0, 5.0])
    runs, _ = collect(["outputs"])
    assert len(runs) == 3 and "more than once" in " ".join(settings_of(runs)[0].remarks)


@pytest.mark.parametrize(("one", "other"), [(("aa",), ("bb",)), (("aa", "1"), ("aa", "2"))])
def test_replicates_of_changed_data_are_told_apart(two, one, other):
    _of_data(two[0], *one), _of_data(two[1], *other)
    labels = labels_of(two)
    assert len(set(labels)) == 2 and all(label.startswith("krt, data=") for label in labels)
    setting = settings_of(two)[0]
    assert [len(line.runs) for line in setting.lines] == [1, 1] and definitions.OTHER_DATA in setting.remarks


def test_replicates_are_told_apart_only_by_what_both_tell(two):
    _of_data(two[0], "aa", "1"), _of_data(two[1], "aa")  # the second is of an older version
    assert set(labels_of(two)) == {"krt"} and not settings_of(two)[0].remarks


def test_methods_on_other_data_share_a_setting_with_a_remark(two):
    other = _of_data(finished(overrides=["method=finetune"]), "bb")
    runs = [_of_data(two[0], "aa"), other]
    assert labels_of(runs) == ["krt", "finetune"] and definitions.OTHER_DATA in settings_of(runs)[0].remarks


def test_a_damaged_record_of_starts_hides_no_other_run(two):
    (two[0].folder / "environment.json").write_text("{")
    runs, left_out = collect(["outputs"])
    assert [run.folder for run in runs] == [two[1].folder]
    assert "environment.json is damaged" in left_out[0].reason and html_report(runs, left_out)
    assert Run(two[0].folder).done
