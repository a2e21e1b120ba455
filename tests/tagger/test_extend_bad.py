"""Bad input for a run to grow by, as it is typed: the message names the thing and the way out, and nothing is left."""

import json
import shutil

import pytest
from conftest import write_coco
from grow_world import annotated
from safetensors.torch import load_file, save_file

import krt_core as krt
from krt_core.cli import main
from krt_core.lab.report import labels_of
from krt_core.runs.folder import Run

pytest_plugins = ("grow_world",)


@pytest.fixture
def typed(own, march, tmp_path, capsys):
    """``typed(words, change)``: what `krt extend RUN march` says, after a change of the run or the data; RUN stays."""

    def extend(*words, change=lambda run, march: None, run=None):
        run = run or own("ridge")
        change(run, march)
        capsys.readouterr()
        code = main(["extend", str(run.folder), str(march), "--folder", "outputs/new", *words])
        return code, capsys.readouterr()

    return extend


def refused(answer, *wanted):
    code, said = answer
    assert code == 2 and "Traceback" not in said.err
    for words in wanted:
        assert words in " ".join(said.err.split()), said.err


def test_photos_without_annotations(typed, tmp_path, capsys):
    answer = typed(change=lambda run, march: shutil.rmtree(march / "annotations"))
    refused(answer, f"{tmp_path}/march has no annotations, and its folders (train2014, val2014) are called as halves")
    refused(answer, "Write a table, such as path,tags")
    bare = tmp_path / "march" / "val2014"
    shutil.rmtree(bare.parent / "train2014")
    run = next(path for path in (tmp_path / "outputs").iterdir())
    assert main(["extend", str(run), str(bare)]) == 2
    said = capsys.readouterr().err
    assert f"{bare} has no annotations. Looked for" in said and "For images without any write a table" in said
    assert not (tmp_path / "outputs" / "new").exists()


def test_images_that_the_run_has_learned_from(typed, own, tmp_path):
    def change(run, march):
        old = tmp_path / "old" / "train2014" / "train2014_003.png"
        shutil.copy(old, march / "train2014" / "train2014_000.png")

    run = own("ridge")
    answer = typed(change=change, run=run)
    refused(answer, "march/train2014/train2014_000.png", "--known skip leaves them out, --known keep")
    assert not (tmp_path / "outputs" / "new").exists()
    code, said = typed("--known", "skip", run=run)
    assert code == 0 and "train2014_000.png: left out" in said.out


def test_a_run_without_weights(typed, tmp_path):
    answer = typed(change=lambda run, march: (run.session_folder(2) / "model.safetensors").unlink())
    refused(answer, "session_02/model.safetensors is missing", "Copy it from where the run was trained")


def test_a_run_whose_configuration_is_of_another_version(typed, tmp_path):
    def change(run, march):
        path = run.folder / "experiment.yaml"
        path.write_text(path.read_text().replace("method: ridge", "method: ridge\nfuture: {x: 1}"))

    answer = typed(change=change)
    refused(answer, "experiment.yaml: unknown key 'future'", "or was changed by hand")


@pytest.mark.parametrize("change, wanted", [
    (lambda tensors: tensors.update(other=tensors.pop("heads.0.weight")), "Missing key(s)"),
    (lambda tensors: tensors.update({"heads.0.weight": tensors["heads.0.weight"][:, :3].clone()}), "size mismatch"),
])  # fmt: skip
def test_a_run_whose_weights_are_of_another_version(typed, own, tmp_path, capsys, change, wanted):
    run = own("finetune")
    path = run.session_folder(2) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    words = ["session_02/model.safetensors is not of the network that", wanted, "another version of the workbench"]
    refused(typed(run=run), *words, "copy the right file there, or delete the folder")
    assert not (tmp_path / "outputs" / "new").exists()
    for command in (["predict", str(run.folder), str(tmp_path / "march")], ["export", str(run.folder), "m.pt2"]):
        refused((main(command), capsys.readouterr()), *words)
    (run.session_folder(2) / "state.json").unlink()
    shutil.copy(path, run.session_folder(1) / "model.safetensors")
    (run.folder / "DONE").unlink()
    with pytest.raises(krt.KRTError, match="is not of the network"):  # nor does a training go on from it
        krt.train(run.experiment, folder=run.folder, show="none")


def test_a_photo_that_cannot_be_read(typed, tmp_path, march, capsys):
    photo = march / "train2014" / "train2014_003.png"
    kept = photo.read_bytes()
    answer = typed(change=lambda run, march: photo.write_bytes(kept[:40]))
    refused(answer, str(photo), "cannot be read", "Replace it or remove it from the annotations")
    photo.write_bytes(kept)
    run = Run(next(path for path in (tmp_path / "outputs").iterdir() if path.name != "new"))
    assert main(["extend", str(run.folder), str(march), "--folder", "outputs/new"]) == 0  # it goes on
    assert krt.open_run("outputs/new").done


def test_photos_that_are_not_there(typed, march):
    answer = typed(change=lambda run, march: (march / "train2014" / "train2014_003.png").unlink())
    refused(answer, "train2014_003.png is missing, though the annotations list it", "Get the train images as a whole")


def test_a_class_without_a_photo(typed):
    def change(run, march):
        path = march / "annotations" / "instances_train2014.json"
        content = json.loads(path.read_text())
        content["categories"].append({"id": 7, "name": "elk"})
        path.write_text(json.dumps(content))

    refused(typed(change=change), "no image to learn from shows elk", "Leave such classes out with classes=[cat, dog]")


def test_data_all_of_whose_classes_are_known(own, tmp_path, capsys):
    more = annotated(write_coco(tmp_path / "more", seed=7), ("ant", "cat"))
    assert main(["extend", str(own("census").folder), str(more), "--folder", "outputs/new"]) == 0
    said = capsys.readouterr()
    assert f"all classes of {more} are known: the session adds" in said.out
    assert "3 old classes: mAP" in said.err and " new (" not in said.err


def test_a_run_that_leaks_is_marked_in_what_grows_from_it(typed, own, tmp_path, capsys):
    run = own("ridge")
    path = run.folder / "environment.json"
    content = json.loads(path.read_text())
    for start in (content, *content["starts"]):
        start["weights"] = {**(start["weights"] or {}), "leak": "it had seen COCO"}
    path.write_text(json.dumps(content))
    code, said = typed(run=run)
    assert code == 0 and "LEAK: it had seen COCO, and what grows from it is marked, too" in said.out
    new = krt.open_run("outputs/new")
    assert new.leak == "it had seen COCO" and labels_of([new])[0].endswith("(LEAK)")
    tagger = krt.Tagger(new)
    assert tagger.leak and "LEAK" in repr(tagger) and tagger.notes[0] == "LEAK: it had seen COCO"
    assert "LEAK" in (new.folder / "README.md").read_text()
