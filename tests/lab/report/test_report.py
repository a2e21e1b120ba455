"""The report: numbers checked against numpy, marks, definitions, and that nothing is loaded from anywhere."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from page import Page

from benchmarks.made_up_runs import coco, finished, voc
from krt_core.cli import main
from krt_core.config import load_experiment
from krt_core.errors import DataError, RunError
from krt_core.lab import figures as plots
from krt_core.lab.analysis.compare import authors_curves
from krt_core.lab.report import collect, definitions, label_of, runs_table, summary_table
from krt_core.lab.report import latex as report_latex
from krt_core.lab.report import published as reference
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.lab.report.paper_table import mean_and_std, settings_of
from krt_core.runs.folder import Run
from krt_core.session import train


@pytest.fixture
def some():
    """Two methods with two seeds and two class orders each, and a bound."""
    replicates = [f"seed={s} {o}".split() for s in (0, 1) for o in ("", "protocol.order_seed=7")]
    runs = [finished(overrides=[m, *r]) for m in ("method=krt", "method=finetune") for r in replicates]
    return [*runs, finished(overrides=["method=joint"], skill=4)]


# ---- numbers ----


def test_mean_and_spread_are_over_seeds_and_class_orders(some):
    page = Page(html_report(some))
    row = page.table("method")["krt"]
    krt = [run.summary for run in some[:4]]
    assert len({s["average_mAP"] for s in krt}) == 4
    for column, key in (("average mAP", "average_mAP"), ("last mAP", "last_mAP"), ("CF1", "CF1"), ("OF1", "OF1")):
        values = [s[key] for s in krt]
        assert row[column] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    lost = [s["forgetting"] for s in krt]
    assert row["forgetting"] == f"{np.mean(lost):.1f} ± {np.std(lost, ddof=1):.1f}".replace("-", "−")
    assert row["runs"] == "4 (2 seeds, 2 orders)" and page.table("method")["joint"]["runs"] == "1"
    assert row["time"] == "52 s" and row["peak memory"] == "104 MiB"  # 5 sessions of 10 or 11 s: 50 and 55
    sessions = page.table("mAP seen after session")["krt"]
    third = [run.curve()[2] for run in some[:4]]
    assert sessions["3"] == f"{np.mean(third):.1f} ± {np.std(third, ddof=1):.1f}"
    table = summary_table(runs_table(some))
    assert dict(zip(table.method, table.runs, strict=True)) == {"joint": 1, "krt": 4, "finetune": 4}
    text = next(line for line in latex_report(some).splitlines() if line.startswith("krt &"))
    values = [s["average_mAP"] for s in krt]
    assert rf"{np.mean(values):.1f} $\pm$ {np.std(values, ddof=1):.1f}" in text and text.endswith(r"& 4 (2, 2) \\")


def test_mean_and_std_in_words():
    assert mean_and_std(np.array([1.0, 2.0, 4.0])) == "2.3 ± 1.5"
    assert (
        mean_and_std(np.array([-3.25]), 2) == "−3.25"
        and mean_and_std(np.array([-0.01])) == "0.0"
        and mean_and_std(np.array([])) == "–"
    )


def test_the_best_of_ours_is_bold_but_neither_bound_nor_leak(some):
    leaked = finished(overrides=["method=krt", "model.embed_dim=64"], skill=6, leak="it had seen them")
    setting = settings_of([*some, leaked])[0]
    values = {line.label: line.values["average_mAP"].mean() for line in setting.lines}
    assert max(values, key=values.get) in ("krt (LEAK)", "joint")
    expected = max(("krt", "finetune"), key=values.get)
    assert setting.best("average_mAP").label == expected
    lost = {line.label: line.values["forgetting"].mean() for line in setting.lines}
    assert setting.best("forgetting").label == min(("krt", "finetune"), key=lost.get)
    html = html_report([*some, leaked])
    assert re.search(rf'>{expected}</th><td>0</td><td class="best">', html)
    assert settings_of(some[:4])[0].best("average_mAP") is None  # alone it is not the best of anything


def test_every_definition_of_forgetting_has_its_column(some):
    row = Page(html_report(some)).all_tables("method", "max class fixed")[0]["finetune"]
    for key in some[4].summary["forgetting_definitions"]:
        values = np.array([run.summary["forgetting_definitions"][key] for run in some[4:8]])
        assert row[key.replace("_", " ")] == mean_and_std(values)


def test_classes_stand_in_the_order_they_were_learned_in(some):
    first, second = Page(html_report(some)).all_tables("class")
    assert list(first)[:10] == list(some[0].protocol.classes) and list(second)[:10] == list(some[1].protocol.classes)
    ap = [run.session_state(4)["metrics"]["AP_seen"]["nine"] for run in (some[0], some[2])]
    assert first["nine"]["krt [2]"] == f"{np.mean(ap):.1f}"
    assert first["mean (last mAP)"]["joint [1]"] == f"{some[-1].summary['last_mAP']:.1f}"
    assert "joint [1]" not in second["nine"]


def test_csv_has_every_run_and_every_session(some, tmp_path, capsys):
    outputs = str(tmp_path / "outputs")
    assert main(["report", outputs, outputs, "--csv", str(tmp_path / "t.csv")]) == 0  # named twice, counted once
    table, sessions = pd.read_csv(tmp_path / "t.csv"), pd.read_csv(tmp_path / "t_sessions.csv")
    assert len(table) == 9 and len(sessions) == 9 * 5
    assert sorted(set(table.class_order)) == ["alphabetical", "seed 7"]
    one = sessions[sessions.run == some[0].folder.name]
    np.testing.assert_allclose(one.mAP_seen, some[0].curve())
    np.testing.assert_allclose(one.mAP_new, some[0].curve("mAP_new"))
    assert one.classes.tolist() == [2, 4, 6, 8, 10] and one.peak_memory_mb.tolist() == [100, 101, 102, 103, 104]


# ---- the page ----


def test_the_page_loads_nothing_and_every_figure_has_its_definition(some):
    text = html_report(some)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base"} and "@import" not in text
    assert not re.search(r"url\(|https?://", text)
    for tag, attributes in page.tags:
        assert all(attributes.get(key, "#").startswith("#") for key in ("href", "srcset", "action", "background"))
        if "src" in attributes:
            drawing = base64.b64decode(attributes["src"].removeprefix("data:image/svg+xml;base64,"), validate=True)
            assert tag == "img" and b"</svg>" in drawing and len(attributes["alt"]) > 20
            assert not re.findall(rb'(?:href|src)="(?!#|data:)', drawing)
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 8 and len(page.figures) == len(images) + len(page.tables)
    assert all(len(caption) > 40 for caption in page.figures)
    assert all(page.open[tag] == 0 for tag in ("figure", "table", "tr", "td", "th", "ul", "p", "div", "main"))
    for words in (definitions.RESULTS, definitions.FORGETTING, definitions.SESSIONS, definitions.COSTS):
        assert words in page.figures


def test_the_same_runs_give_the_same_figures(some):
    first, second = ([a["src"] for t, a in Page(html_report(some)).tags if t == "img"] for _ in range(2))
    assert first == second


def test_names_cannot_break_the_page_or_the_table(tmp_path):
    classes = ('<script>alert("1")</script>', "a & b", "50 %_{x}", "ünï")
    run = finished(overrides=["protocol.increment=2"], classes=classes, folder=tmp_path / 'runs/<i>&"x_1')
    text = html_report([run])
    assert "<script" not in text and "<i>" not in text
    page = Page(text)
    assert set(classes) < set(page.all_tables("class")[0]) and '<i>&"x_1' in page.text


def test_one_session_has_no_curve_and_no_forgetting():
    runs = [finished(overrides=["method=joint", "protocol.increment=10", f"seed={s}"]) for s in (0, 1)]
    text = html_report(runs)
    page = Page(text)
    assert page.table("method")["joint"]["forgetting"] == "–" and "<img" not in text
    assert "10 classes in 1 session;" in page.text and r" & -- & " in latex_report(runs)


@pytest.mark.filterwarnings("error")  # as of a deviation over a single value
def test_a_single_run_has_no_spread():
    text = html_report([finished()])
    row = Page(text).table("method")["krt"]
    assert row["runs"] == "1" and "±" not in "".join(row.values())


def test_runs_before_memory_was_recorded():
    page = Page(html_report([finished(memory=False)]))
    assert page.table("method")["krt"]["peak memory"] == "–"
    both = Page(html_report([finished(overrides=["seed=1"], memory=False), finished()]))
    assert both.table("method")["krt"]["peak memory"] == "104 MiB"


def test_runs_before_forgetting_had_several_definitions():
    run = finished()
    summary = {key: value for key, value in run.summary.items() if key != "forgetting_definitions"}
    run.write_json("DONE", summary)
    assert Page(html_report([run])).table("method")["krt"]["forgetting"] == mean_and_std(
        np.array([summary["forgetting"]])
    )


def test_settings_stay_apart():
    runs = [finished(), finished(overrides=["protocol.increment=5"]), voc()]
    settings = settings_of(runs)
    assert [(s.dataset, s.protocol) for s in settings] == [
        ("digits", "B0-C2"),
        ("digits", "B0-C5"),
        ("voc2007", "B0-C4"),
    ]
    assert len(Page(html_report(runs)).all_tables("mAP seen after session")) == 3
    assert latex_report(runs).count(r"\begin{tabular}") == 3


def test_what_makes_lines_less_comparable_is_said(some, tmp_path):
    remarks = " ".join(settings_of(some)[0].remarks)
    assert definitions.UNEQUAL in remarks  # joint has one run
    assert not settings_of(some[:8])[0].remarks
    copy = tmp_path / "outputs" / "copy"
    shutil.copytree(some[0].folder, copy)
    assert "more than once (krt, seed 0)" in settings_of([*some, Run(copy)])[0].remarks[1]
    best = [finished(overrides=["train.report=best", "train.evaluate_every=1"])]
    assert "train.report=best" in settings_of(best)[0].remarks[0]


# ---- marks ----


def test_a_leak_is_marked_everywhere(some):
    leaked = finished(overrides=["method=krt", "replay.per_class=5"], leak="it saw all ten digits")
    text = html_report([*some, leaked])
    page = Page(text)
    assert definitions.LEAK in page.text and "it saw all ten digits" in page.text
    for table in page.tables:
        if "against" in table[0][0]:
            assert not any("5 exemplars" in row[0] for row in table)  # no comparison is worth anything
            continue
        rows = [row for row in table if "5 exemplars" in row[0] and len(row) > 1]
        assert all("LEAK" in row[0] for row in rows)
        if table[0][0] != "class":
            assert sum("LEAK" in row[0] for row in table) == 1, table[0]
        else:
            assert sum("LEAK" in cell for cell in table[0]) == (table is page.tables[5])
    assert all(
        "LEAK" in a["alt"] for t, a in page.tags if t == "img" and ("After the last" in a["alt"] or "Bar" in a["alt"])
    )
    assert r"\textsc{leak}" in latex_report([leaked]) and "first weights had seen" in latex_report([leaked])
    assert "(LEAK)" in summary_table(runs_table([leaked])).method[0]


def test_published_lines_stand_beside_ours_with_their_source():
    text = html_report([coco(), coco(["replay.per_class=20"])])
    page = Page(text)
    results = page.table("method")
    assert "KRTpublished 1" in results and results["KRTpublished 1"]["average mAP"] == "74.6"
    assert results["KAR-Rpublished 1"]["runs"] == "–" and "KAR repository (secondary source" in page.text
    log = next(row for name, row in results.items() if name.startswith("KRT-R, λ 80published"))
    assert (log["average mAP"], log["last mAP"], log["CF1"], log["time"]) == ("77.0", "70.9", "63.9", "4.0 h")
    assert log["forgetting"] == "–"  # theirs is on another pool of images: it stands under its own definition only
    lost = page.all_tables("method", "max class fixed")[0]["KRT-R, λ 80, 20 exemplars per classpublished"]
    assert lost["max class fixed"] == "–" and 2 < float(lost["max class seen"]) < 9
    curve = page.table("mAP seen after session")["KRT-R, λ 80, 20 exemplars per classpublished"]
    assert [curve[str(t)] for t in (1, 2, 8)] == ["92.1", "81.4", "70.9"]
    assert definitions.PUBLISHED in page.text and any(definitions.AUTHORS in words for words in page.figures)
    assert len(re.findall(r'<tr class="published">', text)) == text.count("published</span>")
    latex = latex_report([coco()])
    assert r"\textit{KAR}$^{\dagger 1}$ & 0 & 80.6 & 75.2" in latex and "secondary source" in latex


def test_published_voc_lines_come_from_the_logs():
    row = Page(html_report([voc()])).table("method")["KRT-R, λ 80published 1"]
    assert (row["average mAP"], row["last mAP"], row["CF1"], row["OF1"]) == ("91.6", "85.0", "72.2", "68.7")
    assert (row["buffer"], row["time"]) == ("2/class", "14 min")


@pytest.mark.parametrize(
    "make",
    [
        finished,
        lambda: voc("voc_b10c2"),  # no log of it was published
        lambda: finished("voc_b0c4", classes=sorted(reference.published_classes("voc2007"))[:16]),  # other classes
        lambda: finished("voc_sub", ["data.root=data/voc2007"], classes=load_experiment("voc_sub").data.classes),
        lambda: finished("voc_b0c4", ["data.classes=[cat, dog, cow, car]"], classes=("car", "cat", "cow", "dog")),
    ],
)
def test_no_published_line_beside_anything_else(make):
    run = make()
    text = html_report([run])
    assert "published" not in text.split("</style>")[1] and "dagger" not in latex_report([run])


def test_no_published_line_beside_runs_tested_on_held_out_images():
    run = coco(["data.validation=0.1", "data.test=validation"])
    text = html_report([run])
    assert "tested on 10 % of the training images" in text and "dagger" not in latex_report([run])
    assert "published" not in text.split("</style>")[1] and not authors_curves(run)
    assert len(settings_of([run, coco()])) == 2


def test_an_f1_at_another_threshold_says_so(monkeypatch):
    plain = reference._text
    line = "coco2014,B0-C10,L3X,0,70.0,50.0,51.0,60.0,0.525,somewhere\n"
    monkeypatch.setattr(reference, "_text", lambda name: plain(name) + (line if name == "coco2014.csv" else ""))
    run = coco()
    assert "somewhere (F1 at threshold 0.525, not 0.8)" in Page(html_report([run])).text
    assert "somewhere (F1 at threshold 0.525, not 0.8)" in latex_report([run])


# ---- LaTeX ----


def test_latex_is_balanced_and_escaped():
    runs = [finished(overrides=["train.base_lr=0.1"]), finished(), coco(), coco(["seed=1"])]
    text = latex_report(runs)
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2 and text.isascii()
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}
    assert r"train.base\_lr=0.1" in text and not re.search(r"(?<!\\)[#_]", text.split("\n", 1)[1])
    assert report_latex.escape("a_b & 5 % {x} ~ \\ ^") == (
        r"a\_b \& 5 \% \{x\} \textasciitilde{} \textbackslash{} \textasciicircum{}"
    )


# ---- names, broken folders ----


def test_class_orders_are_replicates_and_curves_average_them(some):
    assert label_of(some[0], some) == label_of(some[1], some) == "krt"
    figure = plots.session_curves(some)
    line = next(x for x in figure.axes[0].get_lines() if x.get_label() == "krt (4 runs)")
    np.testing.assert_allclose(line.get_ydata(), np.mean([run.curve() for run in some[:4]], axis=0))
    with pytest.raises(RunError, match="class orders"):
        plots.forgetting_bars(some)
    bars = plots.forgetting_summary(some).axes[0]
    widths = [patch.get_width() for patch in bars.patches]
    np.testing.assert_allclose(widths[0], np.mean([run.summary["forgetting"] for run in some[:4]]))


def test_a_broken_folder_is_named_and_the_others_are_reported(tmp_path, capsys):
    good = finished()
    broken = {}
    for name, file, content in (
        ("cut", "DONE", '{"method": '),
        ("binary", "DONE", b"\xff\xfe\x00"),
        ("list", "DONE", "[]"),
        ("config", "experiment.yaml", "methd: krt"),
        ("less", "DONE", json.dumps({"config_hash": good.experiment.hash()})),
        ("other", "DONE", json.dumps({"config_hash": "00000000"})),
    ):
        broken[name] = tmp_path / "outputs" / name
        shutil.copytree(good.folder, broken[name])
        (broken[name] / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    part = tmp_path / "outputs" / "part"
    shutil.copytree(good.folder, part)
    for path in (part / "DONE", *(part / f"session_0{t}/state.json" for t in (3, 4))):
        path.unlink()
    missing = tmp_path / "outputs" / "missing"
    shutil.copytree(good.folder, missing)
    (missing / "session_02/state.json").unlink()
    assert main(["report", str(tmp_path / "outputs"), "--html", str(tmp_path / "r.html")]) == 0
    out, error = capsys.readouterr()
    page = Page((tmp_path / "r.html").read_text())
    listed = page.table("run folder")
    assert set(listed) == {*broken, "part", "missing"} and "krt" in page.table("method")
    for name in (*broken, "part", "missing"):
        assert f"left out: {name}: {listed[name]['reason']}" in error
    assert "3 of 5 sessions" in listed["part"]["reason"] and "session 3" in listed["missing"]["reason"]
    assert "methd" in listed["config"]["reason"] and "DONE" in listed["list"]["reason"]
    assert "lacks average_mAP" in listed["less"]["reason"] and "another configuration" in listed["other"]["reason"]
    shutil.rmtree(good.folder)
    assert main(["report", str(tmp_path / "outputs")]) == 2
    assert "No finished run found there" in capsys.readouterr().err


def test_folders_are_meant_from_home_and_must_exist(monkeypatch, tmp_path):
    finished()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    runs, left_out = collect(["outputs"])
    assert len(runs) == 1 and not left_out
    with pytest.raises(DataError, match="no folder nowhere"):
        collect(["nowhere"])


# ---- from training to page ----


def test_trained_runs_have_memory_and_a_stopped_one_says_how_far_it_got(tiny, tmp_path, capsys):
    run = train(tiny(method="finetune", train__epochs=1), show="none")
    train(tiny(method="krt", train__epochs=1), show="none", max_steps=1)
    states = [run.session_state(t)["peak_memory_mb"] for t in (0, 1)]
    assert 50 < states[0] <= states[1] == run.summary["peak_memory_mb"] < 100_000
    files = [str(tmp_path / name) for name in ("r.html", "r.tex", "r.csv")]
    command = ["report", "outputs", "--html", files[0], "--latex", files[1], "--csv", files[2]]
    assert main(command) == 0
    out, error = capsys.readouterr()
    assert all(file in out for file in files) and str(tmp_path / "r_sessions.csv") in out
    assert "2 of 2 sessions done, but not marked done (as with --max-steps)" in error
    page = Page((tmp_path / "r.html").read_text())
    assert "tiny (coco layout) · B0-C2" in page.text
    assert page.table("method")["finetune"]["peak memory"].endswith("iB")
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_without_network_shows_every_figure(some, tmp_path):
    probe = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth > 99).join()</script>"
    (tmp_path / "r.html").write_text(html_report(some).replace("</main>", "</main>" + probe))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", f"file://{tmp_path / 'r.html'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert f"<title>{','.join(['true'] * 8)}</title>" in done.stdout, done.stderr[-500:]
