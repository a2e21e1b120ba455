import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_coco, write_voc, write_xml
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from krt_core.config import Data
from krt_core.data import digits, open_both, open_dataset
from krt_core.data.pipeline import batches, to_device
from krt_core.data.store import ImageStore, load_image
from krt_core.errors import DataError
from krt_core.machine.device import Runtime, choose_runtime


def test_coco_folder(coco_root):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    assert len(data) == 40 and data.classes == CLASSES and data.labels.any(axis=1).all()
    assert data.path(0).is_file() and data.ids[0] == "100"
    image = load_image(data.path(0), 32)
    box = data.boxes[0]
    centre = image[int((box[3] + box[5] / 2) * 32), int((box[2] + box[4] / 2) * 32)]
    assert centre.max() >= 200  # the box covers its coloured cell
    assert data.labels[int(box[0]), int(box[1])]


def test_crowds_are_no_label_and_unlabelled_images_are_left_out_and_counted(coco_root):
    path = coco_root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    mine = [a for a in content["annotations"] if a["image_id"] == 100]
    for annotation in mine:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    assert len(data) == 39 and "100" not in data.ids.tolist()
    assert f"{len(mine)} image-class pairs" in data.notes[0] and "1 of 40" in data.notes[1]
    assert data.boxes[:, 0].max() == 38


def test_labels_are_cached_until_the_source_changes(coco_root, home, monkeypatch):
    config = Data(dataset="coco", root=str(coco_root))
    first = open_dataset(config, "train")
    monkeypatch.setattr("krt_core.data.coco.read", lambda *a: pytest.fail("read again"))
    again = open_dataset(config, "train")
    assert (again.labels == first.labels).all() and again.classes == first.classes
    assert (again.boxes == first.boxes).all() and (again.paths == first.paths).all()
    monkeypatch.undo()
    monkeypatch.setenv("KRT_HOME", str(home))
    path = coco_root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "aardvark"
    path.write_text(json.dumps(content))
    assert open_dataset(config, "train").classes[0] == "aardvark"


def test_choosing_classes(coco_root):
    whole = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    some = open_dataset(Data(dataset="coco", root=str(coco_root), classes=("dog", "ant")), "train")
    assert some.classes == ("dog", "ant") and (some.labels == whole.labels[:, [3, 0]]).all()
    assert set(some.boxes[:, 1]) == {0.0, 1.0} and (some.boxes[:, 1] == 0).sum() == (whole.boxes[:, 1] == 3).sum()
    with pytest.raises(DataError, match=r"'dgo'.*Did you mean 'dog'"):
        open_dataset(Data(dataset="coco", root=str(coco_root), classes=("dgo",)), "train")


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_a_part_of_the_training_images_can_be_the_test_set(coco_root, voc_root, layout):
    root = coco_root if layout == "coco" else voc_root
    whole = open_dataset(Data(dataset=layout, root=str(root)), "train")
    shutil.rmtree(root / "val2014") if layout == "coco" else None
    for path in root.rglob("*val2014.json" if layout == "coco" else "test.txt"):
        path.unlink()  # nothing of the test half is looked at
    train, test = open_both(Data(dataset=layout, root=str(root), validation=0.6, test="validation"))
    assert {*train.ids, *test.ids} == {*whole.ids} and len(train) + len(test) == len(whole) and len(train) and len(test)
    assert (train.split, test.split) == ("train", "test") and "held out for validation and tested on" in train.notes[0]
    for half in (train, test):
        rows = [list(whole.ids).index(one) for one in half.ids]
        assert (half.labels == whole.labels[rows]).all() and (half.paths == whole.paths[rows]).all()
        boxes = [(whole.ids[int(box[0])], *box[1:]) for box in whole.boxes if whole.ids[int(box[0])] in half.ids]
        assert [(half.ids[int(box[0])], *box[1:]) for box in half.boxes] == boxes
    assert (open_dataset(Data(dataset=layout, root=str(root), validation=0.6), "validation").ids == test.ids).all()
    only = Data(dataset=layout, root=str(root), validation=0.6, test="validation", classes=whole.classes[:1])
    chosen = open_both(only)[1]
    assert chosen.classes == whole.classes[:1] and (chosen.ids == test.ids).all()


def test_voc_folder(voc_root):
    write_xml(voc_root, "000000", [("cat", 0), ("dog", 1)])
    write_xml(voc_root, "000001", [("dog", 1)])
    data = open_dataset(Data(dataset="voc", root=str(voc_root)), "train")
    assert data.classes == ("cat", "dog") and len(data) == 6
    assert data.labels[0].tolist() == [True, False] and not data.labels[1].any()  # difficult objects are no label
    assert "1 images hold difficult objects only" in data.notes[0]
    np.testing.assert_allclose(data.boxes[0], [0, 0, 0.1, 0.1, 0.5, 0.5], atol=1e-6)
    assert len(open_dataset(Data(dataset="voc", root=str(voc_root)), "test")) == 4


def test_voc2007_is_found_below_vocdevkit_and_has_its_twenty_classes(home):
    write_voc(home / "data/voc2007/VOCdevkit/VOC2007")
    data = open_dataset(Data(dataset="voc2007"), "train")
    assert len(data.classes) == 20 and data.labels.sum() == 6


def _no_labels(root):
    path = root / "annotations" / "instances_train2014.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))


def _unknown_category(root):
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["category_id"] = 77
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda r: (r / "annotations/instances_train2014.json").unlink(),
            ["train annotations", "instances_train2014.json"],
        ),
        (lambda r: (r / "train2014").rename(r / "elsewhere"), ["folder of train images", "train2014"]),
        (
            lambda r: (r / "annotations/instances_train2014.json").write_text("{oops"),
            ["instances_train2014.json", "not a COCO"],
        ),
        (_no_labels, ["instances_train2014.json", "no image has a label"]),
        (_unknown_category, ["instances_train2014.json", "annotation 4", "77"]),
    ],
)
def test_damaged_coco_folders_are_named(coco_root, damage, words):
    damage(coco_root)
    with pytest.raises(DataError) as caught:
        open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    for word in words:
        assert word in str(caught.value)


def _unknown_class(root):
    write_xml(root, "000002", [("unicorn", 0)])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: (r / "Annotations/000001.xml").unlink(), ["000001.xml", "missing"]),
        (lambda r: (r / "Annotations/000001.xml").write_text("<a>"), ["000001.xml", "not readable XML"]),
        (_unknown_class, ["000002.xml", "unicorn"]),
        (lambda r: (r / "ImageSets/Main/trainval.txt").write_text(""), ["trainval.txt", "empty"]),
        (lambda r: (r / "ImageSets/Main/trainval.txt").write_text("000001\n000001\n"), ["trainval.txt", "twice"]),
        (lambda r: (r / "ImageSets/Main/trainval.txt").unlink(), ["trainval.txt"]),
    ],
)
def test_damaged_voc_folders_are_named(home, damage, words):
    root = write_voc(home / "data" / "voc2007")
    damage(root)
    with pytest.raises(DataError) as caught:
        open_dataset(Data(dataset="voc2007"), "train")
    for word in words:
        assert word in str(caught.value)


def test_a_missing_data_set_names_the_command_that_gets_it():
    with pytest.raises(DataError, match="krt data coco2014"):
        open_dataset(Data(dataset="coco2014"), "train")
    with pytest.raises(DataError, match=r"data\.root"):
        open_dataset(Data(dataset="voc"), "train")


def test_an_empty_folder_is_no_data_set(home):
    (home / "data" / "coco2014").mkdir(parents=True)
    with pytest.raises(DataError, match="has no train annotations"):
        open_dataset(Data(dataset="coco2014"), "train")


@pytest.mark.parametrize("cache", [True, False])
def test_a_broken_or_missing_image_is_named(coco_root, cache):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    whole = data.path(5).read_bytes()
    data.path(5).write_bytes(whole[:40])
    with pytest.raises(DataError, match="train2014_005.png cannot be read"):
        ImageStore(data, 32, cache).rows(np.arange(len(data)))
    data.path(5).unlink()
    with pytest.raises(DataError, match="train2014_005.png is missing"):
        ImageStore(data, 32, cache).rows(np.arange(len(data)))
    data.path(5).write_bytes(whole)
    assert ImageStore(data, 32, cache).rows(np.array([5, 1])).shape == (2, 32, 32, 3)  # and what was decoded is kept


def test_the_cache_goes_on_where_it_was_and_holds_what_decoding_gives(coco_root, monkeypatch):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    calls = []

    def stop_halfway(path, size):
        calls.append(path)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return load_image(path, size)

    monkeypatch.setattr("krt_core.data.store.load_image", stop_halfway)
    monkeypatch.setattr("krt_core.data.store.np.array_split", lambda rows, n: [rows[:10], rows[10:]])
    with pytest.raises(KeyboardInterrupt):
        ImageStore(data, 24, True, workers=1)
    monkeypatch.setattr("krt_core.data.store.load_image", lambda p, s: (calls.append(p), load_image(p, s))[1])
    before = len(calls)
    store = ImageStore(data, 24, True, workers=1)
    assert len(calls) - before == 30  # the first ten were on disk
    plain = np.stack([load_image(data.path(i), 24) for i in range(len(data))])
    assert (store.rows(np.arange(len(data))) == plain).all()
    ImageStore(data, 24, True)
    assert len(calls) - before == 30  # opened, not built


def test_batches_cover_everything_once_and_follow_their_seed(coco_root):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    rows, labels = np.arange(5, 38), data.labels[5:38]

    def run(workers, seed, cache=True):
        store = ImageStore(data, 32, cache, workers)
        runtime = choose_runtime("float32", "cpu")
        return list(batches(store, rows, labels, 8, runtime, "published", seed, shuffle=True))

    one, two, other = run(1, (0, 1)), run(4, (0, 1), cache=False), run(2, (0, 2))
    assert [len(b.rows) for b in one] == [8, 8, 8, 9]  # batch norm cannot learn from one image alone
    assert sorted(np.concatenate([b.rows for b in one]).tolist()) == rows.tolist()
    for a, b in zip(one, two, strict=True):
        assert (a.rows == b.rows).all() and torch.equal(a.images, b.images)
        assert (a.labels.numpy() == data.labels[a.rows]).all()
    assert (one[0].rows != other[0].rows).any()
    assert one[0].images.shape == (8, 3, 32, 32) and one[0].images.min() >= 0 and one[0].images.max() <= 1


def test_a_batch_goes_to_a_gpu_without_waiting(monkeypatch):
    """A blocking copy would wait for the whole training step that was queued before it. Counted on fake tensors."""
    copies = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type == "cuda" and args[0].device.type == "cpu":
                copies.append((kwargs or {}).get("non_blocking", False))
            return out

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    gpu = Runtime(torch.device("cuda"), torch.bfloat16, {})
    with FakeTensorMode(), Watch():
        images = to_device(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), gpu)
    assert copies == [True]
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_digits_are_the_same_everywhere_and_never_shared_between_splits(home):
    data = open_dataset(Data(dataset="digits"), "train")
    test = open_dataset(Data(dataset="digits"), "test")
    assert len(data) + len(data.notes) * 0 >= 1490 and len(test) >= 595 and len(data.classes) == 10
    assert 2.3 < data.labels.sum(axis=1).mean() < 2.7 and data.labels.sum(axis=1).max() <= 4
    assert np.asarray(Image.open(data.path(0))).shape == (64, 64, 3)
    halves = [digits.handwritten(split).values() for split in ("train", "test")]
    pools = [{d.tobytes() for group in groups for d in group} for groups in halves]
    assert not pools[0] & pools[1] and sum(map(len, pools)) > 1700
    first = data.path(7).read_bytes()
    digits.make(home / "again")
    assert (home / "again" / str(data.paths[7])).read_bytes() == first


def test_two_folders_do_not_share_a_cache(home):
    a, b = write_coco(home / "data/a", seed=1), write_coco(home / "data/b", seed=2)
    one, two = (open_dataset(Data(dataset="coco", root=str(r)), "train") for r in (a, b))
    rows = np.arange(3)
    assert (ImageStore(one, 32).rows(rows) != ImageStore(two, 32).rows(rows)).any()


def test_the_order_of_images_is_the_same_in_every_process(voc_root, home):
    """The published VOC lists come from a Python set, whose order changes from run to run."""
    ask = (
        "from krt_core.config import Data; from krt_core.data import open_dataset;"
        f"print(*open_dataset(Data(dataset='voc', root={str(voc_root)!r}), 'train').ids)"
    )
    seen = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "KRT_HOME": str(home / seed)}  # a label cache each
        seen.add(subprocess.check_output([sys.executable, "-c", ask], env=environment, text=True))
    assert len(seen) == 1 and next(iter(seen)).split() == sorted(next(iter(seen)).split())


def test_the_digits_are_made_once_however_many_ask(home, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    made, original = [], digits._write_split
    monkeypatch.setattr(digits, "_write_split", lambda *given: (made.append(given[1]), original(*given)))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(digits.make, [home / "data/digits"] * 3))
    assert sorted(made) == ["test", "train"] and len(list((home / "data/digits/train2014").iterdir())) >= 1490
    assert [path.name for path in (home / "data").glob(".digits*")] == [".digits.lock"]  # nothing half made


def test_a_cache_of_another_size_is_resized_on_the_way(coco_root):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    store = ImageStore(data, 24, cache_size=48)
    assert store.array.shape == (len(data), 48, 48, 3)
    runtime, rows = choose_runtime("float32", "cpu"), np.arange(6)
    (batch,) = batches(store, rows, data.labels[:6], 8, runtime)
    large = [Image.fromarray(image) for image in store.array[rows]]
    small = np.stack([np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR)) for image in large])
    assert (store.rows(rows) == small).all()
    assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() * 255 - small).max() < 1e-4
    (batch,) = batches(store, rows, data.labels[:6], 8, runtime, "light", (0,))
    assert batch.images.shape == (6, 3, 24, 24)


def test_a_cache_without_room_is_refused_before_it_is_begun(coco_root, monkeypatch):
    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("krt_core.data.store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"coco train at 32 px take .* GB.*cache_size.*cache=false"):
        ImageStore(data, 32)
