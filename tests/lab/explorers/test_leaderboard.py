"""The leaderboard: order, filters, published lines apart, and what it says where there is too little to compare."""

import pytest

from benchmarks.made_up_runs import coco, finished
from krt_core.errors import RunError
from krt_core.lab.explorers.leaderboard import Leaderboard
from krt_core.lab.report.leaderboard import leaderboard
from krt_core.lab.report.paper_table import mean_and_std, settings_of


@pytest.fixture
def runs():
    kinds = {"method=krt": 2, "method=finetune": 1, "method=krt replay.per_class=5": 3, "method=joint": 4}
    return [
        finished(overrides=[*kind.split(), f"seed={s}", f"protocol.order_seed={s + 5}"], skill=skill + 0.2 * s)
        for kind, skill in kinds.items()
        for s in range(3)
    ]


def test_the_best_comes_first_by_whatever_is_asked(runs):
    board = Leaderboard(runs=runs)
    for key in ("average_mAP", "last_mAP", "forgetting"):
        board.set(metric=key)
        lines = {line.label + " (bound)" * line.bound: line for line in board.lines}
        means = [lines[name].values[key].mean() for name in board.table().index]
        assert means == sorted(means, reverse=key != "forgetting")
    board.set(metric="average_mAP")
    row = board.table().loc["krt"]
    krt, joint = (next(line for line in board.lines if line.label == name) for name in ("krt", "joint"))
    assert row["average mAP"] == mean_and_std(krt.values["average_mAP"]) and row["runs"] == "3 (3 seeds, 3 orders)"
    distance = krt.values["average_mAP"].mean() - joint.values["average_mAP"].mean()
    assert row["from the bound"] == f"{distance:+.1f}".replace("-", "−")


def test_filters_leave_the_bounds_of_the_same_backbone(runs):
    frozen = [finished(overrides=["method=finetune", "model.freeze=all", f"seed={s}"]) for s in range(2)]
    board = Leaderboard(runs=[*runs, *frozen])
    board.set(buffer="5/class")
    assert set(board.table().index) == {"krt, 5 exemplars per class", "joint (bound)"}
    board.set(buffer="0", backbone="frozen")
    assert list(board.table().index) == ["finetune, frozen"]
    board.set(buffer="5/class")
    assert "No method here" in board.result("Table")[1]


def test_published_lines_stand_apart_with_their_source():
    setting = settings_of([coco()])[0]
    table = leaderboard(setting, setting.lines)
    ours = [not source for source in table.source]
    assert ours == sorted(ours, reverse=True) and not all(ours)  # ours first
    assert all("published: " in source for source in table.source[1:]) and table["from the bound"].iloc[-1] == "–"
    assert leaderboard(setting, setting.lines, published=False).source.tolist() == [""]


def test_views_and_what_they_say_of_too_little(runs, home):
    board = Leaderboard(home, runs=runs)
    for title in board.views:
        shown, problem = board.result(title)
        assert shown and not problem, title
    single = Leaderboard(home, runs=[runs[0], runs[3]])
    assert "two seeds or class orders" in single.result("Differences")[0][0]
    with pytest.raises(RunError, match="no complete run"):
        Leaderboard(home, runs=[])
