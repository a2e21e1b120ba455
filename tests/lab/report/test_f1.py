"""F1 at other thresholds, against the metric itself; which differences hold, in LaTeX; runs chosen by what they are."""

import pandas as pd
import pytest
from page import Page

from benchmarks.made_up_runs import finished
from krt_core.cli import main
from krt_core.errors import ConfigError, DataError
from krt_core.lab.report import only, runs_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.metrics import F1_THRESHOLD, precision_recall_f1


@pytest.fixture
def runs():
    return [finished(overrides=["method=krt", f"seed={seed}"]) for seed in (0, 1)]


def test_at_the_published_threshold_it_is_the_headline(runs):
    for run in runs:
        found = run.f1(F1_THRESHOLD)
        assert {key: run.summary[key] for key in found} == pytest.approx(found, abs=1e-4, nan_ok=True)


def test_tables_have_half_and_what_validation_chose(runs):
    chosen = {str(runs[0].folder): (0.3, 0.4)}
    table = runs_table(runs, chosen)
    scores = runs[0].scores(4)
    assert table["OF1_at_0.5"][0] == pytest.approx(
        precision_recall_f1(scores.scores, scores.labels, 0.5)["OF1"], abs=1e-4
    )
    assert table["OF1_chosen"][0] == pytest.approx(
        precision_recall_f1(scores.scores, scores.labels, 0.4)["OF1"], abs=1e-4
    )
    assert table["CF1_threshold"].tolist()[0] == 0.3 and table[["CF1_chosen", "OF1_threshold"]].iloc[1].isna().all()
    row = Page(html_report(runs, thresholds=chosen)).all_tables("method", f"CF1 at {F1_THRESHOLD}")[0]["krt"]
    assert row["CF1 chosen"] == f"{table['CF1_chosen'][0]:.1f}" and row["threshold of CF1"] == "0.30"
    text = Page(html_report(runs)).text
    assert "CF1 chosen" not in text and "OF1 at 0.5" in text


def test_without_scores_the_rest_is_told(runs):
    (runs[0].session_folder(4) / "scores.npz").unlink()
    table = runs_table(runs)
    assert table["OF1_at_0.5"].isna().tolist() == [True, False] and table.OF1.notna().all()


def test_latex_says_which_differences_hold():
    runs = [finished(overrides=[f"method={m}", f"seed={s}"], skill=skill + 0.2 * s)
            for m, skill in (("krt", 2), ("finetune", 1)) for s in range(3)]  # fmt: skip
    text = latex_report(runs)
    assert r"krt against & Ahead by & Pairs & $p$ & $p$, Holm \\" in text and "finetune & " in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert latex_report(runs[::3]).count(r"\begin{table}") == 1


def test_runs_are_chosen_by_what_they_are(tmp_path, capsys):
    runs = [
        finished(overrides=["method=krt"]),
        finished(overrides=["method=krt", "replay.per_class=5"]),
        finished(overrides=["method=joint"]),
        finished(overrides=["method=krt", "protocol.base=4", "model.freeze=all"]),
    ]
    assert only(runs, ["protocol=B4-C2"]) == runs[3:] == only(runs, ["backbone=frozen"])
    assert only(runs, ["buffer=5/class"]) == runs[1:3] and only(runs, ["method=joint"]) == [runs[2]]
    assert only(runs, ["buffer=0", "backbone=trained"]) == [runs[0], runs[2]] and only(runs, ["dataset=digits"]) == runs
    with pytest.raises(ConfigError, match="Did you mean 'protocol'"):
        only(runs, ["protcol=B4-C2"])
    with pytest.raises(DataError, match="has protocol=B1-C1; there is B0-C2, B4-C2"):
        only(runs, ["protocol=B1-C1"])
    assert main(["report", "outputs", "--only", "protocol=B4-C2", "--csv", str(tmp_path / "t.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "t.csv")) == 1 and "B0-C2" not in capsys.readouterr().out
