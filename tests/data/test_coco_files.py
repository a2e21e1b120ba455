"""COCO files as other tools write them: each is read as it is meant, or refused with file, entry and way out."""

import json
import os
import shutil
from urllib.parse import quote

import numpy as np
import pytest
from conftest import CLASSES, write_coco

from krt_core.config import Data
from krt_core.data import open_both, open_dataset
from krt_core.errors import DataError

FILES = {"train": "instances_train2014.json", "test": "instances_val2014.json"}


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / "data" / "set", 8, 5)


def opened(root, split="train"):
    return open_dataset(Data(dataset="coco", root=str(root)), split)


def rewrite(root, change, write=json.dumps):
    """Change both annotation files; ``change`` gets a file's content and may return another."""
    for name in FILES.values():
        path = root / "annotations" / name
        content = json.loads(path.read_text())
        changed = change(content)
        made = write(content if changed is None else changed)
        path.write_bytes(made.encode() if isinstance(made, str) else made)


def each(section, **values):
    """A change of keys of all entries of a section; a callable value is made from the entry."""

    def change(content):
        for entry in content[section]:
            entry.update({key: value(entry) if callable(value) else value for key, value in values.items()})

    return change


def renumbered_per_image(content):
    seen = {}
    for annotation in content["annotations"]:
        annotation["id"] = seen[annotation["image_id"]] = seen.get(annotation["image_id"], 0) + 1


def boxes_of_every_kind(content):
    kinds = (
        {"x": 1, "y": 2, "width": 3, "height": 4},
        "1,2,3,4",
        [1, 2],
        None,
        [[1, 2], [3, 4]],
        ["a", 2, 3, 4],
        {},
        5,
    )
    for number, annotation in enumerate(content["annotations"]):
        annotation["bbox"] = kinds[number % len(kinds)]


def named(way):
    def change(content):
        for image in content["images"]:
            key, value = way(image.pop("file_name"))
            image[key] = value

    return change


READ = {
    "annotations numbered per image": renumbered_per_image,
    "annotations as object": lambda c: c.update(annotations={str(a["id"]): a for a in c["annotations"]}),
    "all as objects, ids as keys": lambda c: c.update(
        {k: {str(entry.pop("id")): entry for entry in c[k]} for k in ("images", "categories", "annotations")}
    ),
    "boxes of every kind": boxes_of_every_kind,
    "boxes that are no number": each("annotations", bbox=[float("nan")] * 4),
    "ids of categories as text": each("categories", id=lambda c: str(c["id"])),
    "ids of images as text": each("images", id=lambda i: f"{i['id']:012d}"),
    "ids as fractions": each("annotations", image_id=lambda a: float(a["image_id"])),
    "no crowd, as text": each("annotations", iscrowd="0"),
    "a category twice": lambda c: c["categories"].append({"id": 99, "name": "ant "}),
    "an image twice": lambda c: c["images"].append(dict(c["images"][0])),
    "an image under two ids": lambda c: c["images"].append(dict(c["images"][0], id=7)),
    "sizes as text": each("images", width="32", height="32"),
    "only an address": named(lambda n: ("coco_url", f"http://images.example.org/train2017/{n}")),
    "backslashes": named(lambda n: ("file_name", f"set\\images\\{n}")),
    "a path of Windows": named(lambda n: ("file_name", f"C:\\Users\\me\\{n}")),
    "a path of another machine": named(lambda n: ("file_name", f"/media/disk/set/images/{n}")),
    "from the folder above": named(lambda n: ("file_name", f"../images/{n}")),
    "with its folder": named(lambda n: ("file_name", f"./{n.split('_')[0]}/{n}")),
    "as an address with a query": named(lambda n: ("file_name", f"/data/local-files/?d=some/{n}")),
    "another extension": named(lambda n: ("file_name", n.replace(".png", ".jpg"))),
    "another case": named(lambda n: ("file_name", n.upper())),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_it_is_read_as_it_is_meant(root, change):
    wanted = opened(root)
    rewrite(root, change)
    found = opened(root)
    assert found.classes == CLASSES and (found.labels == wanted.labels).all()
    assert (found.paths == wanted.paths).all()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(root, encoding):
    wanted = opened(root)
    rewrite(root, lambda c: None, lambda c: json.dumps(c).encode(encoding))
    assert (opened(root).labels == wanted.labels).all()


def test_names_with_blanks_and_letters_may_be_coded(root):
    def change(content):
        for image in content["images"]:
            folder, name = image["file_name"].split("_")[0], image["file_name"].replace("_", " é")
            os.rename(root / folder / image["file_name"], root / folder / name)
            image["file_name"] = quote(name)

    rewrite(root, change)
    assert all(opened(root).path(row).is_file() for row in range(8))


def test_numbers_are_names_too(root):
    rewrite(root, each("categories", name=lambda c: c["id"] // 10))
    assert opened(root).classes == ("1", "2", "3", "4") and all(isinstance(name, str) for name in opened(root).classes)


def test_what_was_guessed_or_repaired_is_said(root):
    rewrite(root, READ["boxes of every kind"])
    assert "have a bbox that cannot be read; their labels count" in opened(root).notes[-1]
    rewrite(root, READ["another case"])
    assert "train2014/train2014_000.png for TRAIN2014_000.PNG" in opened(root).notes[-1]
    rewrite(root, READ["an image under two ids"])
    assert "1 images are listed under several ids" in opened(root).notes[0]


REFUSED = {
    "crowds only": (each("annotations", iscrowd=1), ["iscrowd=1", "brush masks", "or set iscrowd to 0"]),
    "an id of two images": (
        lambda c: c["images"].append({"id": 100, "file_name": "other.png"}),
        ["train2014_000.png and other.png", "id 100", "Number the images anew"],
    ),
    "an id of two categories": (lambda c: c["categories"].append({"id": 10, "name": "eel"}), ["'ant' and 'eel'", "10"]),
    "no name of an image": (each("images", file_name=None), ["image 100 has no file_name"]),
    "no name of a category": (each("categories", name=""), ["category 10 must have a name"]),
    "an odd flag": (each("annotations", iscrowd="perhaps"), ["annotation 1: iscrowd", "'perhaps'"]),
    "an entry that is none": (lambda c: c["annotations"].append(7), ["annotations[", "found 7"]),
    "an id that is none": (each("annotations", image_id=[1]), ["image_id of annotation 1"]),
    "detections": (lambda c: c["annotations"], ["a list, as of detections"]),
    "no labels": (lambda c: {"images": c["images"], "categories": c["categories"]}, ["no annotations"]),
    "folders that were lost": (
        each("images", file_name=lambda i: f"cam{i['id']}/train2014_000.png"),
        ["cam100/train2014_000.png and cam101/train2014_000.png", "would both be read from"],
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(root, change, words):
    rewrite(root, change)
    with pytest.raises(DataError) as caught:
        opened(root)
    for word in ("instances_train2014.json", *words):
        assert word in str(caught.value)


def test_sections_that_stand_there_twice_are_refused(root):
    rewrite(root, lambda c: None, lambda c: json.dumps(c)[:-1] + ', "annotations": []}')
    with pytest.raises(DataError, match="has 'annotations' twice"):
        opened(root)


def test_the_images_of_val_json_are_those_of_val(root):
    (root / "annotations" / FILES["test"]).rename(root / "annotations" / "val.json")
    (root / "annotations" / FILES["train"]).rename(root / "annotations" / "train.json")
    (root / "train2014").rename(root / "train")
    (root / "val2014").rename(root / "val")
    shutil.copytree(root / "val", root / "test")  # the pictures of a challenge, without labels
    assert {os.path.dirname(path) for path in opened(root, "test").paths} == {"val"}
    content = json.loads((root / "annotations" / "val.json").read_text())
    (root / "annotations" / "test.json").write_text(json.dumps({**content, "annotations": []}))
    test = opened(root, "test")
    assert test.notes[0] == "test.json has no annotations" and test.source.endswith("val.json")


def test_a_class_that_one_half_does_not_list_is_named(root):
    path = root / "annotations" / FILES["test"]
    content = json.loads(path.read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] != "bee"]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 20]
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"instances_val2014.json: the test half lacks 'bee'.*data.classes=\[ant, cat, dog"
    ):
        open_both(Data(dataset="coco", root=str(root)))
    assert open_both(Data(dataset="coco", root=str(root), classes=("ant", "cat")))[1].classes == ("ant", "cat")


@pytest.mark.parametrize(
    ("rename", "words"),
    [(str.upper, "Spell them alike in both: 'ANT' and 'ant', 'BEE' and 'bee'"), ("x{}".format, "no class in common"),
     (lambda name: name.replace("ant", "\u00e9l\u00e9phant"), "learn the others: data.classes=[bee, cat, dog]")],
)  # fmt: skip
def test_the_way_out_fits_the_class_lists(root, rename, words):
    path = root / "annotations" / FILES["train"]
    content = json.loads(path.read_text())
    for entry in content["categories"]:
        entry["name"] = rename(entry["name"])
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        open_both(Data(dataset="coco", root=str(root)))
    assert words in str(caught.value) and "data.classes=[]" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer: run git lfs pull"),
     (b"\0" * 300, "is filled with zeros"), (b"\x1f\x8b\x08\0\0", "is compressed by gzip"),
     (b"PK\x03\x04", "is a zip archive"), (b"\n<!DOCTYPE html><html>log in</html>", "is a web page")],
)  # fmt: skip
def test_what_lies_in_the_place_of_a_file_is_named(root, content, words):
    (root / "annotations" / FILES["train"]).write_bytes(content)
    with pytest.raises(DataError, match=rf"instances_train2014.json {words}"):
        opened(root)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("gone.json", path)])
def test_annotations_that_are_no_file_are_named(root, make):
    path = root / "annotations" / FILES["train"]
    path.unlink()
    make(path)
    with pytest.raises(DataError, match=r"instances_train2014.json is (no file|a link to gone.json, which is not)"):
        opened(root)


def test_the_labels_are_those_that_pycocotools_reads(root):
    from pycocotools.coco import COCO

    data, coco = opened(root), COCO(str(root / "annotations" / FILES["train"]))
    for column, name in enumerate(data.classes):
        images = coco.catToImgs[coco.getCatIds(catNms=[name])[0]]
        assert {str(i) for i in images} == set(data.ids[data.labels[:, column]].tolist())


def test_images_of_roboflow_lie_beside_their_annotations(root):
    for split, new in (("train", "train"), ("test", "valid")):
        folder = {"train": "train2014", "test": "val2014"}[split]
        (root / "annotations" / FILES[split]).rename(root / folder / "_annotations.coco.json")
        (root / folder).rename(root / new)
    assert all(opened(root, split).path(0).is_file() for split in ("train", "test"))


def test_what_an_image_was_not_looked_through_for_is_unknown(root, monkeypatch):
    """As in LVIS: a category is there, listed as not there, or nobody knows."""
    path = root / "annotations" / FILES["train"]
    content = json.loads(path.read_text())
    plain = opened(root)
    number = {c["name"]: c["id"] for c in content["categories"]}
    content["images"][0]["neg_category_ids"] = []
    content["images"][1] |= {"neg_category_ids": [number["ant"], str(number["bee"])], "not_exhaustive_category_ids": []}
    content["images"][2]["neg_category_ids"] = list(number.values())
    path.write_text(json.dumps(content))
    found = opened(root)
    assert (found.labels == plain.labels).all() and plain.unknown is None
    wanted = np.zeros_like(plain.labels)
    wanted[0], wanted[1, 2:] = ~plain.labels[0], ~plain.labels[1, 2:]
    assert (found.unknown == wanted).all() and "labels are unknown" in found.notes[-1]
    monkeypatch.setattr("krt_core.data.coco.read", None)  # it is in the cache now
    again = opened(root)
    assert (again.truth == found.truth).all() and again.digest() == found.digest() and again.notes == found.notes


@pytest.mark.parametrize(("listed", "words"), [(7, "must be a list, found 7"), ([99], r"unknown category \(99\)")])
def test_a_list_of_absent_categories_that_is_none_is_named(root, listed, words):
    path = root / "annotations" / FILES["train"]
    content = json.loads(path.read_text())
    content["images"][0]["neg_category_ids"] = listed
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"neg_category_ids of image \d+ .*{words}"):
        opened(root)
