"""The bound of what restored labels can bring: true labels come by one door of the loop, to who is marked for it."""

import json
import sys

import numpy as np
import pytest

import krt_core.session as loop
from benchmarks.made_up_runs import finished
from krt_core.config import load_experiments
from krt_core.data import open_dataset
from krt_core.errors import ConfigError
from krt_core.lab.report import definitions, labels_of, runs_table, sessions_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.lab.report.paper_table import settings_of
from krt_core.methods import METHODS, Method, is_oracle
from krt_core.options import options_of
from krt_core.protocol import session_view
from krt_core.runs.folder import Run
from krt_core.session import train

LAB = """
from dataclasses import dataclass
from krt_core.methods import Method

class Peeping(Method):
    oracle = "peep"

    @dataclass(frozen=True)
    class Options:
        peep: bool = False
"""


@pytest.fixture
def lab(home, monkeypatch):
    (home / "peeplab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "peeplab", raising=False)
    options_of.cache_clear()
    yield home
    options_of.cache_clear()


@pytest.fixture
def views(monkeypatch):
    """The view of each session that a training has had."""
    found = []

    def watch(*arguments):
        view = session_view(*arguments)
        if len(arguments) > 5:  # not that which only asks for the rows of the next session
            found.append(view)
        return view

    monkeypatch.setattr(loop, "session_view", watch)
    return found


def truth_of(run, view):
    labels = run.protocol.reorder(open_dataset(run.experiment.data, "train").truth)
    return labels[view.rows][:, : view.labels.shape[1]]


@pytest.mark.parametrize("labels", ["widened", "strict"])
def test_the_oracle_sees_what_is_true_of_classes_so_far(tiny, views, labels):
    changes = {"replay.per_class": 2, "replay.labels": labels, "train.epochs": 1, "protocol.increment": 1}
    run = train(tiny(krt__oracle=True, **changes), show="none")
    assert len(views) == 4
    for index, view in enumerate(views):
        assert view.labels.shape[1] == index + 1 and (view.labels == truth_of(run, view)).all()
    assert views[1].labels[: views[1].own, 0].any() and len(views[1].rows) > views[1].own


@pytest.mark.parametrize("name", list(METHODS))
def test_no_method_sees_them_by_default(tiny, views, name):
    """Whatever it is: what it is shown of old classes is what `hidden` says, and it is marked as no oracle."""
    run = train(tiny(method=name, train__epochs=1, **{"replay.per_class": 1}), show="none", max_steps=2)
    method = METHODS[name](run.experiment.options, run.experiment)
    assert not method.is_oracle and not run.oracle and "oracle" not in run.session_state(1)
    assert "oracle" not in run.environment
    if method.sees != "session":
        return
    view = views[1]
    assert (view.labels[: view.own, :2] == method.hidden).all() and truth_of(run, view)[: view.own, :2].any()
    if view.own < len(view.rows):  # of exemplars what their own session showed
        assert (view.labels[view.own :, :2] == truth_of(run, view)[view.own :, :2]).all()


def test_only_krt_has_the_door_and_its_option_is_all_that_opens_it(tiny):
    assert [name for name, kind in METHODS.items() if kind.oracle] == ["krt"] and not Method.oracle
    assert not is_oracle(METHODS["krt"], tiny().options) and is_oracle(METHODS["krt"], {"oracle": True})
    assert not is_oracle(Method, {"oracle": True})
    with pytest.raises(ConfigError, match="unknown key 'finetune.oracle'"):
        tiny(method="finetune", finetune__oracle=True)
    assert tiny(krt__oracle=True).hash() != tiny().hash() == tiny(krt__oracle=False).hash()


def test_it_restores_nothing_and_learns_from_true_labels(tiny, tmp_path):
    run = train(tiny(krt__oracle=True), tmp_path / "oracle", show="none")
    assert run.session_state(1)["method"] == {"thresholds": {}} and run.ahead(0) is None
    plain = train(tiny(krt__pseudo_labels=False), tmp_path / "plain", show="none")
    assert (run.scores(0).scores == plain.scores(0).scores).all()  # the first session has no old class
    before, after = (one.session_state(1)["metrics"]["mAP_base"] for one in (plain, run))
    assert after > before


def test_it_is_marked_in_every_file(tiny, lab):
    for run in (train(tiny(krt__oracle=True), show="none"), train(tiny(method="peeplab:Peeping", Peeping__peep=True))):
        for name in ("DONE", "environment.json", "session_00/state.json", "session_01/state.json"):
            assert json.loads((run.folder / name).read_text())["oracle"] is True
        assert run.oracle and labels_of([run])[0].endswith(" (ORACLE)")
    (lab / "peeplab.py").unlink()
    sys.modules.pop("peeplab")
    options_of.cache_clear()
    assert Run(run.folder).oracle  # also where the method is gone
    options_of.cache_clear()


def test_it_is_marked_in_every_table():
    runs = [
        finished(overrides=overrides, skill=skill)
        for overrides, skill in ((["krt.oracle=true"], 9), (["method=krt"], 1), (["method=finetune"], 0))
    ]
    assert labels_of(runs) == ["krt (ORACLE)", "krt", "finetune"]
    assert runs_table(runs).oracle.tolist() == [True, False, False]
    assert sessions_table(runs).groupby("name").oracle.all().to_dict() == {
        "krt (ORACLE)": True, "krt": False, "finetune": False,
    }  # fmt: skip
    setting = settings_of(runs)[0]
    marked = next(line for line in setting.lines if line.oracle)
    assert marked.name == "krt" and marked.bound and setting.by_buffer()["upper bound"] == [marked]
    assert setting.best("average_mAP") is not marked and definitions.ORACLE in setting.remarks
    page, table = html_report(runs), latex_report(runs)
    assert ">ORACLE</span>" in page and definitions.ORACLE.split(",")[0] in page and r"\textsc{oracle}" in table
    for text in (html_report(runs[1:]), latex_report(runs[1:])):
        assert "oracle" not in text.lower()


def test_krt_and_its_ablations_are_rows_of_a_matrix(tiny, home):
    (home / "tiny.yaml").write_text(tiny(train__epochs=1).to_yaml())
    rows = ["krt", "krt krt.pseudo_labels=false", "krt krt.token_weight=0", "krt krt.head=linear krt.token_weight=0",
            "krt krt.oracle=true"]  # fmt: skip
    runs = [train(e, show="none", max_steps=1) for e in load_experiments(home / "tiny.yaml", rows, 0)]
    kinds = [run.experiment.head for run in runs]
    assert kinds == ["ica", "ica", "ica", "linear", "ica"]
    assert [bool(run.session_state(1)["method"]["thresholds"]) for run in runs] == [True, False, True, True, False]
    assert ["distillation" in run.epochs[-1] for run in runs] == [True, True, False, False, True]
    assert len({run.folder for run in runs}) == 5 and len(set(labels_of(runs))) == 5
    assert not np.isnan([run.epochs[-1]["loss"] for run in runs]).any()
