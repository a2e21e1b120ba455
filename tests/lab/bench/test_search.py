"""Settings searched for on validation images: what is tried, which wins, and what happens when something is missing."""

import shutil

import pandas as pd
import pytest
from bench_world import ENDS, wait_for

from benchmarks import interruptions
from krt_core.cli import main
from krt_core.errors import ConfigError
from krt_core.lab.bench import command, search
from krt_core.lab.bench import slurm as slurm_module
from krt_core.lab.bench import state as s
from krt_core.lab.bench.matrix import load_matrix, plan
from krt_core.lab.bench.search import Score
from krt_core.lab.bench.state import JobFiles
from krt_core.runs.folder import Run
from krt_core.session import train

pytest_plugins = ("bench_world",)
GRID = {"keys": {"model.expand": [0, 8]}, "methods": {"ridge": {"ridge.penalty": [0.01, 1]}}, "validation": 0.3}
SMALL = dict(methods=["ridge", "finetune"], seeds=[0, 1], overrides={"train.epochs": 1}, search=GRID)


def planned(matrix_file, **content):
    return plan(load_matrix(matrix_file(**{**SMALL, **content})))


def do(jobs):
    """What workers would."""
    for job in jobs:
        train(job.experiment, job.run_folder, show="none")


@pytest.fixture
def scored(monkeypatch):
    """Trials that need no training: a score by what is in the id's experiment."""

    def use(score):
        monkeypatch.setattr(search, "score_of", score)

    return use


# ---- what is tried ----


def test_a_grid_is_tried_on_validation_images_by_every_method(matrix_file):
    made = planned(matrix_file, class_orders=[3, None], analysis=["03_forgetting_analysis"])
    ridge, finetune = made.contests
    assert [len(c.settings) for c in made.contests] == [4, 2]  # finetune has no penalty
    assert ridge.settings[1] == {"model.expand": 0, "ridge.penalty": 1} and finetune.settings[1] == {"model.expand": 8}
    assert len(made.jobs) == 6 and all(job.trial and job.trains for job in made.jobs) and len(made.open) == 2
    for job in made.jobs:
        e = job.experiment
        assert (e.data.validation, e.data.test, e.seed, e.protocol.order_seed) == (0.3, "validation", 0, 3)
        assert job.group == "trials/tiny-B0-C2-order3" and f"/trials/tiny-B0-C2-order3/runs/{job.id}" in job.run_folder
        assert e.train.epochs == 1
    more = planned(matrix_file, search={**GRID, "seeds": [4, 5]})
    assert [job.experiment.seed for job in more.jobs] == [4, 5] * 6
    assert {job.id[:-3] for job in more.jobs} == {job.id[:-3] for job in planned(matrix_file).jobs}


def test_draws_are_the_same_for_all_methods_and_more_begin_with_those_of_fewer(matrix_file):
    keys = {"train.lr": {"from": "1e-5", "to": 1e-3}, "train.epochs": {"from": 2, "to": 40}, "train.warmup": [0.1, 0.3]}
    asked = {"how": "random", "trials": 6, "keys": keys, "methods": {"krt": {"krt.token_weight": [1, 10, 100]}}}
    one, two = planned(matrix_file, methods=["krt", "pod"], search=asked).contests
    assert [len(c.settings) for c in (one, two)] == [6, 6] == [len(c.trials) for c in (one, two)]
    assert [{k: v for k, v in a.items() if k != "krt.token_weight"} for a in one.settings] == two.settings
    for setting in two.settings:
        assert 1e-5 <= setting["train.lr"] <= 1e-3 and float(f"{setting['train.lr']:.3g}") == setting["train.lr"]
        assert isinstance(setting["train.epochs"], int) and 2 <= setting["train.epochs"] <= 40
    rates = sorted(setting["train.lr"] for setting in planned(
        matrix_file, methods=["pod"], search={**asked, "methods": {}, "trials": 60}).contests[0].settings)  # fmt: skip
    assert 0.5e-4 < rates[30] < 2e-4  # half of them below 1e-4: uniform in the logarithm
    more = planned(matrix_file, methods=["pod"], search={**asked, "methods": {}, "trials": 9}).contests[0]
    assert more.settings[:6] == two.settings
    other = planned(matrix_file, methods=["pod"], search={**asked, "methods": {}, "seed": 1}).contests[0]
    assert other.settings != two.settings


def test_the_winner_learns_from_all_training_images_whatever_the_matrix_holds_out(matrix_file, scored):
    scored(lambda folder: Score(1.0, 1.0, 1.0))
    made = planned(matrix_file, overrides={"data.validation": 0.1, "train.evaluate_every": 1})
    trials, finals = ([job.experiment for job in made.jobs if job.trial == trial] for trial in (True, False))
    assert {(e.data.validation, e.data.test) for e in trials} == {(0.3, "validation")}
    assert {(e.data.validation, e.data.test, e.train.evaluate_every) for e in finals} == {(0.0, "test", 0)}


def test_a_method_with_fewer_settings_uses_what_it_has(matrix_file):
    asked = {"how": "random", "trials": 8, "methods": {"ridge": {"ridge.penalty": [0.1, 1, 1.0]}}}
    made = planned(matrix_file, search=asked)
    ridge, finetune = made.contests
    assert len(ridge.settings) == 2 and "2 settings (all it has, of 8 allowed)" in ridge.told({})
    assert not finetune.trials and finetune.told({}).startswith(
        "finetune on tiny with train.epochs=1: the preset chosen"
    )
    finals = [job for job in made.jobs if not job.trial]
    assert len(finals) == 2 and {job.experiment.method for job in finals} == {"finetune"}  # nothing to choose


def test_variants_and_blocks_have_contests_of_their_own(matrix_file):
    made = planned(
        matrix_file, overrides=[{"train": {"epochs": 1}}, {"train.epochs": 2}],
        methods=["ridge", "ridge ridge.old=soft"],
        also=[{"methods": ["joint_ridge"], "seeds": [7], "overrides": {"model.expand": 4}}],
        search={"methods": {"ridge": {"ridge.penalty": [1, 2]}, "ridge ridge.old=soft": {"ridge.penalty": [3]},
                            "joint_ridge": {"joint_ridge.penalty": [5, 6]}}},
    )  # fmt: skip
    assert [len(c.settings) for c in made.contests] == [2, 1, 2, 1, 2]
    assert made.contests[4].replicates == [(7, None)] and made.contests[0].replicates == [(0, None), (1, None)]
    assert len({c.name for c in made.contests}) == 5
    assert made.contests[4].trials[1][0].experiment.options.penalty == 6
    assert {made.contests[0].trials[0][0].experiment.train.epochs, made.contests[2].trials[0][0].experiment.train.epochs
            } == {1, 2}  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kyes": {}}, ["search.kyes", "keys"]),
        ({"keys": {}}, ["search needs keys"]),
        ({"keys": {"train.lrr": [1e-4]}}, ["train.lrr", "train.lr"]),
        ({"keys": {"train.lr": []}}, ["search.keys.train.lr", "list of values"]),
        ({"keys": {"train.lr": 1e-3}}, ["search.keys.train.lr", "list of values"]),
        ({"keys": {"train.lr": {"from": 1e-5, "to": 1e-3}}}, ["train.lr", "how: random"]),
        ({"how": "random", "keys": {"train.lr": {"from": 0, "to": 1e-3}}}, ["train.lr", "above 0"]),
        ({"how": "random", "keys": {"train.lr": {"from": 1, "to": "x"}}}, ["train.lr", "above 0"]),
        ({"how": "random", "keys": {"train.lr": {"from": 1, "too": 2}}}, ["train.lr", "from: 1e-5"]),
        ({"keys": {"seed": [0, 1]}}, ["search.keys.seed", "matrix"]),
        ({"keys": {"data.validation": [0.1]}}, ["data.validation", "not searched for"]),
        ({"keys": {"protocol.increment": [1]}}, ["protocol.increment", "not searched for"]),
        ({"methods": {"ridg": {"ridge.penalty": [1]}}}, ["'ridg'", "ridge"]),
        ({"methods": {"ridge": [1]}}, ["search.methods.ridge", "section"]),
        ({"methods": {"ridge": {"ridge.penalty": 1}}}, ["search.methods.ridge.ridge.penalty"]),
        ({"keys": {"model.expand": [0, 1, 2]}, "trials": 2}, ["grid of ridge", "search.trials = 2", "random"]),
        ({"keys": {"ridge.penalty": ["much"]}}, ["ridge.penalty", "number"]),
        ({"keys": {"train.lr": [1e-4]}, "trials": 0}, ["search.trials", "at least 1"]),
        ({"keys": {"train.lr": [1e-4]}, "validation": 1.0}, ["search.validation", "less than 1"]),
        ({"keys": {"train.lr": [1e-4]}, "by": "CF1"}, ["search.by", "last_mAP"]),
        (
            {"keys": {"train.report": ["best", "last"], "train.evaluate_every": [1]}},
            ["train.report=best", "test images"],
        ),
        ([1], ["search", "section"]),
    ],
)
def test_a_wrong_search_stops_before_anything_starts(matrix_file, asked, words, capsys):
    path = matrix_file(**{**SMALL, "search": asked})
    assert main(["bench", str(path)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (path.parent / "outputs" / "m").exists()


def test_what_the_search_says_the_method_must_not(matrix_file):
    with pytest.raises(ConfigError, match=r"search says data.validation"):
        planned(matrix_file, methods=["ridge data.validation=0.1"])


# ---- who wins ----


@pytest.mark.parametrize(
    ("scores", "by", "winner"),
    [
        ([(50, 40, 9), (60, 30, 9), (55, 45, 9), (1, 1, 1)], "average_mAP", 1),
        ([(50, 40, 9), (60, 30, 9), (55, 45, 9), (1, 1, 1)], "last_mAP", 2),
        ([(50, 40, 9), (60, 30, 9), (60, 45, 8), (1, 1, 1)], "average_mAP", 2),  # the quicker of equals
        ([(50, 40, 9), (60, 30, 8), (60, 45, 8), (60, 1, 9)], "average_mAP", 1),  # then the first
    ],
)
def test_the_best_on_validation_wins_then_the_quicker_then_the_first(matrix_file, scored, scores, by, winner):
    order = [job.run_folder for job in planned(matrix_file, methods=["ridge"]).jobs]
    scored(lambda folder: Score(*map(float, scores[order.index(folder)])))
    contest = planned(matrix_file, methods=["ridge"], search={**GRID, "by": by}).contests[0]
    assert contest.winner == winner and contest.score == scores[winner][by == "last_mAP"]


def test_seeds_of_trials_count_by_their_mean(matrix_file, scored):
    values = {"0": {0: 60, 1: 10}, "8": {0: 40, 1: 50}}
    asked = {"keys": {"model.expand": [0, 8]}, "seeds": [0, 1]}
    jobs = planned(matrix_file, methods=["ridge"], search=asked).jobs
    found = {job.run_folder: values[str(job.experiment.model.expand)][job.experiment.seed] for job in jobs}
    scored(lambda folder: Score(float(found[folder]), 0.0, 1.0))
    contest = planned(matrix_file, methods=["ridge"], search=asked).contests[0]
    assert contest.chosen == {"model.expand": 8} and contest.score == 45


def test_the_winner_is_trained_on_everything_and_tested_in_the_matrix_seeds_and_orders(matrix_file, capsys):
    content = dict(class_orders=[None, 3], analysis=["03_forgetting_analysis"], overrides={"train.epochs": 1,
                   "train.evaluate_every": 1})  # fmt: skip
    made = planned(matrix_file, **content)
    do(made.jobs[:3])
    assert len(planned(matrix_file, **content).jobs) == 6  # three of four trials of ridge are done: its runs wait
    do(made.jobs[3:4])
    half = planned(matrix_file, **content)
    finals = [job for job in half.jobs if not job.trial]
    assert [c.name.split()[0] for c in half.open] == ["finetune"] and len(finals) == 4 and all(j.trains for j in finals)
    assert {(j.experiment.seed, j.experiment.protocol.order_seed) for j in finals} == {
        (0, None),
        (1, None),
        (0, 3),
        (1, 3),
    }
    chosen = half.contests[0].chosen
    for job in finals:
        e = job.experiment
        assert (e.data.validation, e.data.test, e.train.evaluate_every) == (0.0, "test", 0)
        assert {"model.expand": e.model.expand, "ridge.penalty": e.options.penalty} == chosen
    do(made.jobs[4:])
    whole = planned(matrix_file, **content)
    analyses = [job for job in whole.jobs if not job.trains]
    assert not whole.open and len(analyses) == 2 and len(whole.jobs) == 6 + 8 + 2
    trials = {job.id for job in whole.jobs if job.trial}
    assert all(not trials & set(job.needs) and len(job.needs) == 4 for job in analyses)
    assert plan(load_matrix(matrix_file(**{**SMALL, **content}))).jobs == whole.jobs


def test_a_setting_more_runs_only_what_is_missing(matrix_file, tmp_path):
    made = planned(matrix_file)
    do(made.jobs)
    command.tell_search(load_matrix(matrix_file(**SMALL)), planned(matrix_file))
    wider = {**GRID, "methods": {"ridge": {"ridge.penalty": [1, 0.1, 0.01]}}}
    again = planned(matrix_file, search=wider)
    states = [JobFiles(tmp_path / "outputs/m", job).current().state for job in again.jobs if job.trial]
    assert states.count(s.DONE) == 6 and states.count(s.QUEUED) == 2 and len(again.open) == 1
    narrower = {**GRID, "methods": {"ridge": {"ridge.penalty": [1]}}}
    fewer = planned(matrix_file, search=narrower)
    assert not fewer.open and sum(job.trial for job in fewer.jobs) == 4
    command.tell_search(load_matrix(matrix_file(**{**SMALL, "search": narrower})), fewer)
    table = pd.read_csv(tmp_path / "outputs/m/trials.csv")
    assert len(table) == 6 and (table.state == "earlier").sum() == 2 and table.chosen.sum() == 2  # every trial is kept


# ---- from the command line ----


def test_dry_run_and_status_tell_what_is_known(matrix_file, capsys, machine, home):
    path = str(matrix_file(**SMALL))
    assert main(["bench", path, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "ridge on tiny with train.epochs=1: 0 of 4 trials of 4 settings (all it has, of 8 allowed) are done" in said
    assert "4 more runs, and the analyses, follow when their settings are chosen" in said
    do(planned(matrix_file).jobs[:4])
    assert main(["bench", path, "--status"]) == 0
    said = capsys.readouterr().out
    assert "chosen of 4 settings" in said and "on validation; 2 runs" in said and "0 of 2 trials of 2 settings" in said
    newer = home / "outputs/other/experiment.yaml"  # of a newer version, say: no reason to stop
    newer.parent.mkdir(parents=True)
    newer.write_text("name: other\nmethod: of_tomorrow\n")
    assert main(["bench", path, "--dry-run"]) == 0
    assert "2 more runs" in capsys.readouterr().out


TRAIN = (
    "import json, sys, pathlib; from krt_core.lab.bench.state import JobFiles; from krt_core.config import "
    "load_experiments; from krt_core.session import train; f = JobFiles.of({folder!r}); p = f.job.parameters; "
    "(e,) = load_experiments(p['preset'], p['methods'], p['seeds'], p['overrides']); "
    "train(e, f.job.run_folder, show='none')"
)


@pytest.fixture
def workers(stand, machine, monkeypatch):
    """Workers that train without a notebook; those of jobs that ``fails`` says end with an error."""
    from bench_world import Stand

    fails, started = set(), []

    class Plan(dict):
        def __missing__(self, name):
            folder = self.folder / "jobs" / name
            started.append(name)
            return [ENDS["error"] if any(part in name for part in fails) else TRAIN.format(folder=str(folder))]

    Stand.plan = Plan()

    def use(folder):
        Stand.plan.folder = folder
        return fails, started

    return use


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_runs_and_reports_in_one_go_and_a_failure_waits(matrix_file, workers, tmp_path, capsys):
    folder, path = tmp_path / "outputs" / "m", str(matrix_file(**SMALL, workers=2))
    fails, started = workers(folder)
    made = planned(matrix_file)
    fails.add(bad := made.contests[0].trials[1][0].id)
    assert main(["bench", path]) == 1
    said = capsys.readouterr().out
    assert (
        f"3 of 4 trials of 4 settings (all it has, of 8 allowed) are done; its 2 runs wait; {bad} failed (error)"
        in said
    )
    assert sum(name.startswith("tiny-finetune") for name in started) == 4 and len(started) == 8
    table = pd.read_csv(folder / "trials.csv")
    assert table.state.tolist() == ["done", "failed", "done", "done", "done", "done"] and table.chosen.sum() == 1
    page = (folder / "report.html").read_text()
    assert "Settings searched for" in page and "waits for its trials" in page and "ridge on tiny" in page
    assert main(["bench", path]) == 1 and len(started) == 8  # it is not tried again unasked
    fails.clear()
    assert main(["bench", path, "--retry-failed"]) == 0
    assert len(started) == 11 and started[8] == bad
    table = pd.read_csv(folder / "trials.csv")
    assert table.chosen.sum() == 2 and len(table) == 6 and table.seconds.notna().all()
    winner = table[table.chosen & table.contest.str.startswith("ridge")].iloc[0]
    assert winner.average_mAP == table[table.contest.str.startswith("ridge")].average_mAP.max()
    runs = pd.read_csv(folder / "table.csv")
    assert len(runs) == 4 and not runs.dataset.str.contains("training images").any()  # trials stand in their own table
    assert "waits for its trials" not in (folder / "report.html").read_text()
    ridge, trial = runs[runs.name.str.startswith("ridge")], Run(folder / winner.run)
    assert ridge.CF1_threshold.tolist() == pytest.approx([trial.best_thresholds()[0]] * 2, abs=1e-4)
    chosen = [
        Run(run_folder).f1(trial.best_thresholds()[1])["OF1"] for run_folder in sorted(folder.glob("*/runs/*ridge*"))
    ]
    assert sorted(ridge.OF1_chosen) == pytest.approx(sorted(chosen), abs=1e-4)
    assert main(["bench", path]) == 0 and len(started) == 11
    assert main(["bench", path, "--run", runs["run"][0]]) == 0 and len(pd.read_csv(folder / "table.csv")) == 4
    # one row anew, from the tables alone: every number but those of the clock
    row, again, trials = ridge.iloc[1], tmp_path / "outputs" / "again", str(folder / "trials.csv")
    workers(again)
    assert main(["bench", path, "--folder", str(again), "--trials", trials, "--run", row["run"]]) == 0
    (line,) = pd.read_csv(again / "table.csv").to_dict("records")
    clock = ("seconds", "peak_memory_mb")
    assert {k: str(v) for k, v in line.items() if k not in clock} == {k: str(row[k]) for k in line if k not in clock}
    assert (pd.read_csv(again / "trials.csv").state == "recorded").all() and not (again / "trials").exists()


def test_trials_of_a_table_are_not_made_again(matrix_file, tmp_path):
    trials = tmp_path / "trials.csv"
    ids = [job.id for job in planned(matrix_file).jobs]
    rows = [f"outputs/m/trials/x/{name},{50 + i},40,1" for i, name in enumerate(ids[:4])]
    trials.write_text("\n".join(["run,average_mAP,last_mAP,seconds", *rows]))
    made = planned(matrix_file, trials=str(trials))
    ridge, finetune = made.contests
    assert ridge.winner == 3 and finetune.winner is None and ridge.thresholds is None
    assert [job.id for job in made.jobs if job.trial] == ids[4:] and sum(not job.trial for job in made.jobs) == 2
    one = next(job.id for job in made.jobs if not job.trial)
    asked = planned(matrix_file, trials=str(trials), only=[one])
    assert [job.id for job in asked.jobs] == [one] and not asked.open  # without the other method's trials
    assert [contest.asked for contest in asked.contests] == [True, False]
    other = one.replace("ridge", "finetune")
    assert [job.id for job in planned(matrix_file, trials=str(trials), only=[other]).jobs] == ids[4:]
    with pytest.raises(ConfigError, match="has no run 'tiny-krt-1-s0'"):
        planned(matrix_file, trials=str(trials), only=["tiny-krt-1-s0"])
    trials.write_text("run,average_mAP\nx,1")
    with pytest.raises(ConfigError, match="is no trials.csv"):
        planned(matrix_file, trials=str(trials))
    with pytest.raises(ConfigError, match="no table of trials"):
        planned(matrix_file, trials="nowhere.csv")
    trials.write_text("run,average_mAP,last_mAP,seconds\nof/another,1,1,1")
    with pytest.raises(ConfigError, match="has no trial of this matrix"):
        planned(matrix_file, trials=str(trials))
    with pytest.raises(ConfigError, match="this matrix has no search"):
        planned(matrix_file, trials=str(trials), search=None)


def test_a_run_that_a_matrix_lacks_is_named(matrix_file):
    content = {**SMALL, "search": None, "methods": ["ridge"]}
    names = [job.id for job in plan(load_matrix(matrix_file(**content))).jobs if job.trains]
    assert [job.id for job in plan(load_matrix(matrix_file(**content, only=names[:1]))).jobs] == names[:1]
    with pytest.raises(ConfigError, match=f"has no run {names[0][:-1]!r}. Did you mean"):
        plan(load_matrix(matrix_file(**content, only=[names[0][:-1]])))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_never_open_the_test_half(matrix_file, workers, tmp_path, coco_root):
    for place in (coco_root / "val2014", coco_root / "annotations" / "instances_val2014.json"):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    folder, path = tmp_path / "outputs" / "m", str(matrix_file(**SMALL, workers=2))
    workers(folder)
    assert main(["bench", path]) == 1  # the runs of what was chosen have no test images
    table = pd.read_csv(folder / "trials.csv")
    assert (table.state == "done").all() and table.chosen.sum() == 2


@pytest.mark.slow
def test_a_limit_of_failures_holds_for_trials_and_runs_together(matrix_file, workers, tmp_path):
    path = str(matrix_file(**SMALL, workers=1))
    fails, started = workers(tmp_path / "outputs" / "m")
    fails.add("ridge")
    assert main(["bench", path, "--workers", "1", "--max-failures", "1"]) == 1 and len(started) <= 3


def test_on_slurm_the_runs_follow_their_trials(matrix_file, tmp_path, monkeypatch, capsys):
    """A cluster that does what it is given at once."""
    submitted = []

    def submit(matrix, wanted, after):
        submitted.append([f.job.id for f in wanted])
        do(f.job for f in wanted if f.job.trains)
        return set()

    monkeypatch.setattr(slurm_module, "_submit", submit)
    monkeypatch.setattr(slurm_module, "_queue", set)
    assert main(["bench", str(matrix_file(**SMALL, launch="slurm"))]) == 0
    assert [len(jobs) for jobs in submitted] == [6, 4]
    assert "chosen of 4 settings" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_stopped_in_the_middle_it_chooses_the_same(matrix_file, tmp_path, machine, monkeypatch):
    """With real workers and notebooks, a runner that is killed after a trial."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = {"keys": {"train.lr": [0.003, 0.00001]}, "validation": 0.3}
    path = matrix_file(methods=["finetune"], overrides={"train.epochs": 3}, search=asked, workers=1)
    two = tmp_path / "two"
    process = interruptions.start(str(path), two, tmp_path / "log")
    wait_for(lambda: list(two.glob("trials/*/runs/*/DONE")), 120)
    process.kill()
    process.wait(20)
    assert interruptions.left_after(two) < 10
    assert main(["bench", str(path), "--folder", str(two), "--workers", "1"]) == 0
    assert main(["bench", str(path), "--folder", str(tmp_path / "one"), "--workers", "1"]) == 0
    tables = [pd.read_csv(tmp_path / name / "trials.csv").drop(columns=["seconds", "run"]) for name in ("one", "two")]
    assert tables[0].equals(tables[1]) and tables[0].chosen.sum() == 1
    (final,) = two.glob("tiny-B0-C2/runs/*/experiment.yaml")
    experiment = Run(final.parent).experiment
    assert experiment.train.lr == tables[0]["train.lr"][tables[0].chosen].item() and not experiment.data.validation
