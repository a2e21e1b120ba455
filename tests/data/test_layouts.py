"""Which layout a folder or a file has: one, none, or two that could be meant."""

import pytest
from conftest import write_coco, write_voc
from PIL import Image

from krt_core.data.layouts import layout_of
from krt_core.errors import DataError


def photos(folder, count=3):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (60 * number, 0, len(folder.name))).save(folder / f"{number}.png")
    return folder


def test_layouts_are_told_by_what_is_in_them(tmp_path):
    assert layout_of(write_coco(tmp_path / "a", 3, 2)) == layout_of(str(tmp_path / "a")) == "coco"
    assert layout_of(write_voc(tmp_path / "b" / "VOCdevkit" / "VOC2012")) == layout_of(tmp_path / "b") == "voc"
    photos(tmp_path / "c" / "photos")
    (tmp_path / "c/mine.CSV").write_text("path,tags\n0.png,cat\n1.png,dog\n")
    assert layout_of(tmp_path / "c") == layout_of(tmp_path / "c/mine.CSV") == "table"
    for name in ("cat", "dog"):
        photos(tmp_path / "d" / name)
        photos(tmp_path / "e" / "train" / name)
    assert layout_of(tmp_path / "d") == layout_of(tmp_path / "e") == "table"


def test_a_list_beside_annotations_is_no_table(tmp_path):
    root = write_coco(tmp_path / "a", 3, 2)
    (root / "classes.csv").write_text("id,name\n1,cat\n2,dog\n")
    assert layout_of(root) == "coco"


def test_two_layouts_and_none_are_named(tmp_path):
    root = write_coco(tmp_path / "a", 3, 2)
    (root / "tags.csv").write_text("path,tags\ntrain2014_000.png,cat\ntrain2014_001.png,dog\n")
    said = r"has COCO layout \(annotations/instances_train2014.json\) and a table \(tags.csv\): which is meant\?"
    with pytest.raises(DataError, match=said + " Move one of them away, or name the table itself"):
        layout_of(root)
    assert layout_of(root / "tags.csv") == "table"
    write_voc(tmp_path / "b")
    write_coco(tmp_path / "b" / "c", 3, 2)
    (tmp_path / "b/c/annotations/instances_train2014.json").rename(tmp_path / "b/train.json")
    with pytest.raises(DataError, match=r"COCO layout \(train.json\) and VOC layout \(Annotations/\)"):
        layout_of(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"empty has no annotations. Looked for .*COCO.*VOC.*a table .*folders of images"
    ):
        layout_of(tmp_path / "empty")
    with pytest.raises(DataError, match="There is no folder or table .*nowhere"):
        layout_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match="train.json is no table .* Other layouts go by their folder"):
        layout_of(tmp_path / "b/train.json")
    with pytest.raises(DataError, match="one folder of images alone .* Write a table, such as path,tags"):
        layout_of(photos(tmp_path / "f" / "photos").parent)
    with pytest.raises(DataError, match="has no annotations"):
        layout_of(tmp_path / "f" / "photos")
