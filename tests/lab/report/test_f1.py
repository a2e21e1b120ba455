"""F1 at other thresholds, against the metric itself; which differences hold, in LaTeX; runs chosen by what they are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from page import Page
from sklearn.metrics import f1_score

from benchmarks.made_up_runs import finished
from krt_core.cli import main
from krt_core.errors import ConfigError, DataError, RunError
from krt_core.lab.figures import reliability
from krt_core.lab.report import only, runs_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.metrics import (
    BINS,
    F1_THRESHOLD,
    calibration_error,
    calibration_errors,
    precision_recall_f1,
    reliability_curve,
)  # fmt: skip
from krt_core.runs.calibration import Calibration


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


def calibrate(run):
    """As a session would, with numbers that are known: p = sigmoid(2 · logit − 1)."""
    classes = len(run.protocol.classes)
    made = replace(Calibration.none(classes), a=np.full(classes, 2.0), b=np.full(classes, -1.0))
    made = replace(made, thresholds=np.linspace(0.2, 0.6, classes), fitted=np.ones(classes, bool))
    made.write(run.session_folder(len(run.protocol.sessions) - 1) / "calibration.json")
    return made


def test_tables_have_calibrated_f1_and_errors_where_runs_have_them(runs):
    assert "ECE" not in Page(html_report(runs)).text
    assert runs_table(runs)[["CF1_calibrated", "ECE"]].isna().all(axis=None)
    made, (scores, labels) = calibrate(runs[0]), runs[0].tested()
    odds = scores / (1 - scores)
    p = (odds**2 * np.exp(-1)) / (1 + odds**2 * np.exp(-1))
    table = runs_table(runs)
    named, wanted = (p > made.thresholds) & labels, []
    for c in range(labels.shape[1]):
        wanted.append(f1_score(labels[:, c], p[:, c] > made.thresholds[c], zero_division=0))
    assert named.any() and table["CF1_calibrated"][0] == pytest.approx(100 * np.mean(wanted), abs=1e-3)
    assert table["ECE"][0] == pytest.approx(calibration_errors(scores, labels).mean(), abs=1e-3)
    assert table["ECE_calibrated"][0] == pytest.approx(calibration_errors(p, labels).mean(), abs=0.01)
    assert table[["OF1_calibrated", "ECE"]].iloc[1].isna().all()
    page = Page(html_report(runs))
    row = page.all_tables("method", f"CF1 at {F1_THRESHOLD}")[0]["krt"]
    assert row["CF1 calibrated"] == f"{table['CF1_calibrated'][0]:.1f}" and "held out of each session" in page.text
    assert row["ECE calibrated"] == f"{table['ECE_calibrated'][0]:.1f}"


def test_a_damaged_calibration_leaves_the_rest(runs):
    calibrate(runs[0])
    (runs[0].session_folder(4) / "calibration.json").write_text("{")
    table = runs_table(runs)
    assert table["CF1_calibrated"].isna().all() and table["OF1_at_0.5"].notna().all()
    with pytest.raises(RunError, match="calibration"):
        runs[0].calibrated()


def test_a_reliability_diagram_has_what_the_metrics_say(runs):
    with pytest.raises(RunError, match=r"no calibration after session 5.*data\.validation"):
        reliability(runs[0])
    made, (scores, labels) = calibrate(runs[0]), runs[0].tested()
    figure = reliability(runs[0])
    p = made.probabilities(scores)
    said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert said == [f"{name}, off by {calibration_error(x, labels):.1f} points" for name, x in
                    (("scores", scores), ("calibrated", p))]  # fmt: skip
    mean, share, _ = reliability_curve(p, labels, BINS, mass=False)
    drawn = figure.axes[0].get_lines()
    assert any(line.get_xydata().shape == (len(mean), 2) and np.allclose(line.get_xydata().T, [mean, share])
               for line in drawn)  # fmt: skip
    errors = calibration_errors(p, labels)
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes[2:]]
    assert titles == [runs[0].protocol.classes[c] for c in np.argsort(-errors)[:4]]


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
