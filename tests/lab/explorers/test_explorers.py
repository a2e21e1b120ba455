"""The explorers without a browser: what is drawn, when, and from what."""

import gc
import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.made_up_runs import coco, finished
from krt_core.errors import RunError
from krt_core.lab.explorers import explorer as explorer_module
from krt_core.lab.explorers.attention import AttentionExplorer
from krt_core.lab.explorers.forgetting import ForgettingExplorer
from krt_core.lab.explorers.picture import Picture
from krt_core.session import train


def pictures(explorer):
    """PNG bytes in the open view."""
    box = explorer.tabs.children[explorer.tabs.selected_index]
    return [child.png for child in box.children if isinstance(child, Picture)]


def words(explorer):
    box = explorer.tabs.children[explorer.tabs.selected_index]
    return " ".join(child.value for child in box.children if not isinstance(child, Picture))


def open_view(explorer, title):
    explorer.tabs.selected_index = list(explorer.views).index(title)
    assert "<pre>" not in words(explorer), words(explorer)
    return pictures(explorer)


@pytest.fixture
def digits():
    return [
        finished(overrides=[f"method={method}", f"seed={seed}"]) for method in ("krt", "finetune") for seed in (0, 1)
    ]


def test_every_view_of_forgetting_is_drawn(digits):
    explorer = ForgettingExplorer("outputs")
    for title in explorer.views:
        open_view(explorer, title)
        assert pictures(explorer) or "Without pictures" in words(explorer) or "0 of" in words(explorer), title
    open_view(explorer, "Forgetting")
    assert "max_class_fixed" in words(explorer) and "±" in words(explorer)


def test_only_menus_with_a_choice_are_shown(digits):
    controls = ForgettingExplorer("outputs").controls
    hidden = {name for name, control in controls.items() if control.layout.display == "none"}
    assert hidden == {"setting", "authors"}


def test_a_view_is_drawn_when_something_it_asked_for_changes(digits):
    explorer = ForgettingExplorer("outputs")
    before, drawn = pictures(explorer), explorer.tabs.children[0].children[0].drawn
    explorer.controls["session"].value = 3  # the curves have all sessions
    assert explorer.tabs.children[0].children[0].drawn == drawn
    explorer.controls["metric"].value = "mAP_base"
    assert pictures(explorer) != before and explorer.tabs.children[0].children[0].drawn == drawn + 1
    open_view(explorer, "One session")
    before = pictures(explorer)
    explorer.controls["session"].value = 4
    assert pictures(explorer) != before
    explorer.set(methods=("krt",), classes=(0, 3))
    assert [run.experiment.method for run in explorer.runs] == ["krt", "krt"] and explorer.columns == [0, 3]
    open_view(explorer, "Curves")
    explorer.set(methods=())
    assert "Choose one method" in words(explorer) and not pictures(explorer)


def test_a_click_on_a_class_opens_its_lost_images(digits):
    explorer = ForgettingExplorer("outputs")
    open_view(explorer, "Heat map")
    picture = explorer.tabs.children[1].children[0]
    figure = picture._figure
    width, height = figure.bbox.size
    x, y = figure.axes[0].transData.transform((2, 7))  # third session, eighth class
    picture.clicked = [float(x / width), float(1 - y / height), 1]
    assert explorer.value("column") == 7 and list(explorer.views)[explorer.tabs.selected_index] == "Lost images"
    assert "three, learned in session 4" in words(explorer)
    for title, point in (("Classes", (0.5, 0.5)), ("Forgetting", (3, 1)), ("One session", (50, 0))):
        open_view(explorer, title)
        picture = explorer.tabs.children[explorer.tabs.selected_index].children[0]
        x, y = picture._figure.axes[0].transData.transform(point)
        width, height = picture._figure.bbox.size
        picture.clicked = [float(x / width), float(1 - y / height), 1]
        assert list(explorer.views)[explorer.tabs.selected_index] == "Lost images", title
    picture.clicked = [0.001, 0.001, 2]  # outside every axis


def test_save_writes_what_is_shown(digits, home):
    explorer = ForgettingExplorer("outputs")
    open_view(explorer, "Forgetting")
    files = explorer.save()
    names = ["forgetting_forgetting.png", "forgetting_forgetting.pdf", "forgetting_forgetting.csv"]
    assert [file.name for file in files] == names and all(file.stat().st_size > 100 for file in files)
    assert "forgetting_forgetting.png" in explorer.message.value and files[0].parent == home / "outputs" / "figures"
    assert explorer.save()[0].name == "forgetting_forgetting_2.png"  # nothing is overwritten
    explorer.folder = home / "outputs" / "file"
    explorer.folder.write_text("no folder")
    assert not explorer.save() and "Not saved" in explorer.message.value


def test_settings_are_looked_at_one_by_one(digits):
    coco()
    finished(overrides=["protocol.order_seed=3"])
    explorer = ForgettingExplorer("outputs")
    settings = explorer.controls["setting"]
    assert set(settings.options) == {"digits B0-C2", "coco2014 B0-C10", "digits B0-C2, class order 3"}
    settings.value = "coco2014 B0-C10"
    assert len(explorer.controls["column"].options) == 80 and explorer.controls["session"].max == 8
    before = pictures(explorer)
    explorer.set(authors=(explorer.controls["authors"].options[0],))
    assert pictures(explorer) != before
    open_view(explorer, "Classes")
    assert "AP is on the test images with a seen class" in words(explorer)
    settings.value = "digits B0-C2"
    assert explorer.controls["column"].value == 0 and not explorer.controls["authors"].options


def test_a_method_keeps_its_name_and_colour_whatever_is_chosen(digits):
    finished(overrides=["model.query=retention"])
    explorer = ForgettingExplorer("outputs")
    retention = next(name for name in explorer.controls["methods"].options if "retention" in name)
    colours = []
    for methods in (explorer.controls["methods"].options, (retention,)):
        explorer.set(methods=methods)
        axis = explorer.curves().axes[0]
        colours += [line.get_color() for line in axis.get_lines() if line.get_label() == retention]
    assert len(colours) == 2 and colours[0] == colours[1]


def test_a_copy_is_no_replicate(digits, home):
    shutil.copytree(digits[0].folder, home / "outputs" / "copy")
    explorer = ForgettingExplorer("outputs")
    assert {name: len(group) for name, group in explorer._groups.items()} == {"krt": 2, "finetune": 2}
    assert "Left out" in words(explorer) and len(explorer.controls["run"].options) == 4


def test_class_names_are_no_formulas():
    names = ("a$x^$", "b_$5_$9", "c", "d")
    finished(classes=names)
    explorer = ForgettingExplorer("outputs")
    for title in explorer.views:
        open_view(explorer, title)


def test_one_session_and_runs_of_unlike_length_are_told(home):
    finished(overrides=["protocol.base=10", "protocol.increment=10"], folder="outputs/one/run")
    explorer = ForgettingExplorer("outputs/one")
    for title in explorer.views:
        open_view(explorer, title)
    assert "no time to be lost" in words(explorer)
    open_view(explorer, "One session")
    assert "nothing can be forgotten" in words(explorer)
    runs = [finished(overrides=[f"seed={seed}"]) for seed in (0, 1)]
    shutil.rmtree(runs[1].session_folder(4))
    with pytest.raises(RunError, match="equally many sessions.*: 5.*: 4"):
        ForgettingExplorer(runs=runs)
    with pytest.raises(RunError, match="no run to look at"):
        ForgettingExplorer(runs=[])


def test_the_authors_are_laid_over_their_own_class_order_alone():
    coco(["protocol.order_seed=3"])
    explorer = ForgettingExplorer("outputs")
    assert not explorer.controls["authors"].options
    coco(folder="outputs/plain/run")
    explorer = ForgettingExplorer("outputs/plain")
    explorer.set(authors=explorer.controls["authors"].options[:1], metric="CF1")
    assert "no CF1 per session" in words(explorer)


def test_headless_shows_the_chosen_views(digits, monkeypatch):
    shown = []
    monkeypatch.setattr(explorer_module, "display", shown.append)
    monkeypatch.setattr(explorer_module, "headless_kernel", lambda: True)
    ForgettingExplorer("outputs", headless=["Curves", "Forgetting"])._ipython_display_()
    assert [type(item).__name__ for item in shown] == ["Figure", "Figure", "DataFrame"]
    with pytest.raises(RunError, match="no view 'Curve'.*Curves"):
        ForgettingExplorer("outputs", headless=["Curve"])
    monkeypatch.setattr(explorer_module, "headless_kernel", lambda: False)
    explorer = ForgettingExplorer("outputs")
    explorer._ipython_display_()
    assert shown[-1] is explorer.widget


def test_figures_do_not_pile_up(digits):
    explorer = ForgettingExplorer("outputs")
    open_view(explorer, "One session")

    def figures():
        gc.collect()
        return sum(type(thing) is Figure for thing in gc.get_objects())

    before = figures()
    for session in (2, 3, 4, 5) * 3:
        explorer.controls["session"].value = session
    assert figures() <= before + 1  # a session in which a class fell has a second picture


def test_without_runs_it_says_where_they_come_from(home):
    (home / "outputs").mkdir()
    with pytest.raises(RunError, match="no finished run in outputs: notebook 02"):
        ForgettingExplorer("outputs")


@pytest.fixture
def trained(tiny):
    return [
        train(tiny(train__epochs=2, model__query=query), show="none") for query in ("transfer", "retention")
    ]  # fmt: skip


def test_attention_of_published_and_retention_query(trained):
    explorer = AttentionExplorer("outputs")
    for title in explorer.views:
        assert open_view(explorer, title), title
    names = list(explorer.runs)
    # The published query gives every session's token the same map, the retention query does not.
    for name, same in zip(names, (True, False), strict=True):
        explorer.set(run=name)
        run = explorer.run
        seen = explorer.models.look(run, 1, explorer.dataset(run), explorer.row)
        maps = seen.patches[0].mean(axis=1)
        shapes = maps / maps.sum(axis=(1, 2), keepdims=True)
        per_head = seen.patches[0] / seen.patches[0].sum(axis=(-2, -1), keepdims=True)
        assert np.allclose(per_head[0], per_head[1], atol=1e-4) is same, shapes
    open_view(explorer, "Evidence")
    alone = pictures(explorer)
    explorer.set(beside=names[0])
    assert pictures(explorer) != alone and "probability" in words(explorer)
    explorer.set(image=2)
    first = explorer.dataset(explorer.run).ids[explorer._ranked()[0]]
    explorer.choose(str(first))
    assert explorer.value("image") == 1
    with pytest.raises(RunError, match="not among the .* most lost images of class"):
        explorer.choose("nowhere")


def test_a_joint_model_and_another_test_set_beside_it(tiny, trained, coco_root):
    joint = train(tiny(method="joint", joint__head="ica"), "outputs/joint", show="none")
    explorer = AttentionExplorer("outputs/joint", runs=[joint, trained[0]])
    for title in explorer.views:
        assert open_view(explorer, title), title
    open_view(explorer, "Evidence")
    explorer.set(beside=list(explorer.runs)[1])
    assert pictures(explorer)
    other = explorer.dataset(trained[0])
    names = replace(other, ids=np.array([f"x{i}" for i in other.ids]))
    explorer.dataset = lambda run: names if run is trained[0] else other
    explorer.draw()
    assert "is not in the test set of" in words(explorer) and not pictures(explorer)


def test_attention_says_what_is_missing(trained, coco_root):
    explorer = AttentionExplorer("outputs")
    path = next(iter(coco_root.rglob("*val2014*")))
    for image in path.glob("*.png"):
        image.unlink()
    explorer.models.__init__()
    explorer.draw()
    assert "is missing, though the annotations list it" in words(explorer)
    finished(overrides=["method=finetune"], folder="outputs/other/plain")
    with pytest.raises(RunError, match="no finished run with incremental cross-attention"):
        AttentionExplorer("outputs/other")


def test_the_garbage_collector_is_left_as_it_is():
    """Importing the explorers sets nothing of the whole process."""
    assert gc.get_freeze_count() == 0 and gc.isenabled()
