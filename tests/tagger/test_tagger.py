"""`Tagger` says of photos what the run's own tests said, of every kind of method, session, precision and image."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tag_world import OTHERS, calibrate, own_photos, scores_of

import krt_core as krt
from krt_core.data.images import load_image
from krt_core.errors import ConfigError, DataError, RunError
from krt_core.runs.starts import precision_of
from krt_core.tagger.tagger import Tagger

pytest_plugins = ("tag_world",)

KINDS = [
    ("ridge", {}),
    ("census", {}),  # scores of its own, on parts of the map
    ("krt", {}),
    ("krt", {"model__freeze": "all", "train__augment": "none"}),  # tested on maps that are kept
    ("masked", {"model__freeze": "first", "train__augment": "none"}),
    ("masked", {"model__freeze": "all", "train__augment": "none", "train__precision": "bfloat16"}),  # means in float16
    ("kbk", {"model__freeze": "all", "train__precision": "bfloat16"}),
    ("kbk", {}),  # a head of its own, in the method's state
    ("csc", {"train__precision": "bfloat16"}),
    ("multilane", {"train__precision": "float64"}),
    ("joint", {}),  # all classes in one training
    ("mylab:Scaled", {}),  # from outside the package, with a tensor in its state
    ("mylab:Ridge", {}),
]


@pytest.mark.parametrize(("method", "changes"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_it_says_what_the_run_wrote_down(trained, monkeypatch, method, changes):
    monkeypatch.setattr(sys, "path", [OTHERS, *sys.path])
    run = trained(method, **changes)
    for session in range(2):
        paths, stored = own_photos(run, session)
        tagger = Tagger(run, session)
        assert tagger.classes == run.protocol.classes[: 2 * session + 2]
        found = tagger(paths)
        np.testing.assert_allclose(scores_of(found, tagger.classes), stored, atol=1e-5)
        assert all((np.diff(tags.probabilities) <= 0).all() for tags in found)


def test_tags_are_in_order_and_above_their_thresholds(mine):
    run = mine()
    calibration = calibrate(run)
    paths, stored = own_photos(run)
    logit = np.log(stored.astype(np.float64)) - np.log1p(-stored.astype(np.float64))
    wanted = np.where(calibration.fitted, 1 / (1 + np.exp(-(calibration.a * logit + calibration.b))), stored)
    tagger = krt.Tagger(run.folder)
    np.testing.assert_allclose(tagger.thresholds, calibration.thresholds, atol=1e-7)
    for tags, p in zip(tagger(paths), wanted, strict=True):
        assert [tags[name] for name in tagger.classes] == pytest.approx(p.tolist(), abs=1e-6)
        above = {
            name for name, value, limit in zip(tagger.classes, p, calibration.thresholds, strict=True) if value > limit
        }
        assert set(tags.named) == above and list(tags.named) == sorted(above, key=lambda name: -tags[name])
        assert tags.top(2) == [(n, tags[n], n in above) for n in tags.names[:2]]
    half = Tagger(run, threshold=0.5)(paths[0])
    assert set(half.named) == {name for name, value in zip(tagger.classes, wanted[0], strict=True) if value > 0.5}
    assert Tagger(run, threshold=0)(paths[0]).names == Tagger(run, threshold=0)(paths[0]).named
    for wrong in (1.2, "calibratd", None, float("nan")):
        with pytest.raises(ConfigError, match="number from 0 to 1"):
            Tagger(run, threshold=wrong)


def test_an_image_may_come_in_any_form(trained, tmp_path):
    run = trained("ridge")
    paths, _ = own_photos(run)
    tagger = Tagger(run)
    wanted = tagger(paths[0])
    with Image.open(paths[0]) as image:
        array = np.asarray(image.convert("RGB"))
        opened = tagger(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [str(paths[0]), array, tensor, tensor / 255, tensor.double() / 255, Image.fromarray(array)]
    for tags in (opened, *tagger(forms), *(tagger(one) for one in forms)):
        np.testing.assert_allclose(tags.scores, wanted.scores, atol=1e-6)
        assert tags.names == wanted.names
    assert [tags.names for tags in tagger(np.stack([array, array]))] == [wanted.names] * 2
    assert [tags.names for tags in tagger(torch.stack([tensor, tensor]))] == [wanted.names] * 2
    assert tagger([]) == []


def test_an_iterator_is_read_as_it_is_asked(trained):
    run = trained("ridge")
    paths, stored = own_photos(run)
    tagger, read = Tagger(run), []
    tagger.scorer.batch_size = 5

    def some():
        for path in paths:
            read.append(path)
            yield path

    said = tagger(some())
    assert not read
    first = next(said)
    assert len(read) == 5
    rest = list(said)
    np.testing.assert_allclose(scores_of([first, *rest], tagger.classes), stored, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16", "LA"])
def test_modes_are_read_as_in_a_training(trained, tmp_path, mode):
    """The decoder of the training is tested on its own; here a file and an opened image must go through it."""
    rng = np.random.default_rng(1)
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 4095, (20, 30), dtype=np.uint16))
    else:
        picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / f"x.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(path)
    tagger = Tagger(trained("ridge"))
    wanted = tagger(load_image(path, 32))
    for form in (path, picture, Image.open(path)):
        np.testing.assert_array_equal(tagger(form).scores, wanted.scores)


def test_a_photo_is_turned_as_its_camera_says(trained, tmp_path):
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.png", exif=exif)
    tagger = Tagger(trained("ridge"))
    for form in (tmp_path / "x.png", Image.open(tmp_path / "x.png")):
        np.testing.assert_array_equal(tagger(form).scores, tagger(upright).scores)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 5), np.uint8), r"array must be an image \(h, w, 3\).*found \(4, 5\) uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"found \(4, 5, 4\)"),
        (np.zeros((4, 5, 3)), "float64"),
        (np.zeros((0, 5, 3), np.uint8), r"found \(0, 5, 3\)"),
        (torch.zeros(5, 4, 3), r"tensor must be an image \(3, h, w\)"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "int64"),
        (torch.full((3, 4, 5), 2.0), r"values in \[0, 1\]"),
        (torch.full((3, 4, 5), torch.nan), r"values in \[0, 1\]"),
        (3, "found 3"),
        ([None], "found None"),
        ("nowhere.jpg", r"Image .*nowhere\.jpg is missing\.$"),
    ],
)
def test_what_is_no_image_is_said(trained, image, words):
    with pytest.raises(DataError, match=words):
        Tagger(trained("ridge"))(image)


@pytest.mark.parametrize("method", ["krt", "masked", "ridge", "census", "kbk"])
def test_evidence_is_a_map_for_each_named_tag(trained, method):
    run = trained(method)
    paths, _ = own_photos(run)
    tagger = Tagger(run, threshold=0)
    for tags in tagger(paths[:3], evidence=True):
        assert set(tags.evidence) == set(tags.names)
        for found in tags.evidence.values():
            assert found.shape == (4, 4) and found.dtype == np.float32 and found.min() >= 0 and found.max() in (0, 1)
    assert not tagger(paths[0]).evidence


def test_evidence_of_a_linear_head_is_what_each_cell_adds(trained):
    """Of the mean of a map, w · mean + b, cell j adds w · cell j / N."""
    run = trained("masked")
    tagger = Tagger(run, threshold=0)
    pixels = load_image(own_photos(run)[0][0], 32)
    tags = tagger(pixels, evidence=True)
    network, _ = tagger._plain
    with torch.no_grad():
        maps = network.features(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255)[0].double()
    for column, name in enumerate(tagger.classes):
        weights = torch.cat([head.weight for head in network.heads])[column].double()
        added = torch.einsum("c,chw->hw", weights, maps).clamp(min=0)
        np.testing.assert_allclose(tags.evidence[name], added / added.max().clamp(min=1e-12), atol=1e-4)


def test_a_run_that_leaks_is_marked(mine):
    run = mine()
    starts = run._starts()
    for start in (starts, *starts["starts"]):
        start["weights"] = {**(start["weights"] or {}), "leak": "it had seen COCO"}
    run.write_json("environment.json", starts)
    tagger = Tagger(run)
    tags = tagger(own_photos(run)[0][0])
    assert tagger.leak == tags.leak == "it had seen COCO"
    assert "LEAK: it had seen COCO" in repr(tagger) and "LEAK" in repr(tags)


def test_what_is_missing_is_named_with_the_way_out(mine, tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        Tagger(tmp_path)
    run = mine()
    with pytest.raises(RunError, match="has no session 3: finished are 1 to 2"):
        Tagger(run, 2)
    assert "session 1 of 2" in repr(Tagger(run, 0))
    (run.session_folder(1) / "state.json").unlink()
    assert "not finished: it has 1 of 2 sessions" in repr(Tagger(run)) and Tagger(run).session == 0
    weights = run.session_folder(0) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        Tagger(run)
    weights.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors is missing.*Copy it from where the run was made"):
        Tagger(run)
    (run.session_folder(0) / "state.json").unlink()
    with pytest.raises(RunError, match="has not finished a session yet"):
        Tagger(run)


def test_a_run_of_another_version_is_named(mine):
    run = mine()
    file = run.folder / "experiment.yaml"
    file.write_text(file.read_text().replace("data:\n", "data:\n  of_the_future: 1\n"))
    with pytest.raises(ConfigError, match=r"experiment\.yaml.*of_the_future"):
        Tagger(run.folder)


def test_a_head_that_does_not_fit_is_named(mine):
    run = mine("csc")
    state = run._starts() and run.session_state(1)
    state["method"]["sessions"] = 1
    run.write_json("session_01/state.json", state)
    with pytest.raises(RunError, match=r"state\.json is damaged.*csc"):
        Tagger(run)


def test_a_method_that_answers_in_a_training_alone_is_named(trained, monkeypatch):
    monkeypatch.setattr(sys, "path", [OTHERS, *sys.path])
    run = trained("mylab:Scaled")
    kind = type(Tagger(run).scorer.method)
    monkeypatch.setattr(kind, "scores", lambda self, model, images: self.context.session)
    with pytest.raises(RunError, match=r"method Scaled cannot answer outside of a training.*a Scaled\.reopen"):
        Tagger(run)


def test_of_a_run_that_reports_its_best_epoch_it_is_said(mine):
    run = mine("masked", train__epochs=2)
    assert "epoch" not in repr(Tagger(run))
    run.write_json("session_01/state.json", {**run.session_state(1), "reported_epoch": 0})
    assert "its numbers are of epoch 1, its weights of the last one" in repr(Tagger(run))


def test_it_computes_in_what_the_run_computed_in(trained):
    run = trained("csc", train__precision="bfloat16")
    assert precision_of(run.starts) == "bfloat16" and Tagger(run).scorer.runtime.dtype == torch.bfloat16
