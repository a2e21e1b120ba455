"""Explorers, figures and tables of a run that has grown, beside the run that it grew from."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import write_coco
from grow_world import annotated

import krt_core as krt
from krt_core.errors import KRTError, RunError
from krt_core.lab.analysis.predictions import paired
from krt_core.lab.analysis.pseudo_labels import pseudo_labels, quality
from krt_core.lab.figures.training import training_loss, training_progress
from krt_core.lab.report import labels_of
from krt_core.lab.report.html import html_report
from krt_core.runs.scores import Scores
from krt_core.tagger.extend import extend
from krt_core.tagger.tagger import Tagger

pytest_plugins = ("grow_world",)
NEW = ("ant", "dog")  # what is annotated below: of the old classes, one


@pytest.fixture
def grown(own, tmp_path):
    """(the run, what it has grown into): KRT whose classes are not in the order of the alphabet, more images of ant and
    dog, which is new, and two epochs where the run had one."""

    def make(method="krt", **changes):
        run = own(method, data__classes=["cat", "bee", "ant"], protocol__order=["cat", "ant", "bee"], **changes)
        more = annotated(write_coco(tmp_path / "more", train=30, test=12, seed=5), NEW)
        return run, extend(run, more, {"train.epochs": 2}, show="none")

    return make


def say(new, session, column, scores):
    """Write other scores of test images (by id) for a class after a session."""
    found = new.scores(session)
    for name, value in scores.items():
        found.scores[found.ids == name, column] = value
    found.write(new.session_folder(session) / "scores.npz")


def test_images_that_came_later_have_not_been_lost(grown):
    _, new = grown()
    then, now = new.scores(1), new.scores(3)  # ant is learned in session 2
    old = then.ids[then.labels[:, 1] > 0]
    later = now.ids[(now.labels[:, 1] > 0) & np.char.startswith(now.ids, "+1/")]
    assert len(old) > 2 and len(later) > 1
    say(new, 1, 1, dict.fromkeys(old, 0.1) | dict.fromkeys(old[:2], 0.9))
    say(new, 3, 1, {old[0]: 0.1, old[1]: 0.85, later[0]: 0.0})
    table = krt.analysis.lost_images(krt.open_run(new.folder), 1)
    assert table.image.tolist() == [old[0]]
    assert (table.before[0], table.now[0]) == pytest.approx((0.9, 0.1))
    assert now.ids[table.row[0]] == old[0]
    explorer = krt.ForgettingExplorer(runs=[krt.open_run(new.folder)], headless=[])
    explorer.set(column=1, session=4)
    words, *_ = explorer.lost_images()
    assert f" of {len(old)} images were above 0.80" in words and words.endswith(f" {len(later)} more came later.")


def test_changes_are_those_of_images_that_were_there_before(grown):
    _, new = grown()
    now = new.scores(3)
    table = krt.analysis.confusions(new, 1, 3).set_index("new class").loc["dog"]
    ant, dog = (now.labels[:, new.protocol.classes.index(name)] for name in ("ant", "dog"))
    assert (
        np.char.startswith(now.ids, "+1/") == (dog >= 0)
    ).all()  # of first images nobody knows whether they show dog
    assert np.isnan(table[["change with it", "change without it", "change on it alone"]].astype(float)).all()
    assert table["together"] == pytest.approx(100 * (dog[(ant > 0) & (dog >= 0)] > 0).mean())
    falls = krt.analysis.falls([new], 3).set_index("class")
    assert falls.loc["bee", "change"] == pytest.approx(new.ap(3)["fixed"][2] - new.ap(2)["fixed"][2])


def test_pseudo_labels_of_inherited_sessions_are_as_they_were(grown):
    run, new = grown()
    of_run, of_new = quality(run), quality(new)
    assert of_new.loc[[2, 3]].equals(of_run)
    for session in (1, 2):
        assert pseudo_labels(new, session).ids.tolist() == pseudo_labels(run, session).ids.tolist()


def test_pseudo_labels_of_added_images_are_unknown_where_nobody_has_looked(grown):
    _, new = grown()
    found = pseudo_labels(new, 3)
    assert found.own == new.session_state(3)["train_images"] and all(one.startswith("+1/") for one in found.ids)
    assert found.visible.all(axis=0).tolist() == [False, True, False]  # ant is annotated, and nothing restored there
    assert not found.judged.any() and not found.given.any()
    assert (found.unknown == (found.scores > found.thresholds) & [True, False, True]).all()
    line = quality(new).loc[4]
    assert np.isnan(line[["hidden", "given", "precision micro"]].astype(float)).all() and line["found"] >= 0
    places = found.images("unknown")
    assert len(places) == found.unknown.any(axis=1).sum()
    inspector = krt.LabelInspector(runs=[new], headless=[])
    for view in ("classes", "per_image"):
        assert "Nobody has annotated these images with old classes" in getattr(inspector, view)()[0]
    assert "Nobody has annotated" in inspector.threshold()[2] and "Nobody has" in inspector.images()[0]
    inspector.set(session=3)
    assert not isinstance(inspector.per_image(), list)


def test_the_sessions_are_counted_with_the_images_that_they_had(grown):
    run, new = grown()
    train, test = krt.open_dataset(new), krt.open_dataset(new, "test")
    assert train.classes == new.protocol.classes == ("cat", "ant", "bee", "dog")
    protocol = krt.open_protocol(new)
    table = krt.analysis.split_table(new.protocol, train, test)
    assert table["training images"].tolist() == [new.session_state(t)["train_images"] for t in range(4)]
    assert table["training images"].tolist()[:3] == [run.session_state(t)["train_images"] for t in range(3)]
    assert table["test images, seen"].tolist()[:3] == [
        int((run.scores(t).labels[:, : t + 1] > 0).any(axis=1).sum()) for t in range(3)
    ]
    assert "coco: " in krt.analysis.split_words(protocol, train, test)
    sizes = krt.figures.session_sizes(protocol, protocol.reorder(train.truth))
    bars = [bar.get_height() for bar in sizes.axes[0].patches]
    assert bars == table["training images"].tolist()
    visible = [bar.get_height() for bar in sizes.axes[1].patches][:4]
    assert visible[3] == train.labels[train.arrived == 1].sum()  # ant too: what was added shows all that is annotated
    texts = [axis.get_title() for axis in krt.figures.sample_images(train, protocol).axes[18:]]
    assert not any("(" in text for text in texts)
    shares = krt.figures.co_occurrence(protocol, protocol.reorder(train.truth)).axes[0].collections[0].get_array()
    assert np.ma.getmaskarray(shares).reshape(4, 4)[0, 3]  # cat and dog: of no image both are known


def test_labels_are_read_by_their_names(grown):
    """Not by the columns that they have in the alphabet."""
    run, new = grown()
    for one in (run, new):
        dataset = krt.open_dataset(one, "test")
        for looked in krt.analysis.look_at(one, count=4):
            row = dataset.ids.tolist().index(looked.image)
            shown = {name for name, there in zip(dataset.classes, dataset.labels[row], strict=True) if there}
            assert looked.present.keys() == shown
            assert all(one.protocol.classes[column] == name for name, column in looked.present.items())
        game = krt.analysis.pointing_game(one, dataset, one.finished_sessions - 1)
        for image, name in zip(game["image"], game["class"], strict=True):
            assert dataset.labels[dataset.ids.tolist().index(image), dataset.classes.index(name)]


def test_a_run_stands_beside_the_one_it_grew_from(grown):
    run, new = grown()
    a, b, session = paired(new, run, 3)
    assert session == 2 and a.ids.tolist() == b.ids.tolist() == run.scores(2).ids.tolist()
    assert np.isnan(b.scores[:, 3]).all() and (b.scores[:, :3] == run.scores(2).scores).all()
    rows = np.flatnonzero(np.isin(new.scores(3).ids, a.ids))
    assert (a.scores == new.scores(3).scores[rows]).all()
    gallery = krt.Gallery(runs=[run, new], headless=[])
    attention = krt.AttentionExplorer(runs=[run, new], headless=[])
    first, second = gallery.runs
    for one, two in ((first, second), (second, first)):
        gallery.set(run=one, beside=two, kind="differ most", name="ant")
        gallery.side_by_side(), gallery.table()
        attention.set(run=one, beside=two, column=1)
        for view in attention.views.values():
            view()
    attention.set(run=second, beside=first, column=3)
    with pytest.raises(RunError, match="has not learned dog: choose a class that both know"):
        attention.patches()
    other = run.scores(2)
    Scores(other.ids, other.scores, ~other.labels).write(run.session_folder(2) / "scores.npz")
    with pytest.raises(RunError, match="were not tested on the same images"):
        paired(new, krt.open_run(run.folder), 3)


def test_every_session_has_its_own_epochs(own, march):
    run = own("krt", train__epochs=4)
    new = extend(run, march, {"train.epochs": 2}, show="none")
    assert [new.epochs_of(t) for t in range(4)] == [4, 4, 4, 2]
    assert training_loss([new]).axes[0].lines[0].get_xdata().tolist() == list(range(1, 15))
    x = training_progress([new]).axes[0].lines[0].get_xdata()
    assert x.tolist() == pytest.approx([*(t / 4 for t in range(1, 13)), 3.5, 4])
    assert not [note for session in range(4) for note in Tagger(new, session).notes]  # none is of another epoch


def test_a_run_is_called_by_the_methods_that_made_it(own, march):
    run = own("finetune")
    new = extend(run, march, {"method": "lwf"}, show="none")
    assert labels_of([run]) == ["finetune"] and labels_of([new]) == ["finetune, then lwf"]
    card = (new.folder / "README.md").read_text()
    assert f"krt extend {run.folder} {march} --session 3 --folder again method=lwf" in card
    assert "krt train" not in card and "on all test images that were there when a class was learned" in card
    assert "krt train experiment.yaml" in (run.folder / "README.md").read_text()


@pytest.mark.parametrize("method", ["krt", "census", "more"])
@pytest.mark.slow
def test_everything_opens(grown, own, tmp_path, method):
    """What cannot be shown is said by an error of ours; nothing else goes wrong."""
    if method == "more":  # a session without a class of its own
        run = own("krt")
        new = extend(run, annotated(write_coco(tmp_path / "more", seed=7), ("ant",)), show="none")
    else:
        run, new = grown(method, data__validation=0.25)
    runs, said = [run, new], []
    explorers = [krt.ForgettingExplorer(runs=runs, headless=[]), krt.Gallery(runs=runs, headless=[])]
    if method != "census":
        explorers += [krt.LabelInspector(runs=runs, headless=[]), krt.AttentionExplorer(runs=runs, headless=[])]
    for explorer in explorers:
        for name in explorer.controls["run"].options:
            explorer.set(run=name)
            for session in range(explorer.controls["session"].min, explorer.controls["session"].max + 1):
                explorer.set(session=session)
                for view in explorer.views.values():
                    try:
                        view()
                    except KRTError as error:
                        said.append(str(error))
    assert set(said) <= {"Choose a second run to see side by side (beside it (B))."}
    for figure in ("class_session_heatmap", "class_curves", "forgetting_bars", "forgetting_summary", "session_curves"):
        getattr(krt.figures, figure)([new])
    if new.calibrated():
        krt.figures.reliability(new)
    board = krt.Leaderboard(runs=runs, headless=[])
    board.stability(), board.cost(), board.table()
    assert "krt extend" in html_report([new])
    plt.close("all")
