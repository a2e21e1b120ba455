"""What somebody says of photos, kept in a table that `krt extend` can learn from."""

import multiprocessing
from pathlib import Path

import pytest

from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.errors import ConfigError, DataError
from krt_core.tagger.tag_table import TagTable


@pytest.fixture
def table(tmp_path):
    return TagTable(tmp_path / "tags.csv", ["cat", "dog"])


def test_it_is_written_at_once_and_read_again(table):
    table.add("kite")
    table.say("/a.jpg", {"kite": True, "cat": False})
    table.say("/b.jpg", {"dog": True})
    assert table.path.read_text() == "path,cat,dog,kite\n/a.jpg,0,,1\n/b.jpg,,1,0\n"  # blank: nobody has said
    again = TagTable(table.path, ["cat", "dog"])
    assert (again.said, again.new) == ({"/a.jpg": {"cat": False, "kite": True}, "/b.jpg": {"dog": True}}, ["kite"])
    again.take_back("/a.jpg", "cat")
    again.forget("/b.jpg")
    assert table.path.read_text() == "path,kite\n/a.jpg,1\n"
    assert table.marked("kite") == 1 and len(again) == 1 and again.of("/b.jpg") == {}


def test_two_pages_of_one_table_lose_nothing(table):
    other = TagTable(table.path, ["cat", "dog"])
    table.say("/a.jpg", {"cat": True})
    other.say("/b.jpg", {"dog": True})
    table.add("kite")
    assert table.path.read_text() == "path,cat,dog,kite\n/a.jpg,1,,0\n/b.jpg,,1,0\n"
    with pytest.raises(ConfigError, match="a tag 'kite' already"):  # a column twice would be no table
        other.add("kite")
    table.say("/a.jpg", {"dog": False})
    other.take_back("/a.jpg", "cat")  # which was all that was said of it when the other page looked last
    assert other.of("/a.jpg") == {"dog": False}
    other.take_back("/a.jpg", "dog")
    assert list(other.said) == ["/b.jpg"]
    table.begin({Path("/c.jpg"): ["tent"]})  # there is a table by now
    assert table.said == other.said


def _say(path, photos):
    table = TagTable(path, ["cat"])
    for photo in photos:
        table.say(photo, {"cat": True})


def test_processes_that_write_one_table_at_the_same_time_lose_nothing(table):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_say, args=(table.path, [f"/{n}_{i}.jpg" for i in range(60)])) for n in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(TagTable(table.path, ["cat"])) == 120


def test_names_that_can_be_no_tag(table):
    for name, words in {" ": "Write", "cat": "already", "Path": "column", "tags": "column"}.items():
        with pytest.raises(ConfigError, match=words):
            table.add(name)
    assert table.add("  red   kite ") == "red kite"
    with pytest.raises(ConfigError, match="already"):
        table.add("red kite")
    with pytest.raises(ConfigError, match="There is no tag 'tent'"):
        table.say("/a.jpg", {"tent": True})


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no table of tags"),
        ("name,cat\n", "first row"),
        ("path,cat,cat\n", "first row"),
        ("path,cat\n/a.jpg\n", "row 2 has 1 cells"),
        ("path,cat\n/a.jpg,1\n/b.jpg,maybe\n", "row 3, column 'cat' must be 1, 0 or blank, found 'maybe'"),
        (b"path,cat\n\xff\xfe,1\n", "no table of tags"),
    ],
)
def test_a_file_that_is_none_is_named_and_left(tmp_path, text, words):
    path = tmp_path / "tags.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words) as caught:
        TagTable(path, ["cat"])
    assert str(path) in str(caught.value) and path.stat().st_size == len(text)


def test_data_sets_read_it(table, coco_root):
    photos = sorted((coco_root / "train2014").iterdir())[:20]
    table.begin({photo: ["kite"] if row % 2 else [] for row, photo in enumerate(photos)})
    table.say(photos[0], {"cat": True})
    table.say(photos[1], {"cat": False})
    halves = [open_dataset(Data(dataset="table", root=str(table.path)), split) for split in ("train", "test")]
    read = {half.path(row): half.truth[row].astype(int).tolist() for half in halves for row in range(len(half))}
    assert {half.classes for half in halves} == {("cat", "kite")} and set(read) == set(photos)
    assert [read[photo][1] for photo in photos] == [row % 2 for row in range(20)]
    assert [read[photo][0] for photo in photos[:3]] == [1, 0, -1]
