"""Paired tests against scipy and by hand, Holm's correction against its definition, bars against every pair."""

import numpy as np
import pandas as pd
import pytest
from page import Page
from scipy.stats import ttest_rel

from benchmarks.made_up_runs import finished
from krt_core.errors import RunError
from krt_core.lab import figures as plots
from krt_core.lab.report.html import html_report
from krt_core.lab.report.paper_table import settings_of
from krt_core.lab.report.significance import (
    factor_table,
    holm,
    judged,
    mean_ranks,
    not_told_apart,
    paired_tests,
    replicates,
    table_of_tests,
)
from krt_core.lab.report.write import write_report


@pytest.fixture
def values():
    """Three methods on six class orders that move all of them alike: b stands 1 above a each time, c anywhere."""
    rng = np.random.default_rng(0)
    orders = rng.normal(50, 10, 6)
    return pd.DataFrame({"a": orders + rng.normal(0, 0.1, 6), "b": orders + 1, "c": orders + rng.normal(0, 6, 6)})


def test_pairs_are_compared_at_one_class_order(values):
    tests = paired_tests(values).set_index(["better", "worse"])
    first = tests.loc["b", "a"]
    assert first.p == pytest.approx(ttest_rel(values.b, values.a).pvalue) and first.pairs == 6
    assert first.difference == pytest.approx((values.b - values.a).mean())
    assert first["std"] == pytest.approx((values.b - values.a).std(ddof=1))
    assert first.p_holm == pytest.approx(min(1, 3 * first.p)) and first.p_holm < 0.001
    assert tests.loc["a", "c"].p > 1000 * first.p
    lower = paired_tests(values, higher_is_better=False)
    assert ("a", "b") in set(zip(lower.better, lower.worse, strict=True))


def test_a_t_test_has_nothing_to_say_of_differences_that_are_one_number():
    tests = paired_tests(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0], "c": [1.0, 2.0, 3.0]}))
    found = {frozenset((t.better, t.worse)): t for t in tests.itertuples()}
    assert np.isnan(found[frozenset("ab")].p) and found[frozenset("ab")].better == "b"
    assert found[frozenset("ac")].p == 1.0
    assert np.isnan(paired_tests(pd.DataFrame({"a": [1.0], "b": [2.0]})).p[0])


def test_holm():
    """0.01 · 4, 0.02 · 3, 0.03 · 2 = 0.06, 0.5: each at least the one before."""
    assert holm(np.array([0.03, 0.01, 0.5, 0.02, np.nan])).tolist()[:4] == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert np.isnan(holm(np.array([0.03, np.nan]))[1])


def test_a_bar_joins_neighbours_of_which_no_pair_is_told_apart(values):
    ranks = mean_ranks(pd.DataFrame({"a": [1, 2], "b": [2, 3], "c": [3, 1], "d": [0, 0]}))
    assert ranks.to_dict() == {"b": 1.5, "c": 2.0, "a": 2.5, "d": 4.0} or ranks["d"] == 4.0
    tests = pd.DataFrame({"better": ["b"], "worse": ["d"], "p_holm": [0.01]})
    names = list(ranks.index)
    assert not_told_apart(tests, ranks) == [(names[0], names[2]), (names[1], names[3])]
    none = pd.DataFrame({"better": [], "worse": [], "p_holm": []})
    assert not_told_apart(none, ranks) == [(names[0], names[3])]


@pytest.fixture
def runs():
    skills = {"krt": 2, "finetune": 1}
    return [
        finished(overrides=[f"method={m}", f"seed={s}", f"protocol.order_seed={s + 5}"], skill=skills[m] + 0.3 * s)
        for m in skills
        for s in range(3)
    ]


def test_only_replicates_that_all_have_are_compared(runs):
    setting = settings_of([*runs, finished(overrides=["method=krt", "seed=9"])])[0]
    table = judged(setting.lines, "average_mAP").values
    assert table.shape == (3, 2)
    assert table["krt"].tolist() == [run.summary["average_mAP"] for run in runs[:3]]


def test_lines_whose_first_weights_had_seen_the_labels_are_not_compared(runs):
    leaked = [finished(overrides=["method=pod", f"seed={s}", f"protocol.order_seed={s + 5}"], leak="it saw all")
              for s in range(3)]  # fmt: skip
    assert list(judged(settings_of([*runs, *leaked])[0].lines, "average_mAP").values) == ["krt", "finetune"]


def test_the_report_has_ranks_tests_and_tradeoffs(runs, home):
    page = Page(html_report(runs))
    row = page.table("average mAP: krt against")["finetune"]
    test = table_of_tests(settings_of(runs)).iloc[0]
    assert row["pairs"] == "3" and row["ahead by"] == f"{test.difference:.1f} ± {test['std']:.1f}"
    assert "Which differences hold" in page.text and any("Hollow: upper bounds" in figure for figure in page.figures)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    write_report(runs, csv=home / "table.csv")
    written = pd.read_csv(home / "table_tests.csv")
    assert written.metric.tolist() == ["average_mAP", "last_mAP"] and written.better.tolist() == ["krt", "krt"]


def test_behind_a_bound_is_said_with_a_minus(runs):
    joint = [
        finished(overrides=["method=joint", f"seed={s}", f"protocol.order_seed={s + 5}"], skill=6) for s in range(3)
    ]
    row = Page(html_report([*runs, *joint])).table("last mAP: krt against")["joint"]
    values = judged(settings_of([*runs, *joint])[0].lines, "last_mAP").values
    difference = values["krt"] - values["joint"]
    assert difference.mean() < 0
    assert row["ahead by"] == f"{difference.mean():.1f} ± {difference.std(ddof=1):.1f}".replace("-", "−")


def test_one_run_of_each_is_compared_with_nothing(runs):
    page = Page(html_report(runs[::3]))
    assert "Which differences hold" not in page.text
    assert table_of_tests(settings_of(runs[::3])).empty


def test_charts_name_every_method(runs):
    lines = settings_of(runs)[0].lines
    for chart in (plots.cost_chart(lines, 5), plots.stability_chart(lines)):
        assert {text.get_text() for text in chart.legends[0].get_texts()} == {"krt", "finetune"}
    ranks = mean_ranks(replicates(lines))
    words = " ".join(text.get_text() for text in plots.rank_chart(ranks, [], 3, "average mAP").axes[0].texts)
    assert "krt" in words and "finetune" in words


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Two levels of a factor: at the second KRT is as good as masked fine-tuning."""
    found = {}
    for level, skill in (("1.2", 3.0), ("2.5", 1.0)):
        found[level] = [
            finished(
                overrides=[f"method={m}", f"seed={s}", f"protocol.order_seed={s + 5}", f"data.cardinality={level}"],
                skill=how + 0.2 * s,
                folder=tmp_path_factory.mktemp("runs") / "run",
            )
            for m, how in {"joint": 6.0, "masked": 1.0, "krt": skill}.items()
            for s in range(3)
        ]
    return found


def test_a_factor_is_judged_in_pairs_at_each_of_its_levels(levels):
    table = factor_table(levels)
    assert table.groupby("metric").size().to_dict() == {"average_mAP": 6, "last_mAP": 6}
    assert table.method.tolist()[:3] == ["krt", "masked", "joint"] and set(table.pairs) == {3}
    row = table.set_index(["metric", "level", "method"]).loc["last_mAP", "1.2", "krt"]
    krt, masked, joint = ([run.summary["last_mAP"] for run in levels["1.2"] if run.experiment.method == m]
                          for m in ("krt", "masked", "joint"))  # fmt: skip
    assert row["mean"] == pytest.approx(np.mean(krt)) and row["std"] == pytest.approx(np.std(krt, ddof=1))
    gain = np.subtract(krt, masked)
    assert row.over_masked == pytest.approx(gain.mean()) and row.over_masked_std == pytest.approx(gain.std(ddof=1))
    assert row.over_joint == pytest.approx(np.subtract(krt, joint).mean()) and row.over_joint < 0
    raw = [ttest_rel(*([r.summary["last_mAP"] for r in runs if r.experiment.method == m] for m in ("krt", "masked")))
           for runs in levels.values()]  # fmt: skip
    assert row.over_masked_p == pytest.approx(holm(np.array([test.pvalue for test in raw]))[0])
    assert table[table.method == "joint"].over_joint.isna().all()  # no method is compared with itself
    one = factor_table({"1.2": levels["1.2"][:1]})
    assert one.pairs.tolist() == [1, 1] and one["std"].isna().all() and "over_masked" not in one


def test_runs_of_one_level_differ_in_method_and_replicate_alone(levels):
    with pytest.raises(RunError, match=r"mixed: runs of one level must have one setting, found digits, 1.2 .*2.5"):
        factor_table({"mixed": levels["1.2"] + levels["2.5"]})
    other = finished(overrides=["method=krt", "krt.rule=exact", "data.cardinality=1.2", "seed=0"])
    with pytest.raises(RunError, match=r"1.2: a method stands there in two forms \(.*krt, krt.rule=exact"):
        factor_table({"1.2": [*levels["1.2"], other]})


def test_the_chart_of_a_factor_has_every_method_and_what_krt_gains(levels):
    table = factor_table(levels)
    chart = plots.factor_chart(table, "labels per image")
    assert {text.get_text() for text in chart.legends[0].get_texts()} == {"krt", "masked", "joint"}
    (above, gained), (_, last) = (chart.axes[:2], chart.axes[2:])
    assert [text.get_text() for text in last.get_xticklabels()] == ["1.2", "2.5"]
    krt = next(line for line in gained.containers if line.get_label() == "krt − masked")
    rows = table[(table.metric == "average_mAP") & (table.method == "krt")]
    np.testing.assert_allclose(krt.lines[0].get_ydata(orig=False), rows.over_masked)
    whiskers = krt.lines[2][0].get_segments()
    np.testing.assert_allclose([np.ptp(one[:, 1]) / 2 for one in whiskers], rows.over_masked_std)
    markers = {one.lines[0].get_marker() for one in above.containers}
    assert len(markers) == 3  # told apart without colours
