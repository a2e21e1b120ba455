"""Top images and disagreements on five images that can be read by eye; the gallery with and without image files."""

import shutil

import numpy as np
import pytest
from conftest import CLASSES
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.made_up_runs import coco, finished
from krt_core.data import open_dataset
from krt_core.errors import RunError
from krt_core.evaluate import session_metrics
from krt_core.lab.analysis.predictions import (
    KINDS,
    PAIR_KINDS,
    disagreements,
    images_table,
    paired,
    said,
    scores_of,
    select,
    top_images,
)
from krt_core.lab.explorers.gallery import Gallery
from krt_core.lab.figures.gallery import gallery, lost_images, side_by_side
from krt_core.lab.figures.sheet import SIDE, Card, Said, boxes_of, length_of, make_card, sheet
from krt_core.runs.folder import Run, Scores

LABELS = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 1]], bool)
A = np.array([[0.9, 0.1], [0.85, 0.9], [0.3, 0.2], [0.95, 0.1], [0.1, 0.85]], np.float32)
B = np.array([[0.2, 0.1], [0.85, 0.2], [0.7, 0.9], [0.9, 0.1], [0.1, 0.8]], np.float32)


def draw(figure):
    """A bare figure has no canvas that draws."""
    FigureCanvasAgg(figure).draw()


def test_top_images():
    assert top_images(A, LABELS, 0, "false positives").tolist() == [3, 1]
    assert top_images(A, LABELS, 0, "false positives", 1).tolist() == [3]
    assert top_images(A, LABELS, 0, "misses").tolist() == [2]
    assert top_images(A, LABELS, 0, "hits").tolist() == [0]
    assert top_images(A, LABELS, 1, "misses", threshold=0.9).tolist() == [2, 4, 1]  # 0.9 is not above 0.9
    assert top_images(A, LABELS, 1, "hits").tolist() == [1, 4]
    assert top_images(np.full((5, 2), 0.9), LABELS, 1, "hits").tolist() == [1, 2, 4]  # ties keep their order
    with pytest.raises(RunError, match="Did you mean 'misses'"):
        top_images(A, LABELS, 0, "mises")


def test_disagreements():
    assert disagreements(A, B, LABELS, 0).tolist() == [0, 2, 3]  # 0.7, 0.4, 0.05; where they agree is left out
    assert disagreements(A, B, LABELS, 1, 2).tolist() == [1, 2]
    assert disagreements(A, B, LABELS, 0, kind="higher in A").tolist() == [0]
    assert disagreements(A, B, LABELS, 0, kind="higher in B").tolist() == [2]
    assert disagreements(A, np.full_like(B, np.nan), LABELS, 0).tolist() == []
    with pytest.raises(RunError, match="no images of kind"):
        disagreements(A, B, LABELS, 0, kind="hits")
    scores = Scores(np.arange(5).astype(str), A, LABELS)
    with pytest.raises(RunError, match="need two runs"):
        select(scores, None, 0, "differ most")


def test_what_is_said_of_an_image():
    scores, shown = np.array([0.85, 0.2, 0.95, 0.1, np.nan]), np.array([1, 1, 0, 0, 1, 1], bool)
    names = ("a", "b", "c", "d", "e")
    assert said(scores, shown, names) == [("wrong", "c", 0.95), ("right", "a", 0.85), ("missed", "b", 0.2)]


# ---- of run folders ----


def with_scores(root, *overrides):
    """A made-up run with scores of the test images in a COCO folder, in two sessions."""
    run = finished(overrides=["data.dataset=coco", f"data.root={root}", *overrides], classes=CLASSES, images=24)
    dataset = open_dataset(run.experiment.data, "test")
    labels = dataset.select_classes(run.protocol.classes).labels
    rng = np.random.default_rng(len(str(overrides)))
    for session in run.protocol.sessions:
        z = 3 * labels[:, : session.stop] - 1 + 2 * rng.normal(size=(len(labels), session.stop))
        scores = (1 / (1 + np.exp(-z))).astype(np.float32)
        state = run.session_state(session.index)
        state["metrics"] = session_metrics(run.protocol, session.index, scores, labels, full=True)
        run.write_session(session.index, {}, Scores(dataset.ids, scores, labels), state)
    return Run(run.folder)


def test_runs_with_other_class_orders_are_paired_by_name(coco_root):
    a, b = with_scores(coco_root, "method=krt"), with_scores(coco_root, "method=finetune", "protocol.order_seed=3")
    assert a.protocol.classes != b.protocol.classes
    left, right, session = paired(a, b, 1)
    assert session == 1 and (left.labels == right.labels).all()
    for column, name in enumerate(a.protocol.classes):
        assert (right.scores[:, column] == b.scores(1).scores[:, b.protocol.classes.index(name)]).all()
    first = paired(a, b, 0)[1].scores
    learned = [name in b.protocol.classes[:2] for name in a.protocol.classes[:2]]
    assert (np.isfinite(first).all(axis=0) == learned).all()
    for column in range(2):
        if not learned[column]:
            with pytest.raises(RunError, match="is learned in session 2"):
                side_by_side(a, b, None, 0, column)
    table = images_table(a, 1, 2, np.array([3, 5]), run_b=b)
    np.testing.assert_allclose(table["A − B"], left.scores[[3, 5], 2] - right.scores[[3, 5], 2], atol=1e-7)
    assert table.image.tolist() == a.scores(1).ids[[3, 5]].tolist()
    with pytest.raises(RunError, match="not tested on the same images"):
        paired(a, finished(), 1)


def test_equal_ids_alone_are_no_equal_images(home):
    a, b = finished(overrides=["method=krt"]), finished(overrides=["method=finetune", "protocol.order_seed=3"])
    labels = a.scores(0).labels
    for session in range(b.finished_sessions):  # the same labels in another order of the classes
        scores = b.scores(session)
        same = labels[:, [a.protocol.classes.index(name) for name in b.protocol.classes]]
        b.write_session(session, {}, Scores(scores.ids, scores.scores, same), b.session_state(session))
    assert paired(a, b, 1)[0].labels.tolist() == labels.tolist()
    other = labels.copy()
    other[3, 4] ^= True
    c = finished(overrides=["method=joint"])
    c.write_session(0, {}, Scores(c.scores(0).ids, c.scores(0).scores, other), c.session_state(0))
    both = f"{a.folder.name} .digits. and {c.folder.name} .digits. were not tested on the same images"
    with pytest.raises(RunError, match=both):
        paired(a, c, 0)


def test_the_run_beside_is_of_the_same_data_set(coco_root):
    one, third = with_scores(coco_root, "method=krt"), with_scores(coco_root, "method=krt", "seed=1")
    explorer = Gallery(runs=[one, coco(["method=finetune"]), third, coco(["method=joint"])])
    assert explorer.value("beside") == "krt, seed 1"
    explorer.set(run="finetune, seed 0")
    assert explorer.value("beside") == "joint, seed 0"
    explorer.set(beside="–", run="krt, seed 1")
    assert explorer.value("beside") == "–"  # as chosen


def test_a_class_to_come_has_no_pictures(coco_root):
    with pytest.raises(RunError, match="cat is learned in session 2 .* after session 1 it has no score"):
        gallery(with_scores(coco_root), None, 0, 2)


def test_pictures_with_boxes_and_without_files(coco_root):
    a, b = with_scores(coco_root, "method=krt"), with_scores(coco_root, "method=finetune")
    dataset = open_dataset(a.experiment.data, "test")
    row = int(np.flatnonzero(dataset.labels[:, 1])[0])
    boxes = boxes_of(dataset, row, "bee")
    assert boxes[0] == ("bee", 0.5, 0, 0.5, 0.5) and {box[0] for box in boxes} == {
        name for name, shown in zip(dataset.classes, dataset.labels[row], strict=True) if shown
    }
    for kind in (*KINDS, *PAIR_KINDS):
        draw(side_by_side(a, b, dataset, 1, 1, kind, 5))
        if kind in KINDS:
            figure = gallery(a, dataset, 1, 1, kind, 5, threshold=0.5)
            draw(figure)
            wanted = top_images(a.scores(1).scores, a.scores(1).labels, 1, kind, 5, 0.5)
            assert len(figure.axes[0].images) == len(wanted)
    gone = dataset.path(0)
    gone.unlink()
    card = make_card(dataset, str(dataset.ids[0]), "bee", [])
    assert card.pixels is None and card.missing == gone.name
    dataset.path(1).write_text("no image")
    assert make_card(dataset, str(dataset.ids[1]), "bee", []).pixels is None
    figure = gallery(a, dataset, 1, 1, "hits", 24, threshold=0.0)
    draw(figure)
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert ("val2014_000.png" in words) == bool(dataset.labels[0, 1])


def words_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_pictures_say_which_run_they_show(coco_root):
    runs = [with_scores(coco_root, *more) for more in (["method=krt"], ["method=krt", "model.query=retention"])]
    explorer = Gallery(runs=runs, headless=["One run"])
    name = "krt, model.query=retention, seed 0"
    explorer.set(run=name, beside="krt, seed 0", kind="hits")
    (figure,) = explorer.result("One run")[0]
    assert words_of(figure)[0].split("\n")[1] == name and name in figure.alt
    (figure,) = explorer.result("Side by side")[0]
    assert f"A: {name}, after session 2\nB: krt, seed 0, after session 2" in words_of(figure)[0]
    table = images_table(runs[0], 1, 0, np.array([1]))
    figure = lost_images(runs[0], None, table.assign(row=1), 0, 0, 1, name="this very run")
    assert "this very run" in words_of(figure)[0]


def test_dollars_are_no_mathematics():
    name = r"$\frac$"  # cannot be read as mathematics
    told = Said([("right", name, 0.5)], 0.5, 0.8, name)
    pixels = np.zeros((4, 4, 3), np.uint8)
    draw(sheet([Card(name, pixels, name, [told], name, [(name, 0, 0, 1, 1)], name)], name))
    draw(sheet([Card(name, None, name, [told], name, note=name)], name))
    assert length_of("$a$") > length_of("a")


def test_long_ids_stay_on_their_card():
    ids = [f"{'W' * 34}{i}{'i' * 34}" for i in range(5)]
    for pixels in (None, np.zeros((4, 4, 3), np.uint8)):
        figure = sheet([Card(i, pixels, f"{i}.jpg", [Said([], 0.5)], note=" (exemplar)") for i in ids], "title")
        draw(figure)
        texts = [text for text in figure.axes[0].texts if text.get_text().startswith("image ")]
        assert len(texts) == 5 and all("…" in text.get_text() for text in texts)
        assert all(text.get_text().endswith("iii (exemplar)") for text in texts)
        assert max(text.get_window_extent().width for text in texts) <= (SIDE + 0.15) * figure.dpi
        grey = [text for text in figure.axes[0].texts if text.get_ha() == "center"]
        assert len(grey) == (5 if pixels is None else 0) and not any("image" in text.get_text() for text in grey)
        for text in grey:  # the name of the missing file, on its card
            box = text.get_window_extent()
            assert max(box.width, box.height) <= SIDE * figure.dpi
            assert text.get_text().replace("\n", "").endswith("iii.jpg")
    assert words_of(sheet([Card("COCO_val2014_1", None, "", [])], ""))[1] == "image COCO_val2014_1"


def test_nothing_to_show_is_a_picture_too(coco_root):
    figure = gallery(with_scores(coco_root), None, 1, 0, "hits", threshold=1.0)
    draw(figure)
    assert "0 of 0 hits" in figure.axes[0].texts[0].get_text()


def test_scores_are_read_once_and_again_when_they_change(coco_root):
    run = with_scores(coco_root)
    assert scores_of(run, 1) is scores_of(run, 1)
    path = run.session_folder(1) / "scores.npz"
    before = scores_of(run, 1)
    run.write_session(1, {}, Scores(before.ids, before.scores / 2, before.labels), run.session_state(1))
    assert path.is_file() and (scores_of(run, 1).scores == before.scores / 2).all()
    with pytest.raises(RunError, match="is missing"):
        scores_of(run, 5)


# ---- the explorer ----


def shown(explorer):
    return explorer.tabs.children[explorer.tabs.selected_index].children[0]


def text(explorer):
    box = explorer.tabs.children[explorer.tabs.selected_index]
    return " ".join(getattr(child, "value", "") for child in box.children)


def test_gallery(coco_root):
    explorer = Gallery(runs=[with_scores(coco_root, f"method={method}") for method in ("krt", "finetune")])
    assert explorer.value("run") == "krt, seed 0" and explorer.value("beside") == "finetune, seed 0"
    explorer.draw()
    for name, value in (
        ("name", "cat"), ("kind", "hits"), ("threshold", 0.5), ("count", 3), ("run", "finetune, seed 0"),
        ("session", 1),
    ):  # fmt: skip
        before = shown(explorer).png
        explorer.controls[name].value = value
        assert shown(explorer).png != before, name
    assert explorer.controls["name"].options == ("ant", "bee") and explorer.value("name") == "ant"
    explorer.set(run="krt, seed 0", session=2, name="dog", kind="differ most")
    explorer.tabs.selected_index = 1
    before = shown(explorer).png
    explorer.controls["kind"].value = "higher in A"
    assert shown(explorer).png != before
    explorer.tabs.selected_index = 2
    assert "predicted B" in explorer.tabs.children[2].children[1].value


def test_changing_the_run_draws_once(coco_root):
    explorer = Gallery(runs=[with_scores(coco_root, f"method={method}") for method in ("krt", "finetune")])
    view, drawn = explorer.views["One run"], []
    explorer.views["One run"] = lambda: drawn.append((explorer.value("run"), explorer.value("session"))) or view()
    explorer.draw()
    explorer.controls["session"].value = 1
    explorer.controls["run"].value = "finetune, seed 0"
    explorer.set(run="krt, seed 0", session=1)
    assert drawn == [("krt, seed 0", 2), ("krt, seed 0", 1), ("finetune, seed 0", 2), ("krt, seed 0", 1)]


def test_problems_are_words_not_errors(coco_root):
    explorer = Gallery(runs=[with_scores(coco_root)])
    explorer.draw()
    explorer.controls["kind"].value = "differ most"
    assert "Choose a second run" in text(explorer)
    explorer.tabs.selected_index = 2
    assert "need two runs" in text(explorer)
    explorer = Gallery(runs=[with_scores(coco_root), finished(overrides=["method=finetune"])])
    assert explorer.value("beside") == "–"
    explorer.set(beside="finetune, seed 0")
    explorer.tabs.selected_index = 1
    assert "not tested on the same images" in text(explorer)
    with pytest.raises(RunError, match="no run with a finished session"):
        Gallery(runs=[])


def test_a_run_folder_that_is_deleted_while_it_is_shown(coco_root):
    runs = [with_scores(coco_root, f"method={method}") for method in ("krt", "finetune", "joint")]
    explorer = Gallery(runs=runs)
    explorer.draw()
    for run in runs[::2]:
        shutil.rmtree(run.folder)
    for title in explorer.views:
        explorer.tabs.selected_index = list(explorer.views).index(title)
        explorer.draw()
        assert "is missing" in text(explorer) and "<pre>" not in text(explorer), title
    explorer.controls["run"].value = "joint, seed 0"  # not looked at before
    assert "joint" in text(explorer) and "<pre>" not in text(explorer)
    explorer.set(run="finetune, seed 0", beside="–", kind="hits")
    explorer.tabs.selected_index = 0
    assert explorer.value("session") == 2 and shown(explorer).png


def test_without_a_data_set_there_are_grey_cards(home):
    explorer = Gallery(runs=[coco(["method=krt"], images=60)])
    explorer.draw()
    assert "There is no data folder" in text(explorer) and shown(explorer).png


def test_runs_called_alike_are_told_apart(coco_root):
    run = with_scores(coco_root)
    twin = finished(folder=run.folder.parent / "twin", overrides=["data.dataset=coco", f"data.root={coco_root}"],
                    classes=CLASSES)  # fmt: skip
    assert list(Gallery(runs=[run, twin]).runs) == ["krt, seed 0", "krt, seed 0 (twin)"]


def test_what_is_unknown_is_neither_right_nor_wrong():
    labels = LABELS.astype(np.int8)
    labels[[1, 2, 3], 0] = -1
    assert [top_images(A, labels, 0, kind).tolist() for kind in KINDS] == [[], [], [0]]
    assert disagreements(A, B, labels, 0).tolist() == [0, 2, 3]  # by the scores alone
    assert disagreements(A, B, labels, 0, kind="higher in B").tolist() == []
    assert said(A[1], labels[1], CLASSES) == [
        ("right", "bee", pytest.approx(0.9)),
        ("unknown", "ant", pytest.approx(0.85)),
    ]
    assert said(A[2], labels[2], CLASSES) == [("missed", "bee", pytest.approx(0.2))]
    run = finished(classes=CLASSES)
    before = run.scores(1)
    unknown = before.labels.astype(np.int8)
    unknown[:, 0] = np.where(unknown[:, 0] > 0, 1, -1)
    state = {**run.session_state(1), "metrics": session_metrics(run.protocol, 1, before.scores, unknown, full=True)}
    run.write_session(1, {}, Scores(before.ids, before.scores, unknown), state)
    again = Run(run.folder)
    figure = gallery(again, None, 1, 1, "hits", threshold=0.05)
    assert "? predicted, unknown" in figure.alt
    draw(figure)
    rows = np.flatnonzero(unknown[:, 0] < 0)[:1]
    table = images_table(again, 1, 0, rows, threshold=0.0)
    assert "ant" not in table["shows"][0] and "ant" in table["predicted"][0]
    with pytest.raises(RunError, match="not tested on the same images, classes and labels"):
        paired(again, finished(classes=CLASSES, overrides=["seed=1"]), 1)
