"""Room on the disk, asked for before anything is made."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from krt_core.data.kept import Kept
from krt_core.data.room import Want, check_room, said
from krt_core.errors import DataError
from krt_core.session import train

FROZEN = {"model__freeze": "all", "train__augment": "none"}


def test_images_and_features_need_room_together(tiny, tmp_path, monkeypatch):
    """Before the first image is decoded, and before a first session whose backbone is to make features afterwards."""
    usage, images, own = shutil.disk_usage("/"), 64 * 32 * 32 * 3, tmp_path / "own"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=images + 1000))
    with pytest.raises(
        DataError, match=r"^The decoded images take 0\.2 MB and the features take 0\.\d MB, and .*cache has 0"
    ):
        train(tiny(method="krt", **FROZEN), tmp_path / "all", show="none")
    assert not list((tmp_path / "data" / "cache").glob("*.npy"))
    with pytest.raises(DataError, match=r"images take 0\.2 MB and the features take .*data\.features=false"):
        train(tiny(method="krt", model__freeze="first"), own, show="none")
    assert not list((tmp_path / "data" / "cache").glob("*.npy")) and not (own / "session_01").exists()
    plain = tiny(method="krt", model__freeze="first", data__features=False, train__epochs=1)
    assert train(plain, tmp_path / "plain", show="none").done  # the images alone have room


def test_the_sizes_of_coco_with_tresnet_m():
    train2014, half = 82081, np.dtype(np.float16)
    pooled, maps = (Kept(Path("x.npy"), (train2014, 2048, *grid), half, b"") for grid in ((1, 1), (7, 7)))
    assert said(pooled.size) == "0.3 GB" and said(maps.size) == "16.5 GB"


def test_disks_are_asked_one_by_one(tmp_path, monkeypatch):
    """What lies on two disks needs room on each, not on one of them for all."""
    usage, here, there = shutil.disk_usage("/"), tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.setattr("krt_core.data.room._disk", lambda folder: 1 if folder == here else 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    check_room([Want("the images", here, 90), Want("the features", there, 90)], "or do without")
    wants = [Want("the images", here, 90), *[Want("the features", there / "new", 60)] * 2]
    with pytest.raises(DataError, match=r"^The features take 0\.0 MB, and .*there.new has 0\.0 MB left\. .*do without"):
        check_room(wants, "or do without")
