"""VOC folders of any origin: each is read as it is meant, or refused with the file and the way out."""

import os
import shutil

import pytest
from conftest import write_voc, write_xml

from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "data" / "voc")


def opened(root, split="train", name="voc"):
    return open_dataset(Data(dataset=name, root=str(root)), split)


def lists(root, write):
    """Write both lists anew from their ids; ``write`` gives text or bytes."""
    for path in (root / "ImageSets/Main").glob("*.txt"):
        made = write(path.read_text().split())
        path.write_bytes(made if isinstance(made, bytes) else made.encode())


def renamed(root, name, encoding="utf-8"):
    """Call every image and its annotation otherwise."""
    for path in (root / "ImageSets/Main").glob("*.txt"):
        ids = path.read_text().split()
        for one in ids:
            os.rename(root / f"Annotations/{one}.xml", root / f"Annotations/{name(one)}.xml")
            os.rename(root / f"JPEGImages/{one}.jpg", root / f"JPEGImages/{name(one)}.jpg")
        path.write_bytes("\n".join(map(name, ids)).encode(encoding))


LISTS = {
    "blanks": lambda r: renamed(r, lambda one: f"street view ({int(one)})"),
    "a number at the end": lambda r: renamed(r, lambda one: f"street view {int(one)}"),
    "Chinese": lambda r: renamed(r, lambda one: f"图片{one}"),
    "Chinese as GBK": lambda r: renamed(r, lambda one: f"图片{one}", "gbk"),
    "Japanese as Shift JIS": lambda r: renamed(r, lambda one: f"写真{one}", "shift_jis"),
    "columns of flags": lambda r: lists(r, lambda ids: "\n".join(f"{o}  {k % 2 * 2 - 1}" for k, o in enumerate(ids))),
    "PowerShell": lambda r: lists(r, lambda ids: "\r\n".join(ids).encode("utf-16")),
    "a byte order mark": lambda r: lists(r, lambda ids: "\n".join(ids).encode("utf-8-sig")),
    "extensions": lambda r: lists(r, lambda ids: "\n".join(f"{one}.jpg" for one in ids)),
    "two paths": lambda r: lists(r, lambda ids: "\n".join(f"JPEGImages/{o}.jpg Annotations/{o}.xml" for o in ids)),
    "commas": lambda r: lists(r, lambda ids: ",\n".join(ids)),
    "CSV": lambda r: lists(r, lambda ids: "".join(f'"{one}",1\r\n' for one in ids)),
    "one line": lambda r: lists(r, lambda ids: " ".join(ids)),
    "one line of paths": lambda r: lists(r, lambda ids: "; ".join(f"JPEGImages/{one}.jpg" for one in ids)),
    "backslashes": lambda r: lists(r, lambda ids: "\r\n".join(f"D:\\set\\{one}.jpg" for one in ids)),
}  # fmt: skip


@pytest.mark.parametrize("change", LISTS.values(), ids=LISTS)
def test_lists(root, change):
    change(root)
    for split, count in (("train", 6), ("test", 4)):
        data = opened(root, split)
        assert len(data) == count and data.classes == ("cat", "dog") and data.labels.sum() == count
        assert all(data.path(row).is_file() for row in range(count))


def test_of_several_on_a_line_none_is_left_out(root):
    with (root / "ImageSets/Main/trainval.txt").open("a") as file:
        file.write("000006 000007 000999\n")
    with pytest.raises(DataError, match="Annotations/000999.xml is missing, though the image list names it"):
        opened(root)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("gb2312", "gb2312"), ("gbk", "GBK"), ("big5", "big5"), ("utf-16", "utf-16"), ("utf-8", "utf-16"), ("utf-8", ""),
     ("utf-8-sig", "utf-8")],
)  # fmt: skip
def test_encodings_of_annotations(root, encoding, declared):
    for path in (root / "Annotations").iterdir():
        says = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
        path.write_bytes((says + path.read_text().replace("cat", "天")).encode(encoding))
    assert opened(root).classes == ("dog", "天")


@pytest.mark.parametrize(
    ("value", "difficult"),
    [("1", 1), ("1 ", 1), ("Yes", 1), ("True", 1), ("true", 1), ("0", 0), ("", 0), ("No", 0), ("Unspecified", 0)],
)
def test_difficult_however_it_is_written(root, value, difficult):
    write_xml(root, "000000", [("cat", value)])
    assert opened(root).labels[0].any() != difficult


@pytest.mark.parametrize(
    ("old", "new"),
    [("<xmin>3", "<xmin>(3, 2)"), ("<xmin>3", "<xmin>nan"), ("<width>30", "<width>wide"), ("<width>30", "<width>0")],
)
def test_no_label_hangs_on_a_box(root, old, new):
    path = root / "Annotations/000002.xml"
    path.write_text(path.read_text().replace(old, new))
    data = opened(root)
    assert data.labels.sum() == 6 and len(data.boxes) == 5 and "1 objects have a bndbox" in data.notes[0]


def test_swapped_corners_are_put_right(root):
    wanted = opened(root).boxes
    for path in (root / "Annotations").iterdir():
        text = path.read_text().replace("xmin", "x").replace("xmax", "xmin")
        path.write_text(text.replace("<x>", "<xmax>").replace("</x>", "</xmax>"))
    assert (opened(root).boxes == wanted).all()


@pytest.mark.parametrize("extension", [".png", ".JPG", ".jpeg", ".Png"])
def test_extensions_of_images(root, extension):
    for path in list((root / "JPEGImages").iterdir()):
        path.rename(path.with_suffix(extension))
    assert all(opened(root).path(row).is_file() for row in range(6))


def test_the_annotation_says_which_of_two_files(root):
    shutil.copy(root / "JPEGImages/000000.jpg", root / "JPEGImages/000000.bmp")
    (root / "JPEGImages/000000.jpg").rename(root / "JPEGImages/000000.png")
    with pytest.raises(DataError, match=r"000000.bmp and 000000.png: remove one, or name it in .*000000.xml"):
        opened(root)
    path = root / "Annotations/000000.xml"
    path.write_text(path.read_text().replace("<annotation>", "<annotation><filename>000000.png</filename>"))
    assert opened(root).paths[0] == "JPEGImages/000000.png"


def test_one_image_is_not_taken_for_two_annotations(root):
    path = root / "Annotations/000001.xml"
    path.write_text(path.read_text().replace("<annotation>", "<annotation><filename>000000.jpg</filename>"))
    assert opened(root).paths[1] == "JPEGImages/000001.jpg"  # a copied annotation still has the old name
    (root / "JPEGImages/000001.jpg").unlink()
    with pytest.raises(DataError, match=r"000001.xml: 000001 and 000000 would both be read"):
        opened(root)


@pytest.mark.parametrize(
    ("there", "train", "test"),
    [(("train", "val"), 6, 4), (("train", "val", "trainval"), 6, 4), (("train", "test"), 6, 4),
     (("trainval", "val", "train", "test"), 10, 4)],
)  # fmt: skip
def test_lists_of_voc_2012(root, there, train, test):
    main = root / "ImageSets/Main"
    first, second = ((main / f"{name}.txt").read_text() for name in ("trainval", "test"))
    for path in main.iterdir():
        path.unlink()
    for name in there:
        (main / f"{name}.txt").write_text({"train": first, "trainval": first + second}.get(name, second))
    assert (len(opened(root)), len(opened(root, "test"))) == (train, test)
    assert ("for training and" in " ".join(opened(root).notes)) == (set(there) != {"trainval", "val", "train", "test"})


def test_voc2007_takes_no_other_list_for_its_own(root):
    (root / "ImageSets/Main/trainval.txt").rename(root / "ImageSets/Main/train.txt")
    with pytest.raises(DataError, match=r"looked for trainval.txt in ImageSets/Main. It has train.txt, test.txt"):
        opened(root, name="voc2007")


@pytest.mark.parametrize(
    ("text", "words"),
    [("<annotation><object></object></annotation>", "000000.xml: object 1 must have a name"),
     ("<annotation><object><name>cat</name><difficult>so so</difficult></object></annotation>", "difficult must be 0"),
     ('<?xml version="1.0" encoding="klingon"?><a/>', "000000.xml says that it is in 'klingon'"), ("", "not readable"),
     (b"<annotation>\xff</annotation>", "000000.xml is not in UTF-8")],
)  # fmt: skip
def test_damaged_annotations_are_named(root, text, words):
    (root / "Annotations/000000.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        opened(root)


@pytest.mark.parametrize("change", [("<annotation>", '<annotation xmlns="urn:x">'), ("object>", "Object>"),
                                    ("<name>", "<Name>"), ("</name>", "</Name>")])  # fmt: skip
def test_names_of_elements_in_any_case_and_space(root, change):
    """In one file of six: its label would be gone without a word."""
    path = root / "Annotations/000002.xml"
    text = path.read_text().replace(*change)
    path.write_text(text.replace("</name>", "</Name>") if "<Name>" in text else text.replace("<name>", "<Name>")
                    if "</Name>" in text else text)  # fmt: skip
    assert opened(root).labels.sum() == 6


def test_why_there_are_no_labels_is_said(root):
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    with pytest.raises(DataError, match="all 6 objects are marked difficult"):
        opened(root)
    for path in (root / "Annotations").iterdir():
        path.write_text("<annotation/>")
    with pytest.raises(DataError, match="no XML has an object"):
        opened(root)


@pytest.mark.parametrize("place", ["Annotations/000001.xml", "ImageSets/Main/trainval.txt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer: run git lfs pull"),
     (b"\0" * 300, "is filled with zeros"), (b"\x1f\x8b\x08\0\0", "is compressed by gzip"),
     (b"<!DOCTYPE html><html>log in</html>", "is a web page")],
)  # fmt: skip
def test_what_lies_in_the_place_of_a_file_is_named(root, place, content, words):
    (root / place).write_bytes(content)
    with pytest.raises(DataError, match=rf"{place} {words}"):
        opened(root)


@pytest.mark.parametrize("name", ["a" * 5000, "/", "/etc/hostname"])
def test_a_list_of_odd_names_is_an_error_of_ours(root, name):
    with (root / "ImageSets/Main/trainval.txt").open("a") as file:
        file.write(f"{name}\n")
    with pytest.raises(DataError, match=rf"^{root}/Annotations/"):
        opened(root)


def test_a_list_that_is_no_text_is_named(root):
    (root / "ImageSets/Main/trainval.txt").write_bytes(b"\xff\xfa\x81\x00\x01")
    with pytest.raises(DataError, match=r"trainval.txt"):
        opened(root)
