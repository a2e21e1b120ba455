"""Files for other programs say what the run's model says, for any number of images, and tell of themselves."""

import builtins
import json
import re
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tag_world import OTHERS, calibrate, own_photos

from krt_core.cli import main
from krt_core.data.images import load_image
from krt_core.errors import ConfigError, KRTError, RunError
from krt_core.methods import METHODS
from krt_core.runs.folder import Run
from krt_core.tagger import export as exporting
from krt_core.tagger.export import export
from krt_core.tagger.tagger import Tagger

pytest_plugins = ("tag_world",)
pytestmark = pytest.mark.exports
KINDS = (".onnx", ".pt2")
FAST = ("ridge", "krt", "census", "kbk")


def answers(path):
    """What another program gets: a function of images (B, 3, S, S), and the metadata."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
        return lambda images: session.run(None, {"images": images}), about
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return lambda images: [x.detach().numpy() for x in module(torch.from_numpy(images))], json.loads(
        extra["metadata.json"]
    )


def agree(run, path, count=4):
    """Is it `Tagger` to 1e-4 on one image and on three?"""
    paths, _ = own_photos(run)
    tagger, (answer, about) = Tagger(run), answers(path)
    assert about["classes"] == list(tagger.classes)
    for some in (paths[:1], paths[1:count]):
        pixels = np.stack([load_image(photo, 32) for photo in some])
        probabilities, scores = answer(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        assert probabilities.shape == scores.shape == (len(some), len(tagger.classes))
        for tags, p, s in zip(tagger(some), probabilities, scores, strict=True):
            places = [tags.names.index(name) for name in tagger.classes]
            np.testing.assert_allclose(p, tags.probabilities[places], atol=1e-4)
            np.testing.assert_allclose(s, tags.scores[places], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", FAST)
def test_it_says_what_the_tagger_says(mine, tmp_path, method, kind):
    run = mine(method)
    if method in ("ridge", "kbk"):
        calibrate(run)
    made = export(run, 1, tmp_path / f"tags{kind}")
    assert made.difference <= 1e-4 and "24 test images" in made.said[0] and run.folder.name in made.said[1]
    assert sorted(path.name for path in tmp_path.glob("tags*")) == [f"tags{kind}", f"tags{kind}.md"]
    agree(run, made.path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", sorted({*METHODS, "mylab:Scaled"} - {*FAST}))
def test_every_method_can_be_exported(trained, tmp_path, monkeypatch, method):
    monkeypatch.setattr(sys, "path", [OTHERS, *sys.path])
    needs = {"icarl": {"replay__per_class": 2}, "er": {"replay__per_class": 2}, "derpp": {"replay__per_class": 2}}
    run = trained(method, **needs.get(method, {}))
    for kind in KINDS:
        agree(run, export(run, 1, tmp_path / f"tags{kind}").path)


CORNERS = (
    np.array([[-3.0, -1, 0.5, 4], [-2, -1.5, 2, 2.5]]), np.array([[0.0], [1]]), np.array([[-9.0, 9], [-1, 1]]),
    np.zeros((2, 1)),
)  # fmt: skip


@pytest.mark.parametrize("curves", [(), CORNERS], ids=["platt", "isotonic"])
@pytest.mark.parametrize("kind", KINDS)
def test_saturated_scores_are_calibrated_alike(kind, curves, tmp_path, mine):
    """Scores of 0, 1 and what float32 has next to them, by formulas in float64."""
    from krt_core.runs.calibration import Calibration
    from krt_core.tagger.program import Program

    class Given:
        def scores(self, model, images):
            return images[:, 0, 0, :4]

    calibration = Calibration(
        np.array([0.3, 3, 1, 1.0]), np.array([-2, 4, -8, 0.0]), np.full(4, 0.5), np.arange(4) < 3, curves
    )
    program = Program(torch.nn.Identity(), Given(), calibration)
    values = np.array([0, 1e-9, 1e-6, 1e-3, 0.5, 0.999, 1 - 1e-6, 1 - 1e-7, 1], np.float32)
    scores = np.repeat(values[:, None], 4, axis=1)
    images = torch.from_numpy(scores)[:, None, None, :].repeat(1, 3, 1, 1)
    make, read = (exporting._to_onnx, exporting._onnx) if kind == ".onnx" else (exporting._to_pt2, exporting._pt2)
    with exporting.quiet():
        probabilities, same = read(make(program.eval(), images[:2], {}))(images.numpy())
    np.testing.assert_allclose(probabilities, calibration.probabilities(scores), atol=1e-5)
    np.testing.assert_array_equal(same, scores)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_tells_of_itself(mine, tmp_path, kind, capsys):
    run = mine()
    calibration = calibrate(run)
    environment = json.loads((run.folder / "environment.json").read_text())
    for start in (environment, *environment["starts"]):
        start["weights"] = {"leak": "it had seen COCO"}
    run.write_json("environment.json", environment)
    file = tmp_path / f"tags{kind}"
    assert main(["export", str(run.folder), str(file), "--session", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("largest difference from the run's own model in float32 on 24 test images: ")
    assert said[-1] == str(file)
    about = answers(file)[1]
    assert about["classes"] == list(run.protocol.classes) and about["image_size"] == 32
    assert about["thresholds"] == pytest.approx(calibration.thresholds.tolist())
    assert about["calibrated"] == [False, True, True, True] and "bilinear" in about["resize"]
    assert about["run"] == run.folder.name and about["config_hash"] == run.experiment.hash()
    assert about["commit"] == run.environment["commit"] and (about["session"], about["sessions"]) == (2, 2)
    assert about["leak"] == "it had seen COCO" and about["method"] == "ridge"
    if kind == ".onnx":
        onnx.checker.check_model(onnx.load(file))
    page = file.with_name(file.name + ".md").read_text()
    assert "**LEAK**: it had seen COCO" in page and said[0] in page


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_on_its_page_runs(mine, tmp_path, kind, monkeypatch, capsys):
    run = mine()
    calibrate(run)
    file, photo = tmp_path / f"tags{kind}", own_photos(run)[0][0]
    export(run, 1, file)
    code = re.search(r"```python\n(.+?)```", file.with_name(file.name + ".md").read_text(), re.S)[1]
    assert len(code.strip().splitlines()) <= 16
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())  # its ending decides nothing
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert sorted(eval(capsys.readouterr().out)) == sorted(Tagger(run)(photo).named)


def test_half_precision_is_exported_in_float32_and_said(trained, tmp_path):
    run = trained("csc", train__precision="bfloat16")
    made = export(run, 1, tmp_path / "tags.pt2")
    assert made.difference <= 1e-4 and made.said[1].endswith("(made in bfloat16)")


def test_without_the_test_images_random_ones_do(mine, tmp_path, monkeypatch):
    run = mine()
    monkeypatch.setattr(
        exporting, "open_dataset", lambda *_: (_ for _ in ()).throw(exporting.DataError("There is no data folder."))
    )
    made = export(run, 1, tmp_path / "tags.pt2")
    assert "64 random images, as the test images are not to be had (There is no data folder)" in made.said[0]
    assert len(made.said) == 1


def test_a_file_that_says_something_else_is_not_left_behind(trained, tmp_path, monkeypatch):
    right = exporting._pt2

    def wrong(content):
        answer = right(content)
        return lambda images: tuple(said + 2e-4 for said in answer(images))

    monkeypatch.setattr(exporting, "_pt2", wrong)
    with pytest.raises(RunError, match=r"was not written.*24 test images is up to 0\.0002 from"):
        export(trained("ridge"), 1, tmp_path / "tags.pt2")
    assert not list(tmp_path.glob("tags*"))


def test_what_cannot_be_exported_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [OTHERS, *sys.path])
    with pytest.raises(RunError, match=r"mylab:Ridge.*cannot be written as \.onnx.*solve.*krt predict"):
        export(trained("mylab:Ridge"), 1, tmp_path / "tags.onnx")
    assert not list(tmp_path.glob("tags*"))


def test_packages_that_are_missing_are_named(trained, tmp_path, monkeypatch):
    found = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'krt-core\[export\]', or pip install onnx onnxscript"):
        export(trained("ridge"), 1, tmp_path / "tags.onnx")
    export(trained("ridge"), 1, tmp_path / "tags.pt2")


def test_a_pytorch_that_is_too_old_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.7.1+cpu"))
    with pytest.raises(
        ConfigError, match=r"\.pt2 files need PyTorch 2\.8 or newer, and this is 2\.7\.1\+cpu.*krt predict"
    ):
        export(trained("ridge"), 1, tmp_path / "tags.pt2")
    shutil.copytree(trained("ridge").folder, tmp_path / "run")
    (tmp_path / "run" / "session_01" / "model.safetensors").unlink()
    with pytest.raises(KRTError, match="model.safetensors"):  # a newer PyTorch would not help
        export(Run(tmp_path / "run"), 1, tmp_path / "tags.pt2")


def test_the_rest_of_the_room_needs_no_onnx(trained, photos, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        assert "onnx" not in name.split(".")[0], name
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["predict", str(trained("ridge").folder), str(photos / "a.png")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "tags.pb"], "tags.pb: by its ending it is none of the files that can be written: .onnx (ONNX), .pt2"),
        (["RUN", "tags"], ".pth (the published layout"),
        (["RUN", "tags.onnx", "--session", "3"], "has no session 3"),
        (["nowhere", "tags.onnx"], "no run folder"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(trained, capsys, arguments, words):
    folder = str(trained("ridge").folder)
    assert main(["export", *(folder if word == "RUN" else word for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
