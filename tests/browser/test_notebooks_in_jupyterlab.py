"""Every notebook as its users have it: all cells run, controls change pictures, trainings stop and go on."""

import os
import time

import numpy as np
import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.browser


def test_1_data_splits(notebook):
    book = notebook("01_data_splits")
    book.run_all()
    assert book.page.locator(".jp-OutputArea img").count() >= 3


@pytest.mark.skipif("KRT_BROWSER_RUNS" in os.environ, reason="runs are given by KRT_BROWSER_RUNS")
def test_2_training(notebook, home):
    book = notebook("02_train_sessions")
    book.run_all(timeout=400)
    assert len(list((home / "outputs/demo/runs").glob("*/DONE"))) == 4


def test_3_forgetting(notebook, home):
    book = notebook("03_forgetting_analysis")
    book.run_all()
    explorer = book.explorer()
    book.screenshot(explorer.box, "forgetting")
    explorer.choose("curve of", "mAP_base")
    explorer.open("Heat map")
    explorer.choose("images", "test images with a seen class")
    explorer.open("Changes")
    explorer.open("Classes")
    book.screenshot(explorer.box, "forgetting_classes")
    explorer.open("Forgetting")
    explorer.choose("forgetting", "AP after own session − last")
    explorer.open("One session")
    explorer.press("session", "ArrowLeft")
    book.screenshot(explorer.box, "forgetting_session")
    # A click on a class of the heat map opens the images on which it was lost.
    explorer.choose("one run", "finetune")
    explorer.open("Heat map")
    explorer.box.locator("button", has_text="Save").click()
    explorer.box.locator(".widget-html-content", has_text="forgetting_heat_map.png").wait_for()
    assert {p.suffix for p in (home / "outputs/demo/figures").glob("forgetting_heat_map.*")} == {".png", ".pdf", ".csv"}
    box = explorer.image().bounding_box()
    explorer.image().click(position={"x": box["width"] * 0.3, "y": box["height"] * 0.25})
    explorer.box.locator("p", has_text="learned in session").wait_for()
    book.screenshot(explorer.box, "forgetting_lost")
    labels = book.explorer(1)
    labels.press("session", "ArrowLeft")
    labels.open("Classes")
    book.screenshot(labels.box, "pseudo_labels")


def test_4_attention(notebook):
    book = notebook("04_attention_maps")
    book.run_all()
    explorer = book.explorer()
    explorer.press("image, most lost first", "ArrowRight")
    explorer.press("model after session", "ArrowLeft")
    explorer.choose("class", "five")
    explorer.choose("beside it", "seed 1")
    book.screenshot(explorer.box, "attention_patches")
    explorer.open("Evidence")
    explorer.press("image, most lost first", "ArrowRight")
    explorer.press("image, most lost first", "ArrowLeft")
    book.screenshot(explorer.box, "attention_evidence")
    explorer.open("Tokens")
    explorer.press("model after session", "ArrowLeft")
    explorer.open("Mass")
    book.screenshot(explorer.box, "attention_mass")


def test_5_gallery(notebook):
    book = notebook("05_gallery")
    book.run_all()
    explorer = book.explorer()
    explorer.press("session", "ArrowLeft")
    book.screenshot(explorer.box, "gallery")
    explorer.open("Side by side")
    book.screenshot(explorer.box, "side_by_side")


def test_6_leaderboard(notebook):
    book = notebook("06_leaderboard")
    book.run_all()
    explorer = book.explorer()
    book.screenshot(explorer.box, "leaderboard")
    explorer.open("Differences")
    book.screenshot(explorer.box, "leaderboard_differences")


def test_7_grow_tags(notebook, home, tmp_path):
    book = notebook("07_grow_tags")
    book.run_all(timeout=400)
    (place,) = (home / "outputs/demo/grown").glob("*-session4")
    assert list(place.glob("run-*/DONE"))
    explorer = book.explorer()
    book.screenshot(explorer.box, "grow_tags")

    def said():
        return (place / "tags.csv").read_text()

    # A click says that the chosen tag is there, another one takes it back.
    before, box = said(), explorer.image().bounding_box()
    explorer.box.get_by_placeholder("a new tag").fill("odd")
    explorer.box.locator("button", has_text="Add tag").click()
    _until(lambda: ",odd" in said(), "the tag was not added")
    at = {"x": box["width"] * 0.08, "y": box["height"] * 0.3}
    for marks in (1, 0):
        explorer.image().click(position=at)
        _until(
            lambda marks=marks: sum(line[-2:] == ",1" for line in said().splitlines()) == marks, "no click was heard"
        )
        book.page.wait_for_timeout(1000)
    # The keyboard says the same.
    explorer.choose("tag", "eight")
    explorer.press("photo", "ArrowRight")
    explorer.box.locator("button", has_text="Mark photo").click()
    _until(lambda: "path,eight" in said(), "the button was not heard")
    assert said() != before
    # Photos as large as cameras make them come through, two at once.
    large = []
    for name in ("one.png", "two.png"):
        noise = np.random.default_rng(len(large)).integers(0, 255, (2500, 2500, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name, compress_level=0)  # 19 MB
        large.append(tmp_path / name)
    explorer.box.locator("input[type=file]").set_input_files(large)
    _until(lambda: (place / "photos/two.png").is_file(), "no photo came")
    explorer.box.locator(".widget-html-content", has_text="2 photos came").wait_for()
    assert {path.name: path.stat().st_size for path in (place / "photos").iterdir()} == {
        path.name: path.stat().st_size for path in large
    }
    # And one is dropped.
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8), "red").save(small)
    drop = """bytes => { const moved = new DataTransfer();
        moved.items.add(new File([new Uint8Array(bytes)], "small.png")); return moved; }"""
    moved = book.page.evaluate_handle(drop, list(small.read_bytes()))
    explorer.box.locator("label:has(input[type=file])").dispatch_event("drop", {"dataTransfer": moved})
    _until(lambda: (place / "photos/small.png").is_file(), "nothing was dropped")
    explorer.open("Evidence")
    explorer.open("Said")
    explorer.box.locator("td", has_text="odd").or_(explorer.box.locator("th", has_text="odd")).first.wait_for()


def test_training_goes_on_without_the_page_and_stops_when_told(notebook, home):
    book = notebook("live")
    book.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    book.page.locator("button", has_text="Start all").wait_for(timeout=90_000)
    runs = home / "outputs/live/runs"

    def training():
        return [p for p in psutil.process_iter() if "KRT_TRAINING" in _environment(p)]

    book.page.locator("button", has_text="Start all").click()
    _until(lambda: training() and _epochs(runs) >= 3, "no training has begun")
    book.page.locator(".jp-OutputArea img").first.wait_for()
    book.page.wait_for_timeout(2000)
    book.screenshot(book.page.locator(".jp-OutputArea-output:has(button)").first, "training")
    # The kernel is restarted and the page loaded again: the training goes on, and the cell finds it.
    book.restart_kernel()
    assert training()
    book.open()
    assert training()
    book.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    stop = book.page.locator("button:visible", has_text="Stop").first
    stop.wait_for(timeout=90_000)
    book.page.locator("button", has_text="Stop").nth(1).wait_for(timeout=60_000)  # of the row that runs
    stop.click()
    _until(lambda: not training(), "Stop did not stop the training")
    book.page.locator("button", has_text="Resume").first.wait_for(timeout=30_000)
    # And is resumed to its end.
    epochs = _epochs(runs)
    book.page.locator("button", has_text="Resume").first.click()
    _until(lambda: list(runs.glob("*/DONE")), "the training was not resumed", 240)
    assert _epochs(runs) > epochs


def test_reload_and_run_again_rebuild_the_view(notebook):
    book = notebook("03_forgetting_analysis")
    book.run_all()
    first = book.explorer().pictures()
    book.open()
    book.restart_kernel()
    book.run_all()
    assert len(first) == 1 and book.explorer().pictures() == first


def _epochs(runs):
    return sum(len(path.read_text().splitlines()) for path in runs.glob("*/metrics.jsonl"))


def _environment(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _until(condition, otherwise, seconds=90):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, otherwise
        time.sleep(0.2)
