"""Features of a backbone that stands still: computed once, read by every run after it, never those of others."""

import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from krt_core.data import features as module
from krt_core.data import kept as kept_module
from krt_core.data.store import ImageStore
from krt_core.errors import ConfigError, DataError
from krt_core.machine.device import Runtime
from krt_core.methods import METHODS
from krt_core.model import still
from krt_core.runs.files import read_tensors
from krt_core.runs.folder import Run
from krt_core.session import train
from krt_core.weights.convert import load_model, network_of

FROZEN = {"model__freeze": "all", "train__augment": "none"}


@pytest.fixture
def made(monkeypatch):
    """How many images a backbone was asked for, call by call, to fill the cache."""
    asked = []
    original = still.Features.__call__
    monkeypatch.setattr(still.Features, "__call__", lambda self, x: asked.append(len(x)) or original(self, x))
    return asked


def losses(run):
    return [line["loss"] for line in run.epochs]


@pytest.mark.parametrize("method", ["krt", "finetune", "joint", "pod"])
def test_kept_features_change_no_number(tiny, tmp_path, method):
    kept = train(tiny(method=method, **FROZEN), tmp_path / "kept", show="none")
    plain = train(tiny(method=method, **FROZEN, data__features=False), tmp_path / "plain", show="none")
    assert losses(kept) == pytest.approx(losses(plain), rel=1e-5)
    assert np.allclose(kept.scores(1).scores, plain.scores(1).scores, atol=1e-5)


def test_the_backbone_and_its_statistics_stand_still(tiny, tmp_path):
    run = train(tiny(method="krt", model__freeze="all", train__augment="light"), tmp_path / "run", show="none")
    first, last = load_model(run, 0).backbone.state_dict(), load_model(run, 1).backbone.state_dict()
    fresh = train(tiny(method="krt", **FROZEN, train__epochs=1), tmp_path / "other", show="none")
    begun = load_model(fresh, 0).backbone.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, last[name]) and torch.equal(tensor, begun[name]), name


def test_they_are_computed_once(tiny, tmp_path, made):
    train(tiny(method="krt", **FROZEN), tmp_path / "one", show="none")
    assert sum(made) == 64  # forty training and 24 test images: herding, pseudo labels and tests read the same
    train(tiny(method="finetune", **FROZEN, finetune__head="ica"), tmp_path / "two", show="none")
    assert sum(made) == 64
    train(tiny(method="krt", **FROZEN, seed=1), tmp_path / "three", show="none")  # other weights
    assert sum(made) == 128


def test_the_backbone_learns_in_the_first_session_only(tiny, tmp_path):
    run = train(tiny(method="krt", model__freeze="first"), tmp_path / "run", show="none")
    first, last = load_model(run, 0).backbone.state_dict(), load_model(run, 1).backbone.state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())
    names = read_tensors(run.session_folder(1) / "model.safetensors", "").keys()
    assert not any(name.startswith("backbone.") for name in names)
    still_one = train(tiny(method="krt", model__freeze="all"), tmp_path / "still", show="none")
    assert any(
        not torch.equal(tensor, load_model(still_one, 0).backbone.state_dict()[n]) for n, tensor in first.items()
    )


def test_what_serves_one_run_alone_goes_with_it(tiny, tmp_path, monkeypatch):
    """A backbone that a run has learned makes features that no other run can use: they fill no disk after its end."""
    e, folder, cache = tiny(method="krt", model__freeze="first"), tmp_path / "run", tmp_path / "data" / "cache"
    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(Run, "final_summary", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        train(e, folder, show="none")
    assert list((folder / "features").glob("features-*-test-*.npy")) and not list(cache.glob("features-*"))
    run = train(e, folder, show="none")
    assert run.done and not (folder / "features").exists() and not list(cache.glob("features-*"))


def test_views_are_drawn_from_a_fixed_number(tiny, tmp_path, made):
    how = {"model__freeze": "all", "train__augment": "light", "data__views": 3, "train__epochs": 6}
    one = train(tiny(method="krt", **how), tmp_path / "one", show="none")
    assert 3 * 40 + 24 < (count := sum(made)) <= 3 * 40 + 40 + 24  # some as they are too, for pseudo labels
    two = train(tiny(method="krt", **how), tmp_path / "two", show="none")
    assert sum(made) == count and losses(one) == losses(two)


class Maker:
    shape, dtype, digest = (3, 2, 2), torch.float32, "x"

    def __init__(self, runtime):
        self.runtime, self.asked = runtime, []

    def __call__(self, images):
        self.asked.append(len(images))
        return images[:, :, :2, :2].cpu()


@pytest.fixture
def store(tiny):
    from krt_core.data import open_dataset
    from krt_core.machine.device import choose_runtime

    images = ImageStore(open_dataset(tiny().data, "train"), 32)
    return lambda: module.FeatureStore(images, Maker(choose_runtime("float32", "cpu")))


def test_a_start_that_was_cut_short_loses_a_block(store, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    first, calls = store(), []

    def fails(images):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return images[:, :, :2, :2]

    monkeypatch.setattr(
        first,
        "maker",
        namedtuple("M", "shape dtype digest runtime")((3, 2, 2), torch.float32, "x", first.maker.runtime),
    )
    monkeypatch.setattr(first.maker.__class__, "__call__", lambda self, images: fails(images), raising=False)
    with pytest.raises(KeyboardInterrupt):
        first.ensure(np.arange(40))
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 24
    assert torch.equal(again.rows(np.array([5])), store().rows(np.array([5])))


def test_files_that_were_cut_short_are_made_again(store):
    store().ensure(np.arange(40))
    path = store().files[0].path
    wanted = store().rows(np.arange(40))
    with path.open("r+b") as file:
        file.truncate(300)
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 40 and torch.equal(again.rows(np.arange(40)), wanted)
    path.with_suffix(".done").write_bytes(b"")
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 40


def test_a_disk_without_room_is_named_before_anything_is_computed(store, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    full = store()
    with pytest.raises(DataError, match=r"take 0\.0 MB, and .* 0\.0 MB left\. Make room .*deleted.*features=false"):
        full.ensure(np.arange(40))
    assert not full.maker.asked


def test_what_is_no_longer_whole_is_named(tiny, tmp_path):
    train(tiny(method="krt", **FROZEN, train__epochs=1), tmp_path / "one", show="none")
    (file,) = (tmp_path / "data" / "cache").glob("features-*-train-*.npy")
    file.write_bytes(file.read_bytes()[:1000])
    train(tiny(method="krt", **FROZEN, train__epochs=1), tmp_path / "two", show="none")
    assert (
        f"{file} is not what was written there, or not all of it: made again" in (tmp_path / "two/log.txt").read_text()
    )


def test_numbers_that_are_none_name_their_image(store, monkeypatch):
    broken = store()
    monkeypatch.setattr(Maker, "__call__", lambda self, images: images[:, :, :2, :2] * float("inf"))
    with pytest.raises(DataError, match=r"train2014_000\.png: the backbone makes numbers"):
        broken.ensure(np.arange(40))


def test_pod_says_that_it_has_nothing_to_distil(tiny, tmp_path):
    run = train(tiny(method="pod", **FROZEN), tmp_path / "run", show="none")
    assert "POD has nothing to distil" in (run.folder / "log.txt").read_text()


def test_views_need_a_backbone_that_stands_still(tiny):
    with pytest.raises(ConfigError, match=r"data\.views needs model\.freeze"):
        tiny(data__views=2)


def test_sizes_are_said_before_anything_is_computed(tiny, tmp_path, made, monkeypatch):
    train(tiny(method="krt", model__freeze="all", train__augment="light"), tmp_path / "one", show="none")
    log = (tmp_path / "one" / "log.txt").read_text()
    assert re.search(r"features: maps of \d x \d of 40 train images, \d+ bytes each, 0\.\d MB in .*; 0 are there", log)
    assert "training augments anew at every use (train.augment=light)" in log
    made.clear()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(DataError, match=r"The features take 0\.\d MB, and .* has 0\.0 MB left.*KRT_HOME"):
        train(tiny(method="krt", **FROZEN, seed=1), tmp_path / "two", show="none")
    assert not made
    train(tiny(method="krt", **FROZEN), tmp_path / "three", show="none")  # its features are there
    assert sum(made) <= 8 and "; 24 are there" in (tmp_path / "three" / "log.txt").read_text()


def test_maps_and_means_do_not_mix(tiny, tmp_path, made):
    train(tiny(method="krt", **FROZEN), tmp_path / "maps", show="none")
    train(tiny(method="finetune", **FROZEN), tmp_path / "means", show="none")
    train(tiny(method="krt", **FROZEN), tmp_path / "again", show="none")
    assert sum(made) == 128
    assert losses(Run(tmp_path / "maps")) == losses(Run(tmp_path / "again"))


def test_stages_of_a_backbone_that_stands_still_are_not_to_be_had(tiny, tmp_path):
    run = train(tiny(method="krt", **FROZEN), tmp_path / "run", show="none")
    model = load_model(run, 0)
    with pytest.raises(ConfigError, match="stages are asked for"):
        model(torch.zeros(1, model.backbone.channels, *model.backbone.grid), with_stages=True)


def test_an_image_that_changes_is_made_again(tiny, tmp_path, made):
    one = tiny(method="finetune", **FROZEN)
    train(one, tmp_path / "one", show="none")
    path = next((Path(one.data.root) / "train2014").glob("*.png"))
    made.clear()
    path.touch()
    train(one, tmp_path / "two", show="none")
    assert sum(made) == 40  # an image set is known as a whole; the test images are as they were


def test_features_of_other_weights_under_this_name_are_not_believed(store):
    store().ensure(np.arange(40))
    wanted, other = store().rows(np.arange(40)), store()
    other.maker.digest = "y"
    theirs = other._file(0)
    theirs.begin()
    theirs.write(np.arange(40), np.zeros((40, 3, 2, 2), np.float32))
    theirs.vouch(np.arange(40))
    mine = store().files[0]
    for file in ("path", "sums_path"):
        getattr(theirs, file).replace(getattr(mine, file))
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 40 and torch.equal(again.rows(np.arange(40)), wanted)


def test_a_row_that_the_disk_has_damaged_is_named_and_made_again(store):
    store().ensure(np.arange(40))
    again, lines = store(), []
    again.tell = SimpleNamespace(log=lines.append, decoding=lambda *a: None)
    wanted = store().rows(np.arange(40))
    data = bytearray(again.files[0].path.read_bytes())
    data[-3] ^= 1
    again.files[0].path.write_bytes(data)
    again.ensure(np.arange(40))
    assert again.maker.asked == [1] and torch.equal(again.rows(np.arange(40)), wanted)
    assert "1 of 40 rows are not as they were written: made again" in lines[0]


def test_what_is_damaged_does_not_count_as_done(store, monkeypatch):
    monkeypatch.setattr("krt_core.data.features.BLOCK", 8)
    store().ensure(np.arange(40))
    again, shown = store(), []
    again.tell = SimpleNamespace(log=lambda text: None, decoding=lambda what, done, total: shown.append((done, total)))
    data = bytearray(again.files[0].path.read_bytes())
    for row in range(16, 40):
        data[-4 * 12 * (40 - row)] ^= 1
    again.files[0].path.write_bytes(data)
    again.ensure(np.arange(40))
    assert shown == [(8, 24), (16, 24), (24, 24)]


def test_a_folder_in_the_place_of_a_file_is_named(store):
    blocked = store()
    blocked.files[0].path.mkdir(parents=True)
    with pytest.raises(DataError, match=r"features-.*\.npy is a folder, where a file is to be kept: move it away"):
        blocked.ensure(np.arange(40))


def test_what_was_written_without_its_checksum_does_not_count(store):
    cut = store()
    cut.files[0].begin()
    cut.files[0].write(np.arange(20), np.ones((20, 3, 2, 2), np.float32))  # and killed
    again = store()
    again.ensure(np.arange(40))
    assert sum(again.maker.asked) == 40


def test_a_whole_cache_is_only_read(store, monkeypatch):
    store().ensure(np.arange(40))

    def fails(*args):
        raise PermissionError

    monkeypatch.setattr(kept_module, "only_one", fails)
    monkeypatch.setattr(kept_module, "Claims", fails)
    store().ensure(np.arange(40))


TWO = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from krt_core.config import load_experiment
from krt_core.data import features, open_dataset
from krt_core.data.store import ImageStore
from krt_core.machine.device import choose_runtime
features.BLOCK, asked = 4, []
class Maker:
    shape, dtype, digest, runtime = (3, 2, 2), torch.float32, "x", choose_runtime("float32", "cpu")
    def __call__(self, images):
        time.sleep(0.1)
        asked.append(len(images))
        return images[:, :, :2, :2].cpu()
images = ImageStore(open_dataset(load_experiment(sys.argv[1]).data, "train"), 32)
store = features.FeatureStore(images, Maker())
Path(sys.argv[2]).touch()
while not all(Path(file).exists() for file in sys.argv[2:]):
    time.sleep(0.01)
store.ensure(np.arange(40))
print(sum(asked), float(store.rows(np.arange(40)).sum()))
"""


def test_two_runs_at_once_compute_a_part_each(tiny, tmp_path):
    (tmp_path / "run.yaml").write_text(tiny().to_yaml())
    places = [str(tmp_path / "one"), str(tmp_path / "two")]
    command = [sys.executable, "-c", TWO, str(tmp_path / "run.yaml")]
    both = [subprocess.Popen([*command, *at], stdout=subprocess.PIPE, text=True) for at in (places, places[::-1])]
    said_by = [process.communicate(timeout=120)[0].split() for process in both]
    counts, sums = zip(*said_by, strict=True)
    assert sum(map(int, counts)) == 40 and min(map(int, counts)) >= 12
    assert sums[0] == sums[1]


def test_only_heads_on_means_learn_in_one_thread(tiny, tmp_path, monkeypatch):
    threads = {"backbone": set(), "head": set()}
    original = still.Features.__call__
    monkeypatch.setattr(
        still.Features,
        "__call__",
        lambda self, x: threads["backbone"].add(torch.get_num_threads()) or original(self, x),
    )
    loss = METHODS["finetune"].loss
    monkeypatch.setattr(
        METHODS["finetune"], "loss", lambda self, b: threads["head"].add(torch.get_num_threads()) or loss(self, b)
    )
    torch.set_num_threads(2)
    train(tiny(method="finetune", **FROZEN), tmp_path / "run", show="none")
    assert threads == {"backbone": {2}, "head": {1}} and torch.get_num_threads() == 2


def test_all_that_decides_features_is_in_their_name(tiny):
    """Another device, precision, normalisation, size, kind or weight makes other numbers, so other files."""
    cpu, bf16 = Runtime(torch.device("cpu"), torch.float32, {}), Runtime(torch.device("cpu"), torch.bfloat16, {})
    cuda = Runtime(torch.device("cuda"), torch.float32, {})

    def name(runtime=cpu, what="maps", **changes):
        torch.manual_seed(0)
        return still.features_of(network_of(tiny(**changes)), runtime, what).digest

    torch.manual_seed(0)
    changed = network_of(tiny())
    with torch.no_grad():
        next(changed.backbone.parameters()).view(-1)[0] += 1e-6
    others = [
        name(cuda), name(bf16), name(what="means"), name(model__mean=0.5), name(model__std=0.5),
        name(data__image_size=48), still.features_of(changed, cpu, "maps").digest,
    ]  # fmt: skip
    assert name() == name() and len({name(), *others}) == 1 + len(others)


def test_features_of_one_network_are_not_taken_for_those_of_another_with_its_weights(tiny):
    """EfficientNet as TensorFlow trained it pads otherwise and divides by another ε; all its weights have the same
    names and shapes."""
    cpu = Runtime(torch.device("cpu"), torch.float32, {})
    theirs, ours = (
        network_of(tiny(model__backbone=name, model__stride=0, data__image_size=32))
        for name in ("tf_efficientnet_lite0", "efficientnet_lite0")
    )
    ours.load_state_dict(theirs.state_dict())
    for what in ("means", "cut"):
        names = [still.features_of(network, cpu, what).digest for network in (theirs, ours)]
        assert names[0] != names[1], what
