"""Photos are tagged, corrected and learned from; a click, a button and a call say the same."""

import io

import numpy as np
import pandas as pd
import pytest
from conftest import write_coco
from matplotlib.figure import Figure
from PIL import Image

import krt_core as krt
from krt_core.errors import DataError, RunError
from krt_core.lab.analysis.growing import session_photos, tag_changes
from krt_core.lab.explorers.picture import Picture
from krt_core.lab.explorers.tag_editor import BY_DOUBT, BY_TAG, TagEditor
from krt_core.lab.figures.sheet import card_at
from krt_core.runs.folder import Scores
from krt_core.tagger.tags import Tags

pytest_plugins = ("grow_world",)


@pytest.fixture
def photos(tmp_path):
    write_coco(tmp_path / "march", train=16, test=2, seed=5)
    return tmp_path / "march/train2014"


@pytest.fixture
def editor(own, photos):
    return TagEditor(own("ridge"), photos, "outputs/grown")


def open_view(editor, title):
    editor.tabs.selected_index = list(editor.views).index(title)
    box = editor.tabs.children[editor.tabs.selected_index]
    words = " ".join(child.value for child in box.children if not isinstance(child, Picture))
    assert "<pre>" not in words, words
    return words


def click(editor, number):
    """On the card of a number of the open page."""
    picture = next(c for c in editor.tabs.children[0].children if isinstance(c, Picture))
    figure = picture._figure
    left, top, right, bottom = figure.places[number - 1]
    x, y = figure.axes[0].transData.transform(((left + right) / 2, (top + bottom) / 2))
    width, height = figure.bbox.size
    picture.clicked = [float(x / width), float(1 - y / height), len(picture.clicked) and picture.clicked[2] + 1]


def press(editor, words):
    editor.buttons[words].click()
    return editor.message.value


# ---- saying ----


def test_every_view_is_drawn(editor):
    for title in editor.views:
        open_view(editor, title)
        shown, problem = editor.result(title)
        assert shown and not problem
    assert editor.controls["page"].max == 2 and len(editor.shown) == 12
    assert "0 of 16 photos are looked at" in editor.said()


def test_a_click_says_the_contrary_of_what_the_model_says_and_takes_it_back(editor):
    editor.name.value = "dog"
    assert press(editor, "Add tag") == "" and editor.tag == "dog" and editor.name.value == ""
    click(editor, 3)
    photo = editor.photos[2]
    assert editor.table.of(photo) == {"dog": True} and editor.value("photo") == 3
    assert editor.controls["tag"].options[0] == ("dog (new, 1 photos)", "dog")
    click(editor, 3)
    assert editor.table.of(photo) == {} and not len(editor.table)
    editor.set(tag="cat")
    named = "cat" in editor._look([photo])[0].named
    click(editor, 3)
    assert editor.table.of(photo) == {"cat": not named}
    editor.set(tag="dog")
    click(editor, 3)
    editor.set(tag="cat")
    click(editor, 3)
    assert editor.table.of(photo) == {"dog": True}  # of one tag alone it is taken back
    assert press(editor, "Take back") == "" and editor.table.of(photo) == {}


def test_keys_say_what_clicks_say(editor):
    assert "Choose a tag first" in press(editor, "Mark photo")
    assert "Write the new tag" in press(editor, "Add tag")
    editor.set(tag="ant", photo=5)
    press(editor, "Mark photo")
    assert list(editor.table.of(editor.photos[4])) == ["ant"]
    press(editor, "All right")  # what is named, with what has been said before
    tags = editor._look([editor.photos[4]])[0]
    said = editor.table.of(editor.photos[4])
    assert said == {"ant": "ant" not in tags.named, **{name: name in tags.named for name in ("bee", "cat")}}


def test_another_page_of_the_notebook_goes_on_with_what_was_said(editor, photos):
    editor.table.add("dog")
    editor.mark(editor.photos[0], "dog")
    again = TagEditor(editor.run, photos, "outputs/grown")
    assert again.tag == "dog" and again.table.of(again.photos[0]) == {"dog": True}


def test_orders(editor):
    of = {photo: editor._look([photo])[0]["bee"] for photo in editor.photos}
    editor.set(tag="bee", order=BY_TAG)
    assert [of[photo] for photo in editor._ordered()] == sorted(of.values(), reverse=True)
    editor.set(order=BY_DOUBT)
    doubt = [abs(of[photo] - editor._threshold("bee")) for photo in editor._ordered()]
    assert doubt == sorted(doubt)
    editor.set(page=2)
    assert len(editor.shown) == 4 and 13 <= editor.value("photo") <= 16
    editor.set(order=BY_TAG)
    assert editor.value("page") == 1


def test_what_is_uploaded_is_kept_under_its_name(editor, photos):
    def png(colour):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), colour).save(file, "png")
        return file.getvalue()

    red, blue = png("red"), png("blue")
    parts = [  # as the browser sends them
        ({"name": "../../new.png", "first": True, "whole": False, "left": 2}, red[:50]),
        ({"name": "../../new.png", "first": False, "whole": True, "left": 1}, red[50:]),
        ({"name": "no.png", "first": True, "whole": True, "left": 0}, b"no"),
    ]
    for content, part in parts:
        editor.uploader._came(editor.uploader, content, [memoryview(part)])
    assert editor.message.value.startswith("1 photos came; Image ") and "no.png" in editor.message.value
    assert editor.photos[-1] == editor.place / "photos/new.png"
    assert editor.value("page") == 2 and editor.photos[-1] in editor.shown
    assert editor.upload("new.png", blue).name == "new_2.png" and editor.upload("new.png", red).name == "new.png"
    assert sorted(path.name for path in (editor.place / "photos").iterdir()) == ["new.png", "new_2.png"]
    assert TagEditor(editor.run, photos, "outputs/grown").photos == editor.photos  # found again
    alone = TagEditor(editor.run, "upload", "outputs/grown")
    assert alone.photos == editor.photos[-2:]


def test_without_photos_it_says_so(own):
    editor = TagEditor(own("ridge"), "upload", "outputs/grown")
    for title in ("Photos", "Evidence"):
        shown, problem = editor.result(title)
        assert "drop some" in (problem or shown[0])
    with pytest.raises(RunError, match="Nothing is said"):
        editor.extend()
    assert "no photo" in press(editor, "All right")


def test_a_photo_that_cannot_be_read_stands_there_as_such(own, photos):
    broken = photos / "train2014_003.png"
    broken.write_bytes(b"no image")
    editor = TagEditor(own("ridge"), photos, "outputs/grown")
    words = open_view(editor, "Photos")
    assert "train2014_003.png" in words and len(editor.readable) == 15 == len(editor.tags())
    editor.set(tag="ant", order=BY_TAG)
    assert editor._ordered()[-1] == broken
    with pytest.raises(DataError, match=r"train2014_003\.png"):
        editor.confirm(broken)


# ---- learning ----


def test_what_is_said_is_learned(editor, photos):
    editor.table.add("dog")
    editor.table.say(editor.photos[0], {"cat": False})
    with pytest.raises(RunError, match="No photo is marked with dog"):
        editor.extend()
    for photo in editor.photos[:10]:
        editor.table.say(photo, {"dog": bool(np.array(Image.open(photo))[24, 24].sum() > 400), "cat": False})
    grown = editor.extend(show="none")
    assert grown.protocol.classes == ("ant", "bee", "cat", "dog") and grown.done
    assert grown.folder.parent == editor.place and editor.extend(show="none").folder == grown.folder  # done is done
    learned = krt.open_dataset(grown).select_images(krt.open_dataset(grown).arrived == 1, "train")
    assert set(learned.truth[:, learned.classes.index("cat")]) == {0}
    assert set(learned.truth[:, learned.classes.index("ant")]) == {-1}  # nobody has said
    editor.table.say(editor.photos[11], {"dog": True})
    assert editor.extend(show="none").folder != grown.folder


def test_the_last_session_once_more(own):
    run = own("ridge")
    editor = TagEditor(run, None, "outputs/grown")
    assert editor.tagger.classes == ("ant", "bee") and editor.table.new == ["cat"] and editor.tag == "cat"
    told = session_photos(run, 2)
    assert editor.photos == list(told) and len(told) == 23 and set(told.values()) == {("cat",)}
    dataset = krt.open_dataset(run)
    strangers = [dataset.labels[[dataset.path(r) for r in range(len(dataset))].index(p)][:2].sum() for p in told]
    assert strangers == sorted(strangers)  # those of cat alone first
    grown = editor.extend({"ridge.penalty": 0.1}, show="none")
    assert grown.protocol.classes == ("ant", "bee", "cat") and len(grown.protocol.sessions) == 3
    before, after = editor.tags(), editor.tags(grown)
    table = tag_changes(run, grown, editor.tagger.session, before, after)
    assert table.index.tolist() == ["ant", "bee", "cat"] and table["learned"].tolist() == [1, 2, 3]
    assert table["AP before"].notna().tolist() == [True, True, False] and table["AP after"].notna().all()
    moved = [abs(b["ant"] - a["ant"]) for a, b in zip(before, after, strict=True)]
    assert table.loc["ant", "moved"] == pytest.approx(100 * np.mean(moved))
    assert isinstance(krt.figures.tag_changes(table), Figure)
    figure = krt.figures.tags_before_and_after(editor.readable[:3], before[:3], after[:3], "cat")
    assert card_at(figure, *figure.places[1][:2]) == 1 and card_at(figure, -1, 0) is None
    one = TagEditor(run, None, "outputs/grown", session=0)
    assert one.tagger.classes == ("ant",) and one.table.new == ["bee"]
    with pytest.raises(RunError, match="no session after session 3"):
        TagEditor(run, None, "outputs/grown", session=2)


def test_changes_are_told_on_images_that_both_were_tested_on():
    """By hand: two old tags, one new; an image of which the label is unknown counts for nothing."""

    class Told:
        def __init__(self, scores, protocol):
            self.of, self.protocol = scores, protocol

        def scores(self, session):
            return self.of

    class Session:
        def __init__(self, index, start, stop):
            self.index, self.start, self.stop = index, start, stop

    class Plan:
        classes, sessions = ("a", "b", "c"), (Session(0, 0, 2), Session(1, 2, 3))

    old = Scores(
        np.array(["x", "y", "gone"]), np.float32([[0.9, 0.1], [0.8, 0.3], [0.1, 0.9]]), np.ones((3, 3), np.int8)
    )
    new_scores = np.float32([[0.2, 0.9, 0.5], [0.4, 0.2, 0.1], [0.3, 0.3, 0.9]])
    labels = np.array([[1, 0, -1], [0, -1, -1], [-1, -1, 1]], np.int8)
    new = Scores(np.array(["x", "y", "+1/z"]), new_scores, labels)
    table = tag_changes(Told(old, Plan()), Told(new, Plan()), 0)
    assert table["AP before"].fillna(-1).tolist() == [100, -1, -1]
    assert table["AP after"].fillna(-1).tolist() == [50, -1, 100]
    tags = [Tags.of(("a", "b"), np.float32([0.9, 0.2]), np.float32([0.5, 0.5]), np.float32([0, 0]))]
    later = [Tags.of(Plan.classes, np.float32([0.4, 0.6, 0.7]), np.full(3, 0.5, np.float32), np.zeros(3, np.float32))]
    table = tag_changes(Told(old, Plan()), Told(new, Plan()), 0, tags, later)
    assert table["named before"].tolist() == [1, 0, 0] and table["named after"].tolist() == [0, 1, 1]
    assert table["drift"].round(3).fillna(0).tolist() == [-50, 40, 0]
    assert pd.isna(table.loc["c", "moved"])
