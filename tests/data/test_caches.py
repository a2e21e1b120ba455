"""Caches see every file they come from, and one that was cut short is made again; what is in both halves is said."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from conftest import write_coco, write_xml
from PIL import Image

from krt_core.config import Data, load_experiment
from krt_core.data import digits, open_both, open_dataset, store
from krt_core.data.dataset import MultiLabelDataset
from krt_core.data.overlap import look_at
from krt_core.data.pipeline import batches, steps
from krt_core.data.published import check_sizes, sizes
from krt_core.data.store import ImageStore
from krt_core.errors import ConfigError, DataError
from krt_core.machine.cluster import cores
from krt_core.machine.device import choose_runtime
from krt_core.session import train


def opened(root, split="train", kind="coco"):
    return open_dataset(Data(dataset=kind, root=str(root)), split)


def test_a_label_that_is_corrected_in_place_is_seen(voc_root):
    assert opened(voc_root, kind="voc").labels.sum(axis=0).tolist() == [3, 3]
    path = voc_root / "Annotations/000000.xml"
    time = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("cat", "dog"))
    os.utime(path, ns=(time, time))  # some tools keep the time
    assert opened(voc_root, kind="voc").labels.sum(axis=0).tolist() == [2, 4]


def test_a_new_class_of_the_other_half_is_seen(voc_root):
    opened(voc_root, kind="voc")
    write_xml(voc_root, "000009", [("emu", 0)])  # a test image
    assert opened(voc_root, kind="voc").classes == opened(voc_root, "test", "voc").classes == ("cat", "dog", "emu")


def test_an_image_that_is_renamed_is_found(coco_root):
    first = opened(coco_root).path(3)
    first.rename(first.with_suffix(".PNG"))
    assert opened(coco_root).path(3).is_file()


def test_labels_of_another_version_are_read_again(coco_root, monkeypatch):
    opened(coco_root)
    monkeypatch.setattr("krt_core.data.cache._readers", lambda: b"another")
    monkeypatch.setattr("krt_core.data.coco.read", lambda *a: pytest.fail("read again"))
    with pytest.raises(pytest.fail.Exception):
        opened(coco_root)


@pytest.mark.parametrize("size", [0, 50, 400])
def test_labels_that_were_cut_short_are_read_again(coco_root, home, size):
    wanted = opened(coco_root)
    (path,) = (home / "data/cache").glob("labels-*")
    os.truncate(path, size)
    assert (opened(coco_root).labels == wanted.labels).all() and path.stat().st_size > 400


@pytest.mark.parametrize("size", [0, 60, 5000])
def test_images_that_were_cut_short_are_decoded_again(coco_root, home, size):
    data = opened(coco_root)
    wanted = ImageStore(data, 32).rows(np.arange(40))
    (path,) = (home / "data/cache").glob("images-*.npy")
    os.truncate(path, size)
    assert (ImageStore(data, 32).rows(np.arange(40)) == wanted).all()


@pytest.mark.parametrize("cache", ["npy", "done"])
def test_a_decoded_image_that_the_disk_has_damaged_is_decoded_again(coco_root, home, cache):
    data = opened(coco_root)
    wanted = ImageStore(data, 32).rows(np.arange(40))
    (path,) = (home / "data/cache").glob(f"images-*.{cache}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 16  # of the last image, or of its checksum
    path.write_bytes(content)
    store = ImageStore(data, 32)
    assert (store.rows(np.arange(40)) == wanted).all() and (store.rows(np.array([39, 39])) == wanted[[39, 39]]).all()
    assert store.sure[:39].all() and not store.sure[39]


@pytest.mark.parametrize("harm", [b"", b"something else"])
def test_checksums_that_are_none_vouch_for_nothing(coco_root, home, harm):
    data = opened(coco_root)
    wanted = ImageStore(data, 32).rows(np.arange(40))
    for kind, content in (("npy", None), ("done", harm)):
        (path,) = (home / "data/cache").glob(f"images-*.{kind}")
        content = path.read_bytes()[:-9] + b"otherwise" if content is None else content
        path.write_bytes(content)
    assert (ImageStore(data, 32).rows(np.arange(40)) == wanted).all()


def test_a_cache_of_an_older_version_has_no_checksums_and_is_taken(coco_root, home, monkeypatch):
    data = opened(coco_root)
    wanted = ImageStore(data, 32).rows(np.arange(40))
    (path,) = (home / "data/cache").glob("images-*.done")
    path.unlink()
    monkeypatch.setattr("krt_core.data.store.load_image", lambda *a: pytest.fail("decoded again"))
    assert (ImageStore(data, 32).rows(np.arange(40)) == wanted).all()


def test_an_image_that_memory_is_too_small_for_is_no_broken_image(coco_root, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda path: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(DataError, match=r"train2014_003\.png takes more memory than there is\. .*data\.workers=1"):
        ImageStore(opened(coco_root), 32, cache=False).rows(np.array([3]))


@pytest.mark.parametrize("cut", [".part", ".done"])
def test_a_half_made_cache_that_was_cut_short_vouches_for_nothing(coco_root, home, cut, monkeypatch):
    data = opened(coco_root)
    with monkeypatch.context() as m:
        m.setattr("krt_core.data.store.os.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ImageStore(data, 32)
    (path,) = (home / "data/cache").glob(f"images-*{cut}")
    os.truncate(path, path.stat().st_size // 2)
    assert (ImageStore(data, 32).rows(np.arange(40)) == ImageStore(data, 32, cache=False).rows(np.arange(40))).all()


@pytest.mark.parametrize(
    "name", ["annotations/info.json", "annotations/instances_val2014.json", "val2014/test_0007.png"]
)
def test_digits_that_were_cut_short_are_made_again(home, monkeypatch, name):
    monkeypatch.setattr(digits, "SCENES", {"train": 12, "test": 8})
    path = digits.make(home / "data/digits") / name
    wanted = path.read_bytes()
    os.truncate(path, 5)
    digits.make(home / "data/digits")
    assert path.read_bytes() == wanted


def test_images_in_both_halves_are_said(tiny, coco_root):
    shutil.copy(coco_root / "train2014/train2014_003.png", coco_root / "val2014/val2014_001.png")
    os.link(coco_root / "train2014/train2014_004.png", coco_root / "x.png")
    os.replace(coco_root / "x.png", coco_root / "val2014/val2014_002.png")
    both = open_both(Data(dataset="coco", root=str(coco_root)))
    (note,) = look_at(*both)[1]
    assert note.startswith("2 of 24 test images are training images too (the first is") and "val2014_001.png" in note
    assert look_at(*both)[1] == [note]  # as it was kept
    run = train(tiny(train__epochs=1), show="none")
    assert f"data: {note}" in (run.folder / "log.txt").read_text()


def test_that_all_test_images_are_training_images_is_said(coco_root):
    whole = opened(coco_root)
    assert look_at(whole, whole)[1][0].startswith("all 40 test images are training images too")


def test_images_that_are_not_there_are_counted(coco_root):
    both = open_both(Data(dataset="coco", root=str(coco_root)))
    for number in (5, 9):
        (coco_root / f"train2014/train2014_{number:03d}.png").unlink()
    with pytest.raises(DataError, match=r"train2014_005.png is missing.*1 more of 40.*Get the train images"):
        look_at(*both)
    assert "2 of 40 images are not there" in opened(coco_root).notes[-1]


def official(name, classes, counts):
    """A data set whose sessions in the published cuts have so many images: one label each."""
    labels = np.zeros((sum(counts), classes), bool)
    labels[np.arange(len(labels)), np.repeat(np.arange(classes), counts)] = True
    ids = np.arange(len(labels)).astype(str)
    return MultiLabelDataset(
        name, "train", "/nowhere", ids, ids, labels, tuple(map(str, range(classes))), source="x.json"
    )


def test_published_sets_have_their_published_sizes():
    data = official("voc2007", 20, [50] * 20)
    assert sizes(data.labels, 4, 4) == [200] * 5 and sizes(data.labels, 10, 2, seen=True) == list(range(500, 1001, 100))
    with pytest.raises(
        DataError, match=r"x.json is not that of voc2007.*200 200.*985 1409.*krt data voc2007.*dataset=voc "
    ):
        check_sizes(data, data)
    check_sizes(official("voc", 20, [50] * 20), official("voc", 20, [50] * 20))  # a folder of one's own


def test_a_small_voc2007_is_not_trained_on(home, voc_root):
    (home / "data/voc2007").parent.mkdir(exist_ok=True)
    voc_root.rename(home / "data/voc2007")
    with pytest.raises(DataError, match="is not that of voc2007"):
        train(load_experiment("voc_b0c4", {"model.weights": ""}), show="none")


def test_one_image_left_over_joins_the_batch_before(coco_root):
    data, runtime = opened(coco_root), choose_runtime("float32", "cpu")
    plain = ImageStore(data, 16, workers=1)

    def lengths(images, size, **more):
        rows = np.arange(images)
        return [len(b.rows) for b in batches(plain, rows, data.labels[rows], size, runtime, seed=(0,), **more)]

    assert lengths(33, 8, shuffle=True) == [8, 8, 8, 9] and lengths(34, 8, shuffle=True) == [8, 8, 8, 8, 2]
    assert lengths(33, 8) == [8, 8, 8, 8, 1]  # tests need no statistics
    assert lengths(1, 8, shuffle=True) == [1] and lengths(3, 1, shuffle=True) == [1, 1, 1]
    for images, size in ((33, 8), (34, 8), (1, 8), (3, 1), (0, 8), (16, 8)):
        assert steps(images, size) == len(lengths(images, size, shuffle=True))


def test_a_session_trains_where_one_image_is_left_over(tiny, coco_root):
    """The map of the last layer is one pixel, so a batch of one image would leave one value per channel."""
    data = open_dataset(tiny().data, "train")
    first = int(data.labels[:, :2].any(axis=1).sum())
    run = train(tiny(model__stride=0, train__batch_size=first - 1, train__epochs=1), show="none")
    assert run.done
    with pytest.raises(ConfigError, match=r"train.batch_size.*two images or more"):
        train(tiny(model__stride=0, train__batch_size=1, train__epochs=1, train__group=1), show="none")


def test_the_cores_are_those_of_the_job(monkeypatch, coco_root):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert cores() == [3, 5, 7] and ImageStore(opened(coco_root), 16, cache=False).workers == 3


def test_a_file_system_that_cannot_set_blocks_aside_is_left_alone(tmp_path, monkeypatch):
    """The C library would write into each of millions of blocks instead."""
    (tmp_path / "a").write_bytes(bytes(100))
    monkeypatch.setattr(store.os, "posix_fallocate", lambda *a: pytest.fail("emulated"))
    monkeypatch.setattr(store, "_sets_aside", lambda handle: False)
    store.allocate(tmp_path / "a")


def test_every_process_but_the_first_leaves_the_disk_alone(coco_root, monkeypatch):
    data = opened(coco_root)
    key = ImageStore(data, 16).key
    monkeypatch.setattr("krt_core.data.overlap._stat", lambda path: pytest.fail("asked again"))
    assert ImageStore(data, 16, key=key).rows(np.arange(2)).shape == (2, 16, 16, 3)


def test_another_image_has_another_key(coco_root):
    data = opened(coco_root)
    before = ImageStore(data, 16).key
    Image.new("RGB", (32, 32)).save(data.path(0))
    assert ImageStore(data, 16).key != before


def test_a_folder_can_be_moved_with_its_cache_key(coco_root, home):
    key = ImageStore(opened(coco_root), 16).key
    coco_root.rename(home / "data/moved")
    assert ImageStore(opened(home / "data/moved"), 16).key == key


@pytest.mark.parametrize(
    ("change", "words"),
    [({"classes": (0, 1)}, r"classes must be texts, found \[0\]"), ({"classes": ("a", "a")}, "a class stands there"),
     ({"boxes": np.zeros((2, 5))}, r"\(m, 6\)"), ({"boxes": np.full((1, 6), 9.0)}, "not there"),
     ({"ids": ["a", "b"]}, "ids must be an array, found a list"),
     ({"labels": np.array([[1, 2], [0, 1]])}, r"\(2, 2\) matrix, or one of 1, 0 and -1 .* found 2 for class b of a"),
     ({"labels": np.array([[1, -1], [-1, 1]])}, "1 and -1 alone, and -1 means unknown: write 0"),
     ({"labels": np.array([[1, -2], [0, 1]])}, "found -2 for class b of a"),
     ({"labels": np.array([[1, 0], [0.5, 1]])}, r"found 0\.5 for class a of b \(row 1\)"),
     ({"labels": np.array([["a", "b"]] * 2)}, "found <U1"), ({"labels": np.ones((2, 3))}, r"found float64 \(2, 3\)"),
     ({"unknown": np.zeros((2, 2))}, r"unknown must be a boolean \(2, 2\) matrix"),
     ({"unknown": [[True, False]] * 2}, r"unknown must be a boolean")],
)  # fmt: skip
def test_what_a_reader_of_ones_own_gives_is_checked(tmp_path, monkeypatch, change, words):
    made = {
        "ids": np.array(["a", "b"]),
        "paths": np.array(["a", "b"]),
        "labels": np.eye(2, dtype=bool),
        "classes": ("a", "b"),
    }
    whole = MultiLabelDataset("x", "train", tmp_path, **{**made, **change})
    monkeypatch.setattr("krt_core.data.custom.find", lambda *a: lambda root, split: whole)
    with pytest.raises(DataError, match=words):
        open_dataset(Data(dataset="mylab.tags:read", root=str(tmp_path)), "train")


def test_two_runs_may_look_at_two_sizes(tmp_path):
    one, two = (opened(write_coco(tmp_path / name, 6, 4, seed)) for seed, name in enumerate("ab"))
    assert ImageStore(one, 16).key != ImageStore(two, 16).key


def test_unknown_labels_go_with_their_images_and_classes(tmp_path):
    ids = np.array(list("abc"))
    labels = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], bool)
    whole = MultiLabelDataset("x", "train", tmp_path, ids, ids, labels, ("one", "two", "three"))
    some = whole.with_unknown(np.array([[0, 0, 1], [0, 0, 0], [0, 0, 1]], bool))
    assert some.truth.tolist() == [[1, 0, -1], [1, 1, 0], [0, 1, -1]] and some.truth.dtype == np.int8
    assert not some.labels[some.unknown].any() and whole.truth is whole.labels
    assert some.notes == ("2 of 9 labels are unknown: they count in no loss and no metric",)
    assert whole.with_unknown(np.zeros((3, 3), bool)) is whole
    absent = dataclasses.replace(whole, labels=some.labels)
    assert len({whole.digest(), some.digest(), absent.digest()}) == 3
    assert dataclasses.replace(some, unknown=None).digest() == absent.digest()
    chosen = some.select_images(np.array([True, False, True]), "test")
    assert chosen.truth.tolist() == [[1, 0, -1], [0, 1, -1]]
    assert chosen.select_classes(("three", "one")).truth.tolist() == [[-1, 1], [-1, 0]]
    for known in (some.select_images(np.array([False, True, False]), "test"), some.select_classes(("two", "one"))):
        assert known.unknown is None and known.truth.dtype == bool
