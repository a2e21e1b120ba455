"""A run grows by a session from data of its own."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, write_coco
from grow_world import annotated

import krt_core as krt
from krt_core.cli import main
from krt_core.data import open_dataset
from krt_core.data.images import load_image
from krt_core.errors import ConfigError, DataError, RunError
from krt_core.protocol import protocol_of, session_view
from krt_core.runs.folder import Run
from krt_core.tagger.extend import extend
from krt_core.weights.convert import load_model

pytest_plugins = ("grow_world",)
BLANK = ("absent", "unknown")


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def ask_ridge(features, labels, share):
    """Ridge regression with an intercept by its normal equations; the penalty as a share of the mean diagonal."""
    mean, y = features.mean(axis=0), labels.mean(axis=0)
    centred = features - mean
    G = centred.T @ centred
    W = np.linalg.solve(G + share * np.diag(G).mean() * np.eye(len(G)), centred.T @ (labels - y))
    return W, y - mean @ W


def pooled(run, dataset):
    model = load_model(run, 0)
    pixels = np.stack([load_image(dataset.path(row), 32) for row in range(len(dataset))])
    with torch.inference_mode():
        return model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).pooled.double().numpy()


# ---- what it learns ----


def test_ridge_learns_new_classes_from_all_images_and_old_ones_from_those_that_tell_of_them(own, march):
    run = own("ridge", ridge__penalty=0.1)
    new = extend(run, march, show="none")
    old_set, new_set = open_dataset(run.experiment.data, "train"), krt.open_dataset(new)
    fresh = new_set.select_images(new_set.arrived == 1, "train")
    phi_old, phi_new = pooled(run, old_set), pooled(run, fresh)
    # each session shows the images of one class, with the labels of that class alone
    shown = [old_set.labels[:, c] for c in range(3)]
    rows = np.concatenate([phi_old[y] for y in shown])
    labels = np.concatenate([np.eye(3)[[c] * int(y.sum())] for c, y in enumerate(shown)])
    cat, dog = fresh.labels[:, 2], fresh.labels[:, 3]
    W_old, b_old = ask_ridge(rows, labels[:, :2], 0.1)  # of ant and bee the new images tell nothing
    every = np.concatenate([rows, phi_new])
    W_cat, b_cat = ask_ridge(every, np.concatenate([labels[:, 2], cat])[:, None], 0.1)
    W_dog, b_dog = ask_ridge(every, np.concatenate([np.zeros(len(rows)), dog])[:, None], 0.1)
    found = new.model_state(3)
    weights = np.concatenate([found[f"heads.{t}.weight"].numpy() for t in range(4)])
    biases = np.concatenate([found[f"heads.{t}.bias"].numpy() for t in range(4)])
    wanted = 8 * np.concatenate([W_old, W_cat, W_dog], axis=1).T
    assert np.abs(weights - wanted).max() < 1e-4
    assert np.abs(biases - 8 * (np.concatenate([b_old, b_cat, b_dog]) - 0.5)).max() < 1e-4


def test_what_the_new_data_are_not_annotated_with_is_unknown(own, march):
    new = extend(own("finetune"), march, show="none")
    dataset = krt.open_dataset(new)
    protocol = protocol_of(new.experiment.protocol, dataset.classes, 1).on(dataset)
    view = session_view(protocol, protocol.reorder(dataset.truth), 3, None, "session")
    assert dataset.classes == protocol.classes == ("ant", "bee", "cat", "dog")
    assert len(view.rows) == new.session_state(3)["train_images"] == (dataset.arrived == 1).sum()
    assert (view.labels[:, :2] == -1).all() and set(view.labels[:, 2:].ravel().tolist()) == {0, 1}
    scores = new.scores(3)
    later = np.char.startswith(scores.ids, "+1/")
    assert (scores.labels[~later, 3] == -1).all() and (scores.labels[later, :2] == -1).all()


def test_said_to_be_complete_they_show_what_is_absent(own, march):
    new = extend(own("finetune"), march, {"complete": True}, show="none")
    dataset = krt.open_dataset(new)
    fresh = dataset.arrived == 1
    assert (dataset.truth[fresh][:, :2] == 0).all() and (dataset.truth[~fresh][:, 3] == -1).all()


@pytest.mark.parametrize("method", ["census", "krt", "masked", "lwf", "ewc", "pod", "rebll", "kbk", "multilane", "l3a"])
def test_methods_learn_a_session_more(own, march, method):
    run = own(method)
    before = files_of(run.folder)
    new = extend(run, march, show="none")
    assert files_of(run.folder) == before  # the old run stays as it is
    assert new.done and new.finished_sessions == 4 and new.protocol.class_names(3) == ("dog",)
    assert new.curve()[:3].tolist() == run.curve().tolist() and np.isfinite(new.curve()).all()
    assert new.session_state(0)["inherited"] == str(run.folder) and not new.mixed
    assert load_model(new, 3)(torch.rand(1, 3, 32, 32)).logits.shape == (1, 4)


def test_krt_expects_as_many_old_labels_as_sessions_have_shown(own, march):
    run = own("krt")
    new = extend(run, march, show="none")
    assert new.experiment.options.target == "estimated"
    labels = open_dataset(run.experiment.data, "train").labels
    expected = labels.sum() / labels.any(axis=1).sum()
    assert new.session_state(3)["method"]["thresholds"]["3"]["target"] == pytest.approx(expected)


def test_what_older_folders_and_imported_ones_do_not_say_of_it_is_counted_again(own, march):
    run = own("krt")
    wanted = extend(run, march, folder="outputs/wanted", show="none").session_state(3)["method"]
    for session in range(3):
        path = run.session_folder(session) / "state.json"
        state = json.loads(path.read_text())
        del state["shown"]
        path.write_text(json.dumps(state))
    assert extend(run, march, folder="outputs/again", show="none").session_state(3)["method"] == wanted
    shutil.rmtree(run.folder.parents[1] / "old")
    with pytest.raises(RunError, match="is not known: the run is older or was imported"):
        extend(run, march, folder="outputs/blind", show="none")
    blind = extend(run, march, {"krt.pseudo_labels": False}, folder="outputs/plain", show="none")
    assert blind.done


# ---- exemplars ----


@pytest.mark.parametrize("method, changes", [
    ("er", {"replay__per_class": 3}),
    ("derpp", {"replay__per_class": 3}),
    ("er", {"replay__budget": 6, "replay__selection": "prs"}),
])  # fmt: skip
def test_stored_exemplars_are_replayed(own, march, method, changes):
    run = own(method, **changes)
    stored = run.session_state(2)["exemplar_ids"]
    for path in (run.folder.parents[1] / "old" / "train2014").iterdir():  # all others are gone
        if str(100 + int(path.stem.split("_")[1])) not in {one for ids in stored for one in ids}:
            path.unlink()
    new = extend(run, march, show="none")
    state = new.session_state(3)
    assert state["replayed_images"] == sum(map(len, stored))
    kept = {one for ids in state["exemplar_ids"] for one in ids}
    assert any(one.startswith("+1/") for one in kept) and kept & {one for ids in stored for one in ids}
    again = extend(new, annotated(write_coco(march.parent / "april", seed=9), ("dog", "bee")), show="none")
    assert again.session_state(4)["replayed_images"] == sum(map(len, state["exemplar_ids"]))


def test_exemplars_that_are_gone_are_named(own, march):
    run = own("er", replay__per_class=3)
    shutil.rmtree(run.folder.parents[1] / "old" / "train2014")
    with pytest.raises(
        DataError, match="exemplars cannot be read: .*has no folder of train images.*replay.per_class=0"
    ):
        extend(run, march, show="none")


# ---- a history ----


def test_sessions_add_up_to_one_history(own, march, tmp_path):
    first = extend(own("census"), march, show="none")
    april = annotated(write_coco(tmp_path / "april", train=20, test=10, seed=9), ("dog",), {"dog": "elk"})
    second = extend(first, april, show="none")
    assert second.protocol.classes == ("ant", "bee", "cat", "dog", "elk") and second.protocol.name == "B0-C1"
    assert [one.root for one in second.experiment.data.added] == [str(march), str(april)]
    assert second.curve()[:4].tolist() == first.curve().tolist() and second.finished_sessions == 5
    # what was learned from the first data is scored on the same images in every session
    assert np.allclose(second.ap_tables["fixed"][:4, :4], first.ap_tables["fixed"], equal_nan=True)
    first_images = second.scores(4).ids[~np.char.startswith(second.scores(4).ids, "+")]
    assert first_images.tolist() == first.scores(0).ids.tolist()
    assert set(second.summary["forgetting_definitions"]) >= {"max_class_fixed", "first_task_own"}

    table = krt.report.runs_table([second])
    assert table["average_mAP"].notna().all() and table["dataset"].item().endswith(", 3 classes + march + april")


def test_a_run_grows_as_it_was_after_an_earlier_session(own, march):
    run = own("ridge")
    new = extend(run, march, session=2, show="none")
    assert new.protocol.classes == ("ant", "bee", "cat", "dog") and new.protocol.class_names(2) == ("cat", "dog")
    assert new.curve()[:2].tolist() == run.curve()[:2].tolist()
    with pytest.raises(RunError, match="--session must be 1 to 3"):
        extend(run, march, session=4)


def test_what_is_done_is_not_done_again_and_what_was_begun_goes_on(own, march):
    run = own("ridge")
    new = extend(run, march, show="none")
    written = (new.folder / "DONE").stat().st_mtime_ns
    assert extend(run, march, show="none").folder == new.folder and (new.folder / "DONE").stat().st_mtime_ns == written
    before = new.model_state(3)
    for name in ("experiment.yaml", "DONE"):
        (new.folder / name).unlink()
    shutil.rmtree(new.folder / "session_03")
    (new.folder / "growing").write_text("")  # as it is while the folder is being made
    again = extend(run, march, show="none").model_state(3)
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def test_more_images_of_old_classes_alone(own, tmp_path):
    more = annotated(write_coco(tmp_path / "more", seed=7), ("ant", "cat"))
    for method in ("ridge", "krt", "finetune"):
        new = extend(own(method), more, show="none")
        assert new.protocol.name == "1+1+1+0" and new.protocol.class_names(3) == ()
        assert f"all classes of {more} are known" in (new.folder / "log.txt").read_text()
        assert np.isfinite(new.curve()).all() and np.isnan(new.session_state(3)["metrics"]["mAP_new"])
        shutil.rmtree(tmp_path / "old")


@pytest.mark.parametrize("method", [
    "ridge", "census", "l3a", "krt", "finetune", "masked", "lwf", "ewc", "pod", "rebll", "kbk",
])  # fmt: skip
@pytest.mark.slow
def test_a_session_without_a_class_of_its_own_is_calibrated_too(own, tmp_path, method):
    more = annotated(write_coco(tmp_path / "more", seed=7), ("ant", "cat"))
    run = own(method, data__validation=0.25)
    new = extend(run, more, show="none")
    assert new.done and len(new.calibration(3).a) == 3 and new.calibration(3).images > run.calibration(2).images
    assert np.isfinite(new.curve()).all()


@pytest.mark.parametrize("method", ["agcn", "csc", "multilane"])
def test_methods_that_learn_from_new_classes_alone_say_so(own, march, tmp_path, method):
    run = own(method)
    with pytest.raises(ConfigError, match="learns from the labels of new classes alone, and these data bring none"):
        extend(run, annotated(write_coco(tmp_path / "more", seed=7), ("ant", "cat")))
    new = extend(run, march, show="none")
    log = (new.folder / "log.txt").read_text()
    assert f"{method} learns from the labels of new classes alone: those of cat are not used" in log


# ---- what is tested on ----


def test_without_a_test_half_a_fifth_is_held_out(own, march):
    for path in (march / "annotations").glob("*val2014*"):
        path.unlink()
    new = extend(own("ridge"), march, show="none")
    assert new.experiment.data.added[0].test == 0.2
    later = np.char.startswith(new.scores(3).ids, "+1/").sum()
    images = json.loads((march / "annotations" / "instances_train2014.json").read_text())["annotations"]
    assert abs(later - 0.2 * len({one["image_id"] for one in images})) <= 1
    untested = extend(own_again(new), march, {"test": 0.0}, folder="outputs/untested", show="none")
    metrics = untested.session_state(3)["metrics"]
    assert np.isnan(metrics["AP_seen"]["dog"]) and np.isfinite(metrics["mAP_seen"])


def own_again(new):
    return Run(new.session_state(0)["inherited"])


def test_where_the_old_photos_are_gone_the_new_ones_are_tested_on(own, march):
    run = own("census")
    shutil.rmtree(run.folder.parents[1] / "old")
    new = extend(run, march, show="none")
    assert np.char.startswith(new.scores(3).ids, "+1/").all() and np.isfinite(new.curve()).all()
    assert "the first data are not tested on" in (new.folder / "log.txt").read_text()
    assert np.isnan(new.ap(3)["fixed"][:2]).all() and new.ap(3)["fixed"][3] > 0


# ---- names ----


def test_names_that_look_alike_are_asked_about(own, march):
    run, renamed = own("ridge"), annotated(march, ("cat", "dog"), {"cat": "Cats"})
    with pytest.raises(ConfigError, match="'Cats' looks like 'cat', which the run knows.*--same 'Cats=cat'.*--new"):
        extend(run, renamed)
    asked = []
    new = extend(run, renamed, ask=lambda name, known: asked.append((name, known)) or True, show="none")
    assert asked == [("Cats", "cat")] and new.protocol.class_names(3) == ("dog",)
    same = extend(run, renamed, same={"Cats": "cat"}, folder="outputs/same", show="none")
    assert same.experiment.data.added == new.experiment.data.added and same.experiment.hash() == new.experiment.hash()
    other = extend(run, renamed, new=["Cats"], folder="outputs/other", show="none")
    assert other.protocol.class_names(3) == ("Cats", "dog")
    for said, match in (
        ({"same": {"Cat": "cat"}}, "has no class 'Cat'. Did you mean"),
        ({"same": {"Cats": "lion"}}, "The run has no class 'lion'"),
        ({"same": {"Cats": "cat"}, "new": ["Cats"]}, "cannot be both"),
        ({"same": {"Cats": "cat", "dog": "cat"}}, "Cats and dog are both called cat"),
    ):
        with pytest.raises(ConfigError, match=match):
            extend(run, renamed, **said)


def test_what_is_held_out_to_test_on_is_not_what_is_held_out_to_validate_on(own, march):
    for path in (march / "annotations").glob("*val2014*"):
        path.unlink()
    new = extend(own("ridge"), march, {"data.validation": 0.2}, show="none")
    later = {one for one in new.scores(3).ids if one.startswith("+1/")}
    validated = krt.open_dataset(new, "validation")
    validated = set(validated.ids[validated.arrived == 1])
    assert later and validated and not later & validated
    assert new.session_state(3)["train_images"] + len(later) + len(validated) == 25


def test_other_labels_or_other_weights_make_another_run(own, march):
    run = own("ridge")
    first = extend(run, march, folder="outputs/new", show="none")
    path = march / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="holds another experiment"):
        extend(run, march, folder="outputs/new", show="none")
    assert extend(run, march, show="none").folder != first.folder


# ---- what is refused ----


def test_images_that_the_run_has_learned_from_are_named(own, march):
    run = own("ridge")
    old = run.folder.parents[1] / "old" / "train2014"
    shutil.copy(old / "train2014_000.png", march / "train2014" / "train2014_000.png")
    with pytest.raises(
        DataError, match=r"1 of \d+ images are ones that .* has learned from.*train2014_000.png.*--known skip"
    ):
        extend(run, march)
    kept, skipped = (extend(run, march, known=how, folder=f"outputs/{how}", show="none") for how in ("keep", "skip"))
    assert kept.session_state(3)["train_images"] == skipped.session_state(3)["train_images"] + 1
    assert skipped.experiment.data.added[0].without == ("100",)


@pytest.mark.parametrize("method, changes, overrides, match", [
    ("joint", {}, {}, "learns from the images of all sessions, and the old ones are gone"),
    ("finetune", {}, {"method": "ridge"}, "has not kept what ridge goes on from"),
    ("finetune", {}, {"method": "krt"}, "classifier method krt does not have"),
    ("kbk", {}, {"method": "finetune"}, "classifier method finetune does not have"),
    ("ridge", {}, {"data.image_size": 64}, "data.image_size is the run's own"),
    ("ridge", {}, {"protocol.increment": 2}, "protocol.increment is the run's own"),
    ("ridge", {}, {"ridge.penlty": 2}, "unknown key"),
    ("ridge", {}, {"complet": True}, "unknown key 'complet'. Did you mean 'complete'"),
    ("ridge", {}, {"classes": ["cat", "eel"]}, "there is no class 'eel'"),
    ("krt", {"krt__oracle": True}, {}, "which nobody has here: krt.oracle=false"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_a_way_out(own, march, method, changes, overrides, match):
    run = own(method, **changes)
    with pytest.raises((ConfigError, DataError), match=match):
        extend(run, march, overrides)
    assert list((run.folder.parent).iterdir()) == [run.folder]  # nothing was begun


def test_a_method_that_fits_may_be_another(own, march):
    new = extend(own("finetune"), march, {"method": "lwf"}, show="none")
    assert new.experiment.method == "lwf" and new.done


def test_folders_that_are_no_good_are_named(own, march, tmp_path):
    run = own("ridge")
    weights = run.session_folder(2) / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    with pytest.raises(RunError, match="model.safetensors is missing: a run grows from its weights"):
        extend(run, march)
    weights.write_bytes(kept)
    with pytest.raises(ConfigError, match="is the run itself"):
        extend(run, march, folder=run.folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty, and no run"):
        extend(run, march, folder=tmp_path / "full")
    with pytest.raises(RunError, match="has not finished a session"):
        for session in range(3):
            (run.session_folder(session) / "state.json").unlink()
        extend(Run(run.folder), march)


def test_a_class_without_an_image_is_named(own, march):
    path = march / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 7, "name": "elk"})
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"no image to learn from shows elk. Leave such classes out with classes=\[cat, dog"
    ):
        extend(own("ridge"), march)


def test_photos_that_were_all_looked_through_are_a_simulated_session(own, march, tmp_path):
    """Annotated with all classes and with none of the old ones, new data are what the protocol simulates."""
    dog = annotated(march, ("dog",))
    grown = extend(own("ridge"), dog, {"complete": True}, show="none")
    both = tmp_path / "both"  # one data set: the old images, and the new ones with their own label
    shutil.copytree(tmp_path / "old", both)
    for split, name in (("train2014", "instances_train2014"), ("val2014", "instances_val2014")):
        whole, more = (json.loads((root / "annotations" / f"{name}.json").read_text()) for root in (both, dog))
        whole["annotations"] = [one for one in whole["annotations"] if one["category_id"] != 40]
        for one in more["images"]:
            shutil.copy(dog / split / one["file_name"], both / split / f"new_{one['file_name']}")
            whole["images"].append({**one, "id": 1000 + one["id"], "file_name": f"new_{one['file_name']}"})
        moved = [{**one, "id": 5000 + one["id"], "image_id": 1000 + one["image_id"]} for one in more["annotations"]]
        whole["annotations"] += moved
        (both / "annotations" / f"{name}.json").write_text(json.dumps(whole))
    experiment = {"data.root": str(both), "protocol.increment": 1, "method": "ridge", "train.epochs": 1}
    simulated = krt.train("digits_demo", {**TINY, **experiment}, show="none")
    for session in range(4):
        one, other = simulated.model_state(session), grown.model_state(session)
        assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_run_that_nothing_grew_into_is_refused(own, march, tmp_path):
    new = extend(own("finetune"), march, show="none")
    with pytest.raises(RunError, match="the sessions are not there that it grew from. Grow one with krt extend"):
        krt.train(new.experiment, folder=tmp_path / "empty", show="none")
    with pytest.raises(RunError, match="has stored no exemplars: replay.per_class=0"):
        extend(own_again(new), march, {"replay.per_class": 3}, show="none")


def test_first_weights_are_not_needed_again(own, march):
    run = own("ridge")
    path = run.folder / "experiment.yaml"
    text = path.read_text()
    assert "weights: ''" in text
    path.write_text(text.replace("weights: ''", "weights: data/gone.safetensors", 1))
    assert extend(Run(run.folder), march, show="none").done


def test_the_command_says_what_became_of_the_old_tags(own, march, capsys):
    run = own("census")
    assert main(["extend", str(run.folder), str(march), "--folder", "outputs/new", "census.penalty=0.1"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].endswith("outputs/new")
    assert re.search(
        r"3 old classes: mAP [\d.]+ before, [\d.]+ now, on the same test images; 1 new \(dog\): mAP", said.err
    )
    assert main(["extend", str(run.folder), str(march), "--same", "dog"]) == 2
    assert "--same takes NAME=KNOWN" in capsys.readouterr().err
    assert main(["extend", str(run.folder), str(march.parent / "nowhere")]) == 2
    assert "There is no folder or table" in capsys.readouterr().err


def test_thresholds_are_kept_and_new_classes_get_their_own(own, march):
    run = own("ridge", data__validation=0.25)
    new = extend(run, march, show="none")
    old, now = run.calibration(2), new.calibration(3)
    came = (krt.open_dataset(new).arrived == 1).sum() + (krt.open_dataset(new, "validation").arrived == 1).sum()
    assert len(now.a) == 4 and now.images == old.images + came  # held out or not
    assert (now.thresholds[:3] == old.thresholds).all()


# ---- new data in a table ----


def table_of(march, rows):
    """A table of the first photos of march: a line for each, after the path."""
    photos = sorted((march / "train2014").iterdir())
    path = march.parent / "tags.csv"
    head, *rest = rows
    path.write_text("\n".join([f"path{head}", *(f"{photo}{row}" for photo, row in zip(photos, rest, strict=False))]))
    return path


def learned_from(new):
    whole = krt.open_dataset(new)
    return whole.select_images(whole.arrived == len(new.experiment.data.added), "train")


def test_a_zero_in_a_table_says_absent_and_a_blank_cell_nothing(own, march):
    rows = [",cat,dog,ant"] + [",0,1,", ",0,0,"] * 10
    new = extend(own("ridge"), table_of(march, rows), ["test=0"], show="none")
    fresh = learned_from(new)
    truth = {name: set(fresh.truth[:, fresh.classes.index(name)].astype(int)) for name in fresh.classes}
    assert truth == {"ant": {-1}, "bee": {-1}, "cat": {0}, "dog": {0, 1}}


def test_a_table_of_one_new_tag_on_every_photo(own, march):
    run = own("ridge")
    new = extend(run, table_of(march, [",dog"] + [",1"] * 12), ["test=0"], show="none")
    assert new.protocol.classes[-1] == "dog" and learned_from(new).labels[:, -1].sum() == 12
    blank = table_of(march, [",cat,dog"] + [",,1", ",1,1"] * 6)
    with pytest.raises(DataError, match="say blank=absent"):
        extend(run, blank, ["test=0"], show="none")
    cat = [learned_from(extend(run, blank, ["test=0", f"blank={what}"], show="none")) for what in BLANK]
    assert [set(one.truth[:, one.classes.index("cat")].astype(int)) for one in cat] == [{0, 1}, {-1, 1}]


def test_how_to_read_a_table_is_said_anew_for_each(own, march, tmp_path):
    """What the first data say of their table is not said of the next."""
    run = own("ridge")
    table = table_of(march, [",about,where"] + [",dog;cat,x", ",dog,y"] * 8)
    new = extend(run, table, ["tags=about", "separator=;", "split=none", "test=0.25"], show="none")
    one = new.experiment.data.added[0]
    assert (one.tags, one.separator, one.split) == ("about", ";", "none")
    assert "paths" not in new.experiment.to_dict()["data"]["added"][0]  # what is at its default is not written
    again = extend(new, march, ["classes=[cat]"], known="keep", show="none")
    assert again.experiment.data.added[1].tags == "" and again.done
    with pytest.raises(ConfigError, match="tags says how to read a table, and .*march has coco layout"):
        extend(run, march, ["tags=about"], show="none")


# ---- one new class alone ----


@pytest.fixture
def only_dog(march):
    """New data whose images all show dog, and of which nothing else is known."""
    return annotated(march, ("dog",))


def test_one_new_class_that_every_image_shows(own, only_dog, capsys):
    run = own("ridge", data__validation=0.25)
    calibration = run.calibration(2)
    assert not calibration.fitted.any()  # each session of this run had one class, too
    assert main(["extend", str(run.folder), str(only_dog), "--folder", "outputs/new"]) == 0
    said = capsys.readouterr()
    assert "1 new (dog): every image to test on shows dog, which says nothing of it" in said.err
    assert "nothing tells" not in said.out
    new = Run("outputs/new")
    assert np.isnan(new.session_state(3)["metrics"]["AP_seen"]["dog"]) and np.isnan(new.ap(3)["fixed"][3])
    assert np.isfinite(new.curve()).all()


def test_one_new_class_of_a_run_whose_classes_are_calibrated(own, only_dog):
    run = own("ridge", data__validation=0.5, protocol__increment=3)
    assert run.calibration(0).fitted.all()
    new = extend(run, only_dog, show="none")
    found = new.calibration(1)
    assert found.fitted.all() and 0 < found.thresholds[3] < 0.5 and found.b[3] != 0
    assert "the middle of the old classes' calibrations is taken" in (new.folder / "log.txt").read_text()


def test_what_learns_by_gradients_is_not_to_be_taught_one_class_alone(own, only_dog, capsys):
    new = extend(own("masked"), only_dog)
    words = "every image to learn from shows dog: nothing tells masked where it is absent"
    assert words in capsys.readouterr().out and words in (new.folder / "log.txt").read_text()


def test_images_are_counted_though_the_run_was_not_calibrated(own, march):
    run = own("ridge")
    new = extend(run, march, {"data.validation": 0.25}, show="none")
    seen = max(run.session_state(2)["shown"]["images"])
    came = (krt.open_dataset(new).arrived == 1).sum() + (krt.open_dataset(new, "validation").arrived == 1).sum()
    assert new.calibration(3).images == seen + came


def test_what_was_said_of_the_new_data_is_in_the_log(own, march):
    path = march / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    new = extend(own("ridge"), march, {"data.validation": 0.25}, show="none")
    log = (new.folder / "log.txt").read_text()
    assert "data: " in log and "crowd" in log and "are held out for validation" in log
