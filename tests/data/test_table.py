"""Tables and folders of folders: each is read as it is meant, or refused with file, row, column and way out."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, TINY, scenes
from PIL import Image

import krt_core as krt
from krt_core.config import Data, load_experiment
from krt_core.data import open_both, open_dataset, open_halves, table
from krt_core.errors import ConfigError, DataError

DOCS = Path(__file__).parents[2] / "docs"
TAGS = ("cat", "dog", "cat|dog", "bird|cat")  # of image i: TAGS[i % 4]
LABELS = {"bird": [0, 0, 0, 1], "cat": [1, 0, 1, 1], "dog": [0, 1, 1, 0]}  # what that says, class by class


def photo(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """photos/0.jpg to photos/11.jpg, and no table yet."""
    for number in range(12):
        photo(tmp_path / "set" / "photos" / f"{number}.jpg", number)
    return tmp_path / "set"


def lines(row, header, count=12):
    """A table; row: a format with i, the number of the image, and tags."""
    made = [row.format(i=i, tags=TAGS[i % 4], words=TAGS[i % 4].replace("|", " ")) for i in range(count)]
    return "\n".join([header, *made]) + "\n"


GOOD = lines("{i}.jpg,{tags}", "path,tags")


def write(root, content, name="tags.csv"):
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def opened(root, split="train", **keys):
    return open_dataset(Data(dataset="table", root=str(root), **keys), split)


def everything(root, **keys):
    """{file: labels that are 1, labels that are unknown} of both halves, and the notes."""
    halves = open_halves(Data(dataset="table", root=str(root), **keys))
    found = {}
    for half in (halves.train, halves.test):
        for row in range(len(half)):
            assert half.path(row).is_file(), half.path(row)
            said = [{half.classes[c] for c in np.flatnonzero(half.truth[row].astype(int) == v)} for v in (1, -1)]
            found[half.path(row).name] = tuple(said)
    return found, "; ".join(halves.notes)


EXPECTED = {f"{i}.jpg": (set(TAGS[i % 4].split("|")), set()) for i in range(12)}

# Each says of the twelve images what TAGS says.
READ = {
    "names without their folder": GOOD,
    "paths": lines("photos/{i}.jpg,{tags}", "path,tags"),
    "paths of another machine": lines("C:\\Users\\me\\photos\\{i}.JPG,{tags}", "path,tags"),
    "numbers for names": lines("{i},{tags}", "id,tags"),
    "BOM": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.replace(",", "\t").encode("utf-16"),
    "line ends of Windows": GOOD.replace("\n", "\r\n"),
    "line ends of an old Mac": GOOD.replace("\n", "\r"),
    "semicolons, comma between tags": lines("{i}.jpg;{tags}", "path;tags").replace("|", ", "),
    "tabs, blanks between tags": lines("{i}.jpg\t{words}", "path\ttags"),
    "Excel's first line": "sep=;\n" + GOOD.replace(",", ";"),
    "quotes and blanks around": lines('"{i}.jpg" ,  "{tags}"', " Image Path , Labels ").replace('" ,', '",'),
    "blank lines and blank cells behind": GOOD.replace("\n", ",,\n").replace("\n3.jpg", "\n\n,,,\n3.jpg"),
    "names of columns that say nothing": lines("{i}.jpg,{tags}", "a,b"),
    "other columns": lines("{i},{i}.jpg,{i}0.5,{tags}", "id,file_name,score,labels"),
    "two columns of the same paths": lines("{i}.jpg,photos/{i}.jpg,{tags}", "image,path,tags"),
    "lists": lines("{i}.jpg,[{tags}]", "path,tags").replace("|", "' '").replace("[", "['").replace("]", "']"),
    "the same again": GOOD + "3.jpg,cat|bird\nphotos/4.jpg,cat\n",
    "a row for each tag": "path,tag\n"
    + "".join(f"{i}.jpg,{tag}\n" for i in range(12) for tag in TAGS[i % 4].split("|")),
}
COLUMNS = "".join(f"{i}.jpg,{','.join(str(LABELS[name][i % 4]) for name in LABELS)}\n" for i in range(12))
READ["columns"] = "path,bird,cat,dog\n" + COLUMNS
READ["columns of yes and no"] = READ["columns"].replace(",1", ",yes").replace(",0", ",No")
READ["columns of true and false"] = READ["columns"].replace(",1", ",TRUE").replace(",0", ",FALSE")
READ["columns of decimals"] = READ["columns"].replace(",1", ",1.0").replace(",0", ",0.0")


@pytest.mark.parametrize("kind", READ)
def test_tables_are_read_as_they_are_meant(root, kind):
    found, notes = everything(write(root, READ[kind]))
    assert found == EXPECTED
    assert "paths are in" in notes and "3 of 12 are (data.test_share=0.2), chosen by data.split_seed=0" in notes
    cached, again = everything(root)
    assert cached == found and again == notes


def test_what_was_left_out_and_taken_is_told(root):
    _, notes = everything(write(root, READ["other columns"]))
    assert "paths are in 'file_name', tags in 'labels', with '|' between them" in notes
    assert "these columns are left out: id, score" in notes
    _, notes = everything(write(root, READ["the same again"]))
    assert "2 rows are about an image of an earlier one" in notes
    _, notes = everything(write(root, GOOD.replace("3.jpg,bird", "3.jpg,Bird")))
    assert "nearly the same name, yet classes of their own: 'Bird' and 'bird'" in notes
    _, notes = everything(write(root, GOOD.replace("5.jpg,dog", "5.jpg,")))
    assert "1 images have no tag and are taken to show none of the 3 classes" in notes


def test_parquet(root):
    pytest.importorskip("pyarrow")
    files = [f"{i}.jpg" for i in range(12)]
    frames = {
        "lists": pd.DataFrame({"path": files, "tags": [TAGS[i % 4].split("|") for i in range(12)]}),
        "texts": pd.DataFrame({"path": files, "tags": [TAGS[i % 4] for i in range(12)]}).set_index("path"),
        "columns": pd.DataFrame(
            {"path": files, "n": range(12), **{k: np.array(v * 3) == 1 for k, v in LABELS.items()}}
        ),
        "categories": pd.DataFrame({"path": files, "tags": pd.Categorical([TAGS[i % 4] for i in range(12)])}),
    }
    for frame in frames.values():
        frame.to_parquet(root / "t.parquet")
        assert everything(root)[0] == EXPECTED
    frame = pd.DataFrame({"path": files, "cat": [1.0, 0.0, None] * 4, "dog": [True, None, False] * 4})
    frame.to_parquet(root / "t.parquet")
    found, _ = everything(root)
    assert found["0.jpg"] == ({"cat", "dog"}, set()) and found["1.jpg"] == (set(), {"dog"})
    (root / "t.parquet").write_bytes((root / "t.parquet").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"t.parquet cannot be read as Parquet \(Arrow"):
        opened(root)


def test_parquet_needs_pyarrow(root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"t\.parquet: to read Parquet, pip install pyarrow"):
        opened(write(root, b"PAR1", "t.parquet"))


def test_unknown_labels(root):
    rows = "path,cat,dog\n0.jpg,1,0\n1.jpg,-1,1\n2.jpg,,1\n3.jpg,NA,0\n4.jpg,0,nan\n"
    found, notes = everything(write(root, rows), test_share=0.4)
    assert found == {
        "0.jpg": ({"cat"}, set()), "1.jpg": ({"dog"}, {"cat"}), "2.jpg": ({"dog"}, {"cat"}), "3.jpg": (set(), {"cat"}),
        "4.jpg": (set(), {"dog"}),
    }  # fmt: skip
    assert "labels are unknown" in notes


# ---- train and test ----


def halves(root, **keys):
    return tuple(
        {Path(path).name for path in half.ids} for half in open_both(Data(dataset="table", root=str(root), **keys))
    )


def test_what_a_blank_cell_says(root):
    """Nothing is 0: it has to be said what blank cells mean; where every cell is 1 there is nothing to say."""
    table = READ["columns"].replace(",0", ",")
    absent = everything(write(root, table), blank="absent")[0]
    assert absent == EXPECTED
    unknown = everything(root, blank="unknown")[0]
    assert unknown == {name: (shown, {"bird", "cat", "dog"} - shown) for name, (shown, _) in EXPECTED.items()}
    ones = everything(write(root, lines("{i}.jpg,1", "path,cat")))[0]
    assert ones == {f"{i}.jpg": ({"cat"}, set()) for i in range(12)}
    with pytest.raises(ConfigError, match="data.blank say how to read a table"):
        load_experiment("digits_demo", {"data.blank": "absent"})


def test_a_column_says_train_and_test(root):
    words = ("train", "Test", "valid", "training")
    content = "path,tags,split\n" + "".join(f"{i}.jpg,{TAGS[i // 3 % 4]},{words[i % 4]}\n" for i in range(12))
    _, test = halves(write(root, content))
    assert test == {"1.jpg", "5.jpg", "9.jpg"}
    assert "3 val images are learned from as training images" in everything(root)[1]
    write(root, content.replace("split", "whatever"))
    assert halves(root)[1] == test  # by what it says
    write(root, content.replace(",Test", ",train"))
    assert halves(root)[1] == {"2.jpg", "6.jpg", "10.jpg"}
    assert "3 val images are the test images, as there are no others" in everything(root)[1]
    write(root, "fname,labels,is_valid\n" + "".join(f"{i}.jpg,{TAGS[i // 3 % 4]},{i % 4 == 1}\n" for i in range(12)))
    assert halves(root)[1] == test
    _, notes = everything(root, test_share=0.5)
    assert "data.test_share=0.5 is not used" in notes
    assert len(halves(root, split="none", test_share=0.5)[1]) == 6


def test_files_say_train_and_test(root):
    rows = GOOD.splitlines(keepends=True)
    write(root, "".join(rows[:9]), "my_train.csv")
    write(root, "path,tags\n8.jpg,fox\n9.jpg,dog|fox\n", "labels-test.tsv")
    write(root, "name\ncat\n", "classes.csv")
    train, test = open_both(Data(dataset="table", root=str(root)))
    assert [len(train), len(test)] == [8, 2] and train.classes == test.classes == ("bird", "cat", "dog", "fox")
    assert "classes.csv is not read" in train.notes
    write(root, "path,tags\n10.jpg,cat\n", "val.csv")
    assert len(opened(root)) == 9 and len(opened(root, "test")) == 2
    (root / "labels-test.tsv").unlink()
    assert len(opened(root)) == 8 and len(opened(root, "test")) == 1
    assert len(opened(root / "my_train.csv", "test")) == 2  # one table alone: a share of it


def test_the_same_name_in_two_folders_goes_by_the_half(root):
    for half in ("train", "test"):
        for number in range(2):
            photo(root / half / f"a{number}.jpg", 7)
    rows = "".join(f"a{i}.jpg,{tag},{half}\n" for half in ("train", "test") for i, tag in enumerate(("cat", "dog")))
    train, test = open_both(Data(dataset="table", root=str(write(root, "path,tags,split\n" + rows))))
    assert train.ids.tolist() == ["train/a0.jpg", "train/a1.jpg"] and test.ids.tolist() == [
        "test/a0.jpg",
        "test/a1.jpg",
    ]


def many(count, seed=0):
    """So many rows with a long tail of 30 classes."""
    labels = np.random.default_rng(seed).random((count, 30)) < 0.5 / np.arange(1, 31) ** 1.1
    return [f"{i:04d}.jpg,{'|'.join(f'c{c:02d}' for c in np.flatnonzero(row))}" for i, row in enumerate(labels)]


def test_the_share_for_tests_is_the_same_for_any_order_and_nearly_so_for_more_rows(tmp_path):
    rows = many(3000)
    train, test = halves(write(tmp_path, "\n".join(["path,tags", *rows])))
    data = opened(tmp_path), opened(tmp_path, "test")
    shares = data[1].labels.sum(axis=0) / (data[0].labels.sum(axis=0) + data[1].labels.sum(axis=0))
    counts = sum(half.labels.sum(axis=0) for half in data)
    assert (np.abs(shares - 0.2) * counts <= 1).all() and not train & test and len(train | test) == 3000
    turned = np.random.default_rng(1).permutation(rows)
    assert halves(write(tmp_path, "\n".join(["path,tags", *turned]))) == (train, test)
    assert len(halves(tmp_path, split_seed=1)[1] & test) < 0.35 * len(test)
    assert abs(len(halves(tmp_path, test_share=0.5)[1]) - 1500) < 60
    fewer = halves(write(tmp_path, "\n".join(["path,tags", *rows[:2700]])))[1]
    assert len(fewer - test) < 0.1 * len(fewer)  # become training images by a tenth more rows


# ---- folders of folders ----


def test_folders_are_classes(tmp_path):
    for i in range(10):
        photo(tmp_path / "set" / ("cat", "dog")[i % 2] / f"{i}.jpg", i)
    photo(tmp_path / "set/dog/0.jpg", 99)  # another image of that name
    shutil.copy(tmp_path / "set/cat/2.jpg", tmp_path / "set/dog/2.jpg")
    shutil.copy(tmp_path / "set/cat/4.jpg", tmp_path / "set/dog/another name.JPG")
    (tmp_path / "set/dog/notes.txt").write_text("x")
    (tmp_path / "set/empty").mkdir()
    photo(tmp_path / "set/.hidden/a.jpg", 5)
    train, test = open_both(Data(dataset="table", root=str(tmp_path / "set")))
    assert train.classes == ("cat", "dog") and len(train) + len(test) == 11
    both = [half.ids[half.labels.all(axis=1)].tolist() for half in (train, test)]
    assert sorted([*both[0], *both[1]]) == ["cat/2.jpg", "cat/4.jpg"]
    notes = "; ".join(train.notes)
    assert "2 files are copies of others: each content is one image (2 show several classes)" in notes
    assert "2 files or folders are no images of a class and are left out, as dog/notes.txt, empty/" in notes
    photo(tmp_path / "set/cat/new.jpg", 77)
    assert len(opened(tmp_path / "set")) + len(opened(tmp_path / "set", "test")) == 12  # read again
    with pytest.raises(ConfigError, match=r"data.tags and data.split say how to read a table|data.tags say how"):
        opened(tmp_path / "set", tags="x", split="y")


def test_folders_of_halves_hold_folders_of_classes(tmp_path):
    for number, (half, count) in enumerate((("train", 3), ("test", 2), ("val", 1))):
        for name in ("cat", "dog"):
            for i in range(count):
                photo(tmp_path / half / name / f"{i}.jpg", 100 * number + 10 * i + (name == "cat"))
    assert len(opened(tmp_path)) == 8 and len(opened(tmp_path, "test")) == 4
    shutil.rmtree(tmp_path / "test")
    assert len(opened(tmp_path)) == 6 and len(opened(tmp_path, "test")) == 2
    shutil.rmtree(tmp_path / "val")
    shutil.copy(tmp_path / "train/cat/0.jpg", tmp_path / "train/cat/again.jpg")
    assert len(opened(tmp_path)) + len(opened(tmp_path, "test", test_share=0.3)) == 6  # one image, two files


# ---- what is refused ----

MANY_VALUES = lines("{i}.jpg,{i}", "path,cat").replace("11.jpg,11", "11.jpg,1")
BAD = {
    "empty": ("", "tags.csv is empty: it needs a header"),
    "a header alone": ("path,tags\n", r"has no rows below its header \(it has 'path', 'tags'\)"),
    "no header": (GOOD.split("\n", 1)[1], r"has no header: row 1 is about an image already \('0.jpg'\)"),
    "cp1252": (GOOD.replace("bird", "Vögel").encode("cp1252"), "not in UTF-8 .* line 5 is '3.jpg,Vögel|cat'"),
    "zero bytes": (GOOD.encode() + b"1.jpg,c\0t\n", "holds zero bytes"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git LFS pointer: run git lfs pull"),
    "a cell that does not end": (GOOD.replace("3.jpg,b", '3.jpg,"b'), "row 5: a cell begins with a quotation mark"),
    "a cell that ends early": (
        GOOD.replace("3.jpg,bird", '3.jpg,"bird"'),
        "row 5: .*a quotation mark is written twice",
    ),
    "too many cells": (GOOD.replace("bird|", "bird,"), "row 5: 3 cells for the 2 columns of the header .*in quotes"),
    "too few cells": (GOOD.replace("3.jpg,bird|cat", "3.jpg"), "row 5: 1 cells for the 2 columns"),
    "two ways to cut": ("path,a;tags,b\n0.jpg,a;cat,b\n", "can be read with ',' or ';' between its cells"),
    "a name twice": (lines("{i}.jpg,1,0", "path,cat,cat"), "the columns 2 and 3 are both called 'cat'"),
    "paths alone": (lines("{i}.jpg", "path"), "beside 'path' it has no column of tags"),
    "an address": (
        GOOD.replace("\n7.jpg", "\nhttps://a.b/7.jpg"),
        "row 9, column 'path': 'https://a.b/7.jpg' is an add",
    ),
    "a blank path": (GOOD.replace("\n7.jpg", "\n"), "row 9, column 'path' must name an image, and is blank"),
    "no paths": (lines("x{i},{tags}", "id,tags"), r"no column has paths of images .*data.paths=NAME"),
    "two columns of paths": (
        lines("{i}.jpg,1{i}.jpg,{tags}", "image,file,tags", 2),
        "'image' and 'file' both have paths",
    ),
    "two marks": (GOOD.replace("bird|cat", "bird;cat"), r"'\|' \(as in 'cat\|dog'\) or ';' \(as in 'bird;cat'\)"),
    "marks and blanks": (
        GOOD.replace("|", ";").replace("cat;dog", "cat dog"),
        "separated by ';' or by blanks: 'cat dog'",
    ),
    "blanks or names": (
        "path,tags\n0.jpg,big dog\n1.jpg,big cat\n2.jpg,cat\n3.jpg,old cat\n",
        "data.separator=space, or",
    ),
    "a 2": (READ["columns"].replace("5.jpg,0,0,1", "5.jpg,0,2,1"), "row 7, column 'cat' must be 1, 0, .*found '2'"),
    "nearly a class": (MANY_VALUES, "no columns of 1 and 0"),
    "1 and -1": (READ["columns"].replace(",0", ",-1"), "hold 1 and -1 or blank alone: write 0.*say blank=absent"),
    "neither": (lines("{i}.jpg,6{i}0,4{i}0", "path,width,height"), r"no columns of 1 and 0, one a class, and none"),
    "two columns of tags": (lines("{i}.jpg,{tags},me", "path,what,who"), "tags could be in 'what' or 'who'"),
    "tags and classes": (lines("{i}.jpg,{tags},0", "path,tags,cat"), "data.tags=tags, or data.tags=none"),
    "a class called label": ("path,label\n0.jpg,1\n1.jpg,0\n", "is 'label' a class, or are 0 and 1 tags in it"),
    "no tag at all": (
        lines("{i}.jpg,", "path,tags"),
        "no image has a label: every cell of a tag or a class is blank or 0",
    ),
    "other tags": (
        GOOD + "3.jpg,cat\n",
        r"row 14 is about the image of row 5 \(photos/3.jpg\) and says 'cat', where that",
    ),
    "other values": (
        READ["columns"] + "photos/3.jpg,0,1,0\n",
        "row 14 is about the image of row 5 .*says 0 for 'bird'",
    ),
    "an odd half": (
        lines("{i}.jpg,{tags},train", "path,tags,split") + "3.jpg,cat,x\n",
        "row 14, column 'split' must say",
    ),
    "no half": (
        lines("{i}.jpg,{tags},", "path,tags,split"),
        "row 2, column 'split' must say train, val or test, found noth",
    ),
    "both halves": (
        "path,tags,split\n0.jpg,cat,train\n0.jpg,cat,test\n",
        "row 3: 0.jpg is for test, and in row 2 for train",
    ),
    "one file": (
        "path,tags\na/0.jpg,cat\nb/0.jpg,dog\n",
        r"row 3: b/0.jpg and a/0.jpg \(row 2\) would both be read from",
    ),
    "captions": (
        "path,tags\n" + "".join(f"{i}.jpg,no. {i}!\n" for i in range(30)),
        "none of its 30 tags is in two images",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_named(root, kind):
    content, words = BAD[kind]
    with pytest.raises(DataError, match=words) as error:
        opened(write(root, content))
    assert str(root) in str(error.value)


def test_keys_say_what_is_meant(root):
    write(root, lines("{i}.jpg;1{i}.jpg;{tags};a b;{i}", "image;file;what;who;n"))
    found, _ = everything(root, paths="IMAGE", tags="what")
    assert found == EXPECTED
    with pytest.raises(DataError, match="has no column 'whatt', as data.tags=whatt says. Did you mean 'what'"):
        opened(root, tags="whatt")
    with pytest.raises(DataError, match="'image' holds paths, or train and test: it cannot be data.tags"):
        opened(root, paths="image", tags="image")
    write(root, GOOD.replace("|", ";"))
    with pytest.raises(DataError, match=r"data.separator=\| is in no cell, but ';' is"):
        opened(root, separator="|")
    one = opened(root, separator="none")
    assert one.classes == ("bird;cat", "cat", "cat;dog", "dog")
    write(root, "path,tags\n0.jpg,big dog\n1.jpg,big cat\n2.jpg,cat\n3.jpg,old cat\n")
    assert opened(root, separator="space").classes == ("big", "cat", "dog", "old")
    write(root, READ["columns"].replace("cat,dog", "cat,people").replace("5.jpg,0,0,1", "5.jpg,0,0,7"))
    assert opened(root, classes=("bird", "cat")).classes == ("bird", "cat")
    with pytest.raises(DataError, match=r"column 'people' must be 1, 0, .*or name those that are: data.classes"):
        opened(root)


def test_places_that_are_no_table(root):
    for name, words in (
        ("x.json", "is no table: a file that is one ends in .csv"),
        ("x.xlsx", "is a spreadsheet: save it"),
    ):
        with pytest.raises(DataError, match=words):
            opened(write(root, "x", name) / name)
        (root / name).unlink()
    with pytest.raises(DataError, match=r"one folder of images alone \(photos\), which is one class"):
        opened(root)
    with pytest.raises(DataError, match="has no table .* and no folders of images, a class each. Write a table"):
        opened(root / "photos")
    with pytest.raises(DataError, match="has no table .* It has x.xlsx: save that as CSV"):
        opened(write(root / "photos", "x", "x.xlsx"))
    write(write(root, GOOD, "a.csv"), GOOD, "b.csv")
    with pytest.raises(DataError, match=r"several tables: a.csv, b.csv. Set data.root to the one"):
        opened(root)
    (root / "a.csv").rename(root / "train.csv")
    (root / "b.csv").rename(root / "test.csv")
    write(root, "path\n1.jpg\n", "test.csv")
    with pytest.raises(DataError, match=r"test.csv: beside 'path' .* Or set data.root to .*train.csv, and a share"):
        opened(root)
    write(root, "path,tags,split\n1.jpg,cat,train\n", "test.csv")
    with pytest.raises(
        DataError, match=r"test.csv, row 2, column 'split' says train, and the table is called as one for"
    ):
        opened(root)


def test_images_that_are_not_there_or_in_two_folders_are_named(root):
    write(root, GOOD + "99.jpg,cat\n")
    assert "1 of 13 images are not there, the first is" in "; ".join(opened(root).notes)
    shutil.copytree(root / "photos", root / "thumbs")
    with pytest.raises(DataError, match="the images are in photos/ as well as in thumbs/"):
        opened(root)
    found = opened(write(root, lines("thumbs/{i}.jpg,{tags}", "path,tags")))
    assert all(str(path).startswith("thumbs/") for path in found.paths)
    shutil.rmtree(root / "thumbs")
    (root / "deep/er").mkdir(parents=True)
    (root / "photos/3.jpg").rename(root / "deep/er/3.jpg")
    assert everything(write(root, GOOD))[0] == EXPECTED


def test_keys_of_tables_are_refused_elsewhere():
    for key, value in (
        ("tags", "x"),
        ("paths", "x"),
        ("separator", "|"),
        ("split", "x"),
        ("test_share", 0.3),
        ("split_seed", 1),
    ):
        with pytest.raises(ConfigError, match=rf"data.{key} say how to read a table: set data.dataset=table"):
            load_experiment("digits_demo", {f"data.{key}": value})
        load_experiment("digits_demo", {f"data.{key}": value, "data.dataset": "table"})
    with pytest.raises(ConfigError, match="less than 1"):
        load_experiment("digits_demo", {"data.dataset": "table", "data.test_share": 1.0})


# ---- cache, training, the page ----


def test_a_changed_table_is_read_again(root, monkeypatch):
    first = opened(write(root, GOOD))
    monkeypatch.setattr(table, "read", lambda *_: pytest.fail("read again"))
    assert opened(root).digest() == first.digest()
    monkeypatch.undo()
    assert "fox" in opened(write(root, GOOD.replace("bird", "fox"))).classes
    assert len(opened(root, test_share=0.5)) < len(first)  # what the configuration says counts, too
    os.remove(root / "photos/3.jpg")
    assert "not there" in "; ".join(opened(root).notes)


@pytest.mark.parametrize("form", ["tags", "columns", "folders"])
def test_a_table_trains(tmp_path, form):
    folder, rows = tmp_path / "data" / "mine", []
    for i, (image, present) in enumerate(scenes(np.random.default_rng(0), 40)):
        names = [CLASSES[c] for c in present]
        for place in names if form == "folders" else ("images",):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / place / f"{i}.png")
        cells = ["|".join(names)] if form == "tags" else [str(int(name in names)) for name in CLASSES]
        rows.append(",".join([f"{i}.png", *cells]))
    if form != "folders":
        header = "path,tags" if form == "tags" else ",".join(["path", *CLASSES])
        (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    experiment = load_experiment(
        "digits_demo", {**TINY, "data.dataset": "table", "data.root": str(folder), "train.epochs": 1}
    )
    run = krt.train(experiment, show="none")
    assert run.done and run.protocol.classes == CLASSES
    log = (run.folder / "log.txt").read_text()
    assert log.count("nothing says which images are for tests: 8 of 40 are") == 1
    assert run.scores(1).labels.shape == (8, 4)


def test_the_examples_of_the_page_are_read(tmp_path):
    """Every table of docs/your_data.md, as it stands."""
    page = (DOCS / "your_data.md").read_text()
    blocks = dict(re.findall(r"^`([\w.]+)`\n\n```csv\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert list(blocks) == ["tags.csv", "rows.csv", "columns.csv"]
    for number in range(1, 5):
        photo(tmp_path / "photos" / f"{number:03d}.jpg", number)
    sizes = {}
    for name, content in blocks.items():
        assert len(content.splitlines()) == 5
        (tmp_path / name).write_text(content)
        train, test = open_both(Data(dataset="table", root=str(tmp_path / name), test_share=0.3))
        assert all(half.path(row).is_file() for half in (train, test) for row in range(len(half)))
        sizes[name] = len(train), len(test), train.classes
    assert sizes["columns.csv"] == (3, 1, ("cat", "dog", "sofa")) and sizes["tags.csv"][2][3] == "traffic light"
