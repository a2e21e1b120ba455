"""Pseudo labels against the truth, on six images that can be counted by hand; the inspector on made-up runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.made_up_runs import coco, finished
from krt_core.data import MultiLabelDataset, open_dataset
from krt_core.dpl import find_thresholds
from krt_core.errors import DataError, RunError
from krt_core.lab.analysis.pseudo_labels import (
    KINDS_OF_ONE,
    averages,
    class_quality,
    gives_pseudo_labels,
    pseudo_labels,
    quality,
)
from krt_core.lab.analysis.splits import split_words
from krt_core.lab.explorers.pseudo_labels import ALL, LabelInspector
from krt_core.lab.figures.data import co_occurrence, session_sizes
from krt_core.lab.figures.pseudo_labels import (
    pseudo_label_classes,
    pseudo_label_heatmap,
    pseudo_label_images,
    pseudo_label_quality,
    pseudo_label_threshold,
    pseudo_labels_per_image,
    thresholds,
)
from krt_core.protocol import make_protocol
from krt_core.runs.folder import Run
from krt_core.session import train


def draw(figure):
    """A bare figure has no canvas that draws."""
    FigureCanvasAgg(figure).draw()


def record(threshold, per_class=(), converged=True):
    found = {"target": 1.0, "found": 1.0, "steps": 3, "converged": converged}
    return {"threshold": threshold, **found, "per_class": per_class}


def change_state(run, session, **values):
    run.write_json(f"session_{session:02d}/state.json", {**run.session_state(session), **values})


def write_ahead(run, session, ids, scores):
    np.savez(run.session_folder(session) / "ahead.npz", ids=np.asarray(ids), scores=np.asarray(scores, np.float32))


def a_dataset(labels, classes=("a", "b", "c", "d")):
    ids = np.arange(len(labels)).astype(str)
    paths, boxes = np.array([f"{i}.jpg" for i in ids]), np.zeros((0, 6))
    return MultiLabelDataset("six", "train", Path("/nowhere"), ids, paths, np.array(labels, bool), classes, boxes)


@pytest.fixture
def counted():
    """Sessions a b | c d; the second sees images 0 1 2 3 5 and the exemplar 4, which shows a and no b."""
    run = finished(overrides=["method=krt"], classes=("a", "b", "c", "d"))
    dataset = a_dataset([[1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    scores = [[0.9, 0.2], [0.8, 0.1], [0.3, 0.6], [0.4, 0.7], [0.1, 0.55], [0.95, 0.6]]
    write_ahead(run, 0, ["0", "1", "2", "3", "5", "4"], scores)
    change_state(run, 0, memory={"ranked": [[4], []], "sessions": [0, 0]})
    change_state(run, 1, method={"thresholds": {"1": record(0.5)}})
    return Run(run.folder), dataset


def test_counts(counted):
    found = pseudo_labels(counted[0], 1, counted[1])
    assert found.own == 5 and found.ids.tolist() == ["0", "1", "2", "3", "5", "4"]
    assert np.argwhere(found.hidden).tolist() == [[0, 0], [2, 1], [3, 0], [3, 1]]
    assert np.argwhere(found.visible).tolist() == [[5, 0]]  # shown, so neither hidden nor given
    assert np.argwhere(found.right).tolist() == [[0, 0], [2, 1], [3, 1]]
    assert np.argwhere(found.wrong).tolist() == [[1, 0], [4, 1], [5, 1]]  # the last overrules the exemplar's "no b"
    assert np.argwhere(found.missed).tolist() == [[3, 0]]
    table = found.per_class().set_index("class")
    assert table[["hidden", "given", "right"]].to_numpy().tolist() == [[2, 2, 1], [2, 4, 2]]
    np.testing.assert_allclose(table[["precision", "recall", "F1"]], [[50, 50, 50], [50, 100, 200 / 3]])
    line = quality(counted[0], counted[1]).loc[2]
    assert line[["precision micro", "recall micro", "F1 micro"]].tolist() == [50, 75, 60]
    np.testing.assert_allclose(line[["precision macro", "recall macro", "F1 macro"]], [50, 75, (50 + 200 / 3) / 2])
    assert line.hidden == pytest.approx(4 / 6) and line.given == 1
    only = quality(counted[0], counted[1], "b").loc[2]
    assert only["recall micro"] == only["recall macro"] == 100 and only.given == 4 / 6
    assert {"expected", "found"} <= set(line.index) and not {"expected", "found"} & set(only.index)  # of all classes
    assert class_quality(counted[0], counted[1])["recall"].tolist() == [[50, 100]]


def test_images(counted):
    found = pseudo_labels(counted[0], 1, counted[1])
    assert found.images("right").tolist() == [0, 2]  # 0.9, 0.6; image 3 misses one
    assert found.images("wrong").tolist() == [1, 5, 4]  # 0.8, 0.6, 0.55
    assert found.images("missed").tolist() == [3]
    assert found.images("right", 1).tolist() == [3, 2] and found.images("missed", 1).tolist() == []
    with pytest.raises(RunError, match="Did you mean 'wrong'"):
        found.images("wrongs")


def test_nothing_given_or_hidden_is_not_a_number(counted, recwarn):
    run, dataset = counted
    change_state(run, 1, method={"thresholds": {"1": record(0.99)}})
    table = pseudo_labels(run, 1, dataset).per_class()
    assert table.precision.isna().all() and table.recall.tolist() == [0, 0] and table.F1.tolist() == [0, 0]
    line = quality(run, dataset).loc[2]
    assert np.isnan(line["precision micro"]) and np.isnan(line["precision macro"]) and line["recall macro"] == 0
    assert np.isnan(averages(np.zeros((3, 2), int))["F1 macro"])
    for figure in every_figure(run, dataset, 1):
        draw(figure)
    assert not recwarn.list


def test_thresholds_per_class_and_their_border(counted):
    run, dataset = counted
    change_state(run, 1, method={"thresholds": {"1": record(0.7, [0.85, 0.55])}})
    found = pseudo_labels(run, 1, dataset)
    assert np.argwhere(found.given).tolist() == [[0, 0], [2, 1], [3, 1], [5, 1]]  # 0.55 is not above 0.55
    assert quality(run, dataset, "a").threshold.tolist() == [0.85]


def test_other_thresholds(counted):
    found = pseudo_labels(*counted[:1], 1, counted[1])
    for column in (None, 1):
        curve, some = found.curve(column).set_index("threshold"), slice(None) if column is None else [column]
        for at in (0.0, 0.25, 0.75):
            given = (found.scores > at)[:, some] & ~found.visible[:, some]
            right = (given & found.truth[:, some]).sum()
            expected = 100 * right / given.sum() if given.sum() else np.nan
            np.testing.assert_allclose(curve.loc[at], [expected, 100 * right / found.hidden[:, some].sum()])


def test_what_is_missing_is_said(counted):
    run, dataset = counted
    with pytest.raises(RunError, match="Session 1 has no old classes"):
        pseudo_labels(run, 0, dataset)
    with pytest.raises(RunError, match="method finetune.*krt.pseudo_labels=true"):
        pseudo_labels(finished(overrides=["method=finetune"]), 1, dataset)
    with pytest.raises(RunError, match="No run here gave pseudo labels"):
        pseudo_label_quality([finished(overrides=["method=joint"])])
    with pytest.raises(DataError, match="Image '5' of .* is not in six train"):
        pseudo_labels(run, 1, a_dataset(dataset.labels[:5]))
    other = dataset.labels.copy()
    other[1, 2] = False  # image 1 would not be seen any more
    with pytest.raises(DataError, match="images or labels have changed"):
        pseudo_labels(run, 1, a_dataset(other))
    with pytest.raises(DataError, match="images or labels have changed"):
        pseudo_labels(run, 1, a_dataset(dataset.labels[:, :3], ("a", "b", "c")))
    (run.session_folder(0) / "ahead.npz").unlink()
    with pytest.raises(RunError, match="ahead.npz is missing"):
        pseudo_labels(run, 1)
    with pytest.raises(RunError, match="ahead.npz is missing"):
        pseudo_labels(run, 1, dataset)
    assert not gives_pseudo_labels(finished(overrides=["method=finetune"]))


def test_classes_in_another_order_than_the_data_set(counted):
    run, dataset = counted
    turned = a_dataset(dataset.labels[:, [3, 1, 0, 2]], ("d", "b", "a", "c"))
    assert (pseudo_labels(run, 1, turned).hidden == pseudo_labels(run, 1, dataset).hidden).all()


def test_a_search_that_failed_is_marked(counted):
    run, dataset = counted
    found = pseudo_labels(run, 1, dataset)
    assert quality(run, dataset).converged.tolist() == [1]
    assert pseudo_label_threshold(found, quality(run, dataset)).axes[0].get_legend() is None
    change_state(run, 1, method={"thresholds": {"1": record(0.5, converged=False)}})
    table = quality(run, dataset, "a")
    assert table.converged.tolist() == [0]
    axis = pseudo_label_threshold(found, table, 0).axes[0]
    (hollow,) = [line for line in axis.lines if line.get_markerfacecolor() == "white"]
    assert hollow.get_xydata().tolist() == [[2, 0.5]]
    assert axis.get_legend().get_texts()[0].get_text() == "did not meet the band: closest"
    change_state(run, 1, method={"thresholds": {"1": record(0.7, [0.85, 0.55], False)}})
    assert quality(run, dataset).converged.tolist() == [0]
    assert quality(run, dataset, "a").converged.isna().all()  # the search of b may be the one


def test_thresholds_per_class_are_no_point_of_the_curve(counted):
    run, dataset = counted
    single = pseudo_label_threshold(pseudo_labels(run, 1, dataset), quality(run, dataset)).axes[1]
    assert [0.5] in [list(line.get_xdata()) for line in single.lines] and single.get_legend() is None
    change_state(run, 1, method={"thresholds": {"1": record(0.7, [0.85, 0.55])}})
    found, table = pseudo_labels(run, 1, dataset), quality(run, dataset)
    axis = pseudo_label_threshold(found, table).axes[1]
    assert not [line for line in axis.lines if set(line.get_xdata()) == {0.7}] and "one threshold" in axis.get_title()
    levels = [line.get_ydata()[0] for line in axis.lines if line.get_ls() == ":"]
    assert levels == table.loc[2, ["precision micro", "recall micro"]].tolist()
    assert axis.get_legend().get_title().get_text() == "with a threshold for each class"
    of_one = pseudo_label_threshold(found, quality(run, dataset, "a"), 0).axes[1]
    assert [0.85] in [list(line.get_xdata()) for line in of_one.lines]


def test_images_that_hide_nothing_are_not_restored(counted):
    found = pseudo_labels(counted[0], 1, counted[1])  # of 0, 2 and 3 the last misses one; 1, 4 and 5 hide none
    words = pseudo_labels_per_image(found).get_suptitle()
    assert "3 of 6 images hide old labels; on 67 % of these all are restored and none is wrong." in words


def test_dollars_are_no_mathematics(counted):
    old, dataset = counted
    names = (r"$\alph$", r"$\frac$", "y$", "z")  # the first two cannot be read as mathematics
    run = finished(overrides=["method=krt", "seed=5"], classes=names)
    shutil.copy(old.session_folder(0) / "ahead.npz", run.session_folder(0))
    change_state(run, 0, memory={"ranked": [[4], []], "sessions": [0, 0]})
    change_state(run, 1, method={"thresholds": {"1": record(0.5)}})
    dataset = a_dataset(dataset.labels, names)
    assert run.protocol.classes == names
    figures = every_figure(run, dataset, 1, names[1])
    for figure in figures:
        draw(figure)
    assert all(names[1] in (getattr(figure, "alt", "") or figure.get_suptitle()) for figure in figures[1:])


# ---- pictures and the inspector ----


def every_figure(run, dataset, session, name=""):
    found = pseudo_labels(run, session, dataset)
    return [
        thresholds([run]),
        pseudo_label_quality(run, dataset, name=name),
        pseudo_label_quality([run], dataset, found.classes[0], name=name),
        pseudo_label_threshold(found, quality(run, dataset), name=name),
        pseudo_label_threshold(found, quality(run, dataset, found.classes[0]), 0, name=name),
        pseudo_label_classes(found, 0, name=name),
        pseudo_label_heatmap(run, dataset, name=name),
        pseudo_labels_per_image(found, name=name),
        *(
            pseudo_label_images(found, kind, column, name=name)
            for kind in ("right", "wrong", "missed")
            for column in (None, 1)
        ),
    ]


def restored(run, dataset, seed=0):
    """Give a made-up run what a KRT training writes: scores of the images to come and thresholds."""
    rng, labels, records, last = (
        np.random.default_rng(seed),
        dataset.select_classes(run.protocol.classes).labels,
        {},
        None,
    )
    for session in run.protocol.sessions[1:]:
        rows, t = run.protocol.train_images(labels, session.index), session.index
        z = 3 * labels[rows, : session.start] - 1 + rng.normal(size=(len(rows), session.start))
        scores = (1 / (1 + np.exp(-z))).astype(np.float32)
        last = find_thresholds(scores, labels[rows, : session.start].sum(axis=1).mean(), last=last)
        records[str(t)] = last.as_dict()
        write_ahead(run, t - 1, dataset.ids[rows], scores)
        change_state(run, t, method={"thresholds": records})
    return run


def made_up(root, *overrides):
    run = finished(overrides=["data.dataset=coco", f"data.root={root}", *overrides], classes=CLASSES, images=24)
    return restored(run, open_dataset(run.experiment.data, "train")) if run.experiment.method == "krt" else run


def test_pictures_of_every_size(counted):
    rng = np.random.default_rng(0)
    large = coco(["method=krt"])
    dataset = a_dataset(rng.random((300, 80)) < 0.1, large.protocol.classes)
    for run, data, session in ((*counted, 1), (restored(large, dataset), dataset, 7)):
        for figure in every_figure(run, data, session):
            draw(figure)
    figure = pseudo_label_classes(pseudo_labels(large, 7, dataset))
    assert [column for axis in figure.axes for column in axis.columns] == list(range(70))


def test_replicates_are_averaged_and_others_left_out(coco_root):
    runs = [made_up(coco_root, "method=krt", f"seed={seed}") for seed in (0, 1)]
    runs.append(made_up(coco_root, "method=finetune"))
    axis = pseudo_label_quality(runs).axes[0]
    assert len(axis.lines) == 2  # micro and macro of one method
    expected = np.mean([quality(run)["precision micro"] for run in runs[:2]], axis=0)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), expected)


def shown(inspector):
    """Bytes of the open view's first picture."""
    return inspector.tabs.children[inspector.tabs.selected_index].children[0].png


def text(inspector):
    return " ".join(
        getattr(child, "value", "") for child in inspector.tabs.children[inspector.tabs.selected_index].children
    )


def test_inspector(coco_root):
    runs = [made_up(coco_root, "method=krt", "protocol.increment=1", f"seed={seed}") for seed in (0, 1)]
    inspector = LabelInspector(runs=[*runs, finished(overrides=["method=finetune"])])
    assert list(inspector.runs) == ["krt, seed 0", "krt, seed 1"] and inspector.value("session") == 4
    inspector.draw()
    before = shown(inspector)
    inspector.controls["session"].value = 3
    assert shown(inspector) != before
    assert inspector.controls["name"].options == (("all old classes", ALL), ("ant", "ant"), ("bee", "bee"))
    before = shown(inspector)
    inspector.controls["name"].value = "bee"
    assert shown(inspector) != before
    inspector.controls["session"].value = 2
    assert inspector.value("name") == ALL  # bee is not old in session 2
    for title in ("Classes", "Sessions", "Per image", "Images"):
        inspector.tabs.selected_index = list(inspector.views).index(title)
        before = shown(inspector)
        inspector.controls["run"].value = "krt, seed 1" if inspector.value("run").endswith("0") else "krt, seed 0"
        assert shown(inspector) != before, title
    before = shown(inspector)
    inspector.controls["kind"].value = "missed"
    assert shown(inspector) != before


def test_figures_say_which_run_and_what_they_show(coco_root):
    runs = [made_up(coco_root, "method=krt", *more) for more in ((), ("model.query=retention",))]
    inspector = LabelInspector(runs=runs)
    name = "krt, model.query=retention, seed 0"
    inspector.set(run=name)
    for title in inspector.views:
        shown = inspector.result(title)[0]
        figures = [item for item in shown if hasattr(item, "axes") and hasattr(item, "savefig")]
        assert len(figures) == (2 if title == "Sessions" else 1)
        for figure in figures:
            assert name in (getattr(figure, "alt", "") or figure.get_suptitle()), title
    about, table = inspector.result("Threshold")[0][1:]
    assert "found: what it counted" in about and set(table.converged) <= {"yes", "no"} and "found" in table
    inspector.set(name="ant")
    about, table = inspector.result("Threshold")[0][1:]
    assert about.startswith("Labels of ant per image") and "found" not in table and "given" in table


def test_kinds_of_images_in_words_of_what_is_chosen(coco_root):
    inspector = LabelInspector(runs=[made_up(coco_root, "method=krt")])
    words = [label for label, _ in inspector.controls["kind"].options]
    assert words[0] == "right: only right labels, the most certain first"
    inspector.set(kind="right", name="ant")
    words = [label for label, _ in inspector.controls["kind"].options]
    assert words[0] == "right: its label is right, the most certain first" and inspector.value("kind") == "right"
    (figure,) = inspector.result("Images")[0]
    assert f"ant: {KINDS_OF_ONE['right']}" in figure.alt
    inspector.set(name=ALL)
    assert "only right labels" in inspector.controls["kind"].options[0][0]


def test_a_class_named_all_can_be_chosen(coco_root):
    run = finished(overrides=["method=krt"], classes=("all", "b", "c", "d"))
    change_state(run, 1, method={"thresholds": {"1": record(0.5)}})
    inspector = LabelInspector(runs=[run])
    assert inspector.column is None
    inspector.controls["name"].value = "all"
    assert inspector.column == 0


def test_a_run_folder_that_is_deleted_while_it_is_shown(coco_root):
    runs = [made_up(coco_root, "method=krt", f"seed={seed}") for seed in (0, 1)]
    inspector = LabelInspector(runs=runs)
    inspector.draw()
    for run in runs:
        shutil.rmtree(run.folder)
    for name in ("krt, seed 0", "krt, seed 1"):  # the second was not looked at before
        inspector.set(run=name)
        for title in inspector.views:
            inspector.tabs.selected_index = list(inspector.views).index(title)
            inspector.draw()
            assert "finished" in text(inspector) and "<pre>" not in text(inspector), title
            assert not hasattr(inspector.tabs.children[inspector.tabs.selected_index].children[0], "png")


def test_a_click_on_a_class_shows_its_images(coco_root):
    inspector = LabelInspector(runs=[made_up(coco_root, "method=krt", "protocol.increment=1")])
    inspector.tabs.selected_index = list(inspector.views).index("Classes")
    picture = inspector.tabs.children[1].children[0]
    axis = picture._figure.axes[0]
    x, y = picture._figure.transFigure.inverted().transform(axis.transData.transform((50, 1)))
    picture.clicked = [x, 1 - y, 1]
    assert inspector.value("name") == "bee" and inspector.tabs.selected_index == list(inspector.views).index("Images")
    inspector.tabs.selected_index = list(inspector.views).index("Sessions")
    inspector._pick_row(inspector.tabs.children[2].children[0]._figure.axes[0], 1.2, 0.1)
    assert (inspector.value("session"), inspector.value("name")) == (3, "ant")


def test_problems_are_words_not_errors(coco_root):
    inspector = LabelInspector(runs=[finished(overrides=["method=finetune"])])
    inspector.draw()
    assert "No run here gave pseudo labels" in text(inspector)
    assert inspector.result("Images")[1].startswith("No run here") and inspector.headless == ["Threshold"]
    run = made_up(coco_root, "method=krt")
    inspector = LabelInspector(runs=[run])
    (run.session_folder(0) / "ahead.npz").unlink()
    inspector.draw()
    assert "ahead.npz is missing" in text(inspector)
    (run.folder.parent / "empty").mkdir()
    with pytest.raises(RunError, match="no finished run"):
        LabelInspector("outputs/empty")


def test_a_training_gives_what_its_search_counted(tiny):
    run = train(
        tiny(method="krt", replay__per_class=3, train__epochs=1, krt__token_weight=0.0), device="cpu", show="off"
    )
    found = pseudo_labels(run, 1)
    kept = json.loads((run.session_folder(1) / "state.json").read_text())["method"]["thresholds"]["1"]
    assert (found.scores > found.thresholds).sum() / len(found.rows) == pytest.approx(kept["found"])
    assert len(found.rows) > found.own and found.visible[found.own :].any() and not found.visible[: found.own].any()
    for figure in every_figure(run, None, 1):
        draw(figure)


def test_of_what_is_unknown_nobody_can_say_whether_it_was_restored(counted):
    run, dataset = counted
    unknown = np.zeros((6, 4), bool)
    unknown[[0, 1, 3], 0] = unknown[[2, 4], 1] = (
        True  # one right, one wrong, one missed; one right, one of the exemplar
    )
    found = pseudo_labels(run, 1, dataset.with_unknown(unknown))
    assert np.argwhere(found.right).tolist() == [[3, 1]] and np.argwhere(found.wrong).tolist() == [[4, 1]]
    assert not found.missed.any() and np.argwhere(found.visible).tolist() == [[5, 0]]
    table = found.per_class().set_index("class")
    assert table[["hidden", "given", "right"]].to_numpy().tolist() == [[0, 0, 0], [1, 2, 1]]
    curve = found.curve().set_index("threshold")
    assert curve.loc[0.0].tolist() == [100 / 6, 100]  # 12 pairs, of which 5 are unknown and 1 is shown
    assert quality(run, dataset.with_unknown(unknown)).loc[2, "recall micro"] == 100
    for figure in every_figure(run, dataset.with_unknown(unknown), 1):
        draw(figure)


def test_figures_of_data_with_unknown_labels():
    protocol = make_protocol(("a", "b"), 0, 1)
    labels = np.array([[1, 1], [1, -1], [1, 0], [0, 1], [-1, 1]], np.int8)
    shares = co_occurrence(protocol, labels).axes[0].collections[0].get_array().filled(np.nan)
    assert shares.flatten()[[1, 2]].tolist() == [50, 50] and np.isnan(shares.flatten()[[0, 3]]).all()
    visible = session_sizes(protocol, labels).axes[1].containers[0]
    assert [bar.get_height() for bar in visible] == [3, 3]
    one = MultiLabelDataset("two", "train", Path("/nowhere"), np.arange(5), np.arange(5), labels > 0, ("a", "b"))
    words = [split_words(protocol, train_set, one) for train_set in (one, one.with_unknown(labels < 0))]
    assert words[1] == f"{words[0]}; 20 % of the training labels are unknown"
