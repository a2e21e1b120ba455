"""JupyterLab as its users have it, in a real browser: one server, one workbench folder with short trainings.

KRT_BROWSER_RUNS names a folder of finished runs on the digits to look at instead, KRT_SCREENSHOTS one for pictures.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
SHORT = {"overrides": {"train.epochs": 2}, "methods": ["krt", "finetune"]}
PARAMETERS = {  # name of a copy → the notebook, and what its first code cell is to say instead
    "01_data_splits": ("01_data_splits", {}),
    "02_train_sessions": ("02_train_sessions", {**SHORT, "seeds": [0, 1]}),
    "03_forgetting_analysis": ("03_forgetting_analysis", {}),
    "04_attention_maps": ("04_attention_maps", {"pointing": 20}),
    "05_gallery": ("05_gallery", {}),
    "06_leaderboard": ("06_leaderboard", {}),
    "07_grow_tags": ("07_grow_tags", {"first": {"method": "census", "model.freeze": "first", "train.epochs": 2}}),
    "live": ("02_train_sessions", {**SHORT, "watch": True, "folder": "outputs/live"}),
}


TOKEN = secrets.token_hex(16)  # whoever else is on this machine must not run code by this server
IDLE = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The workbench folder of the whole session: the notebooks, with parameters for short trainings."""
    folder = tmp_path_factory.mktemp("workbench")
    (folder / "notebooks").mkdir()
    for copy, (name, parameters) in PARAMETERS.items():
        book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", ()))
        cell["source"] = "".join(cell["source"]) + "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
        (folder / "notebooks" / f"{copy}.ipynb").write_text(json.dumps(book))
    if runs := os.environ.get("KRT_BROWSER_RUNS"):
        shutil.copytree(runs, folder / "outputs/demo/runs")
    return folder


@pytest.fixture(scope="session")
def lab(home):
    """Address of a JupyterLab that serves the notebooks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = home / "jupyter"
    environment = {
        **os.environ, "KRT_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        **{f"JUPYTER_{name}_DIR": str(state / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
    }  # fmt: skip
    settings = state / "settings/@jupyterlab"
    (settings / "notebook-extension").mkdir(parents=True)
    (settings / "apputils-extension").mkdir()
    # Cells off screen are to be drawn too, and no question about news may cover the page.
    (settings / "notebook-extension/tracker.jupyterlab-settings").write_text('{"windowingMode": "defer"}')
    quiet = '{"fetchNews": "false", "checkForUpdates": false}'
    (settings / "apputils-extension/notification.jupyterlab-settings").write_text(quiet)
    log = (home / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
         "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True",
         "--allow-root", f"--ServerApp.root_dir={home}"],
        env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            if server.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((home / "lab.log").read_text()[-3000:])
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.fail("No Chromium: apt-get install chromium, or put one on the PATH.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Notebook:
    """A notebook open in JupyterLab."""

    def __init__(self, page, address, name):
        self.page, self.address, self.name = page, address, name
        self.open()

    def open(self):
        self.page.goto(f"{self.address}/lab/tree/notebooks/{self.name}.ipynb?reset&token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        self.page.wait_for_function(IDLE, timeout=90_000)

    def run_all(self, timeout=240):
        """Run all cells and wait for them; fails with the first error a cell shows."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        cells = self.page.locator(".jp-CodeCell")
        until = time.time() + timeout
        while time.time() < until:
            prompts = cells.locator(".jp-InputPrompt").all_inner_texts()
            if prompts and all(prompt.strip("[]: ").isdigit() for prompt in prompts):
                break
            if self.errors():
                break
            time.sleep(0.3)
        assert not self.errors(), self.errors()[0][:3000]
        assert all(prompt.strip("[]: ").isdigit() for prompt in prompts), f"{self.name}: cells still running {prompts}"

    def explorer(self, number=0):
        """The n-th explorer of the notebook."""
        return Shown(self.page, self.page.locator(".jp-OutputArea-output .widget-vbox:has(> .widget-tab)").nth(number))

    def errors(self):
        error = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
        wrong = f'{error}, .jp-OutputArea pre:text("Traceback")'
        return self.page.locator(wrong).all_inner_texts()

    def restart_kernel(self):
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        self.page.wait_for_timeout(1000)
        self.page.wait_for_function(IDLE, timeout=90_000)

    def screenshot(self, locator, name):
        """Kept under the folder named by KRT_SCREENSHOTS, where there is one."""
        if folder := os.environ.get("KRT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            locator.screenshot(path=str(Path(folder) / f"{name}.png"))


class Shown:
    """An explorer as it stands on the page."""

    def __init__(self, page, box):
        self.page, self.box = page, box
        box.scroll_into_view_if_needed()

    def open(self, title):
        """Open a view."""
        self.box.locator(".lm-TabBar-tabLabel", has_text=title).first.click()
        self.box.locator("img:visible, .widget-html-content:visible p").first.wait_for()
        self.page.wait_for_timeout(1000)

    def image(self):
        return self.box.locator("img:visible").first

    def pictures(self):
        """A number per picture in the open view that changes with its pixels."""
        sums = """images => Promise.all(images.filter(i => i.offsetParent).map(async image => {
            const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
            return bytes.reduce((sum, byte) => (31 * sum + byte) >>> 0, 7); }))"""
        return self.box.locator("img").evaluate_all(sums)

    def control(self, label):
        """The slider handle or menu with a label."""
        row = self.box.locator(".widget-inline-hbox", has=self.page.locator(f'.widget-label:text-is("{label}")'))
        return row.locator(".noUi-handle, select").first

    def press(self, label, key):
        """Move a slider by the keyboard; returns seconds until the picture has changed."""
        before, began = self.pictures(), time.time()
        self.control(label).focus()
        self.page.keyboard.press(key)
        return self.changed(before, began)

    def choose(self, label, option):
        """Choose what a menu offers with these words in it; returns seconds until the picture has changed."""
        before, began = self.pictures(), time.time()
        options = self.control(label).locator("option").all_text_contents()
        index = next(i for i, o in enumerate(options) if option in o.replace("\xa0", " "))
        self.control(label).select_option(index=index)
        return self.changed(before, began)

    def changed(self, before, began, timeout=15):
        """Seconds until other pictures are there; they must stay for a moment."""
        while time.time() - began < timeout:
            now, seconds = self.pictures(), time.time() - began
            if now and now != before:
                self.page.wait_for_timeout(200)
                if self.pictures() == now:
                    return seconds
            time.sleep(0.02)
        pytest.fail("the picture did not change")


@pytest.fixture
def notebook(browser, lab):
    pages = []

    def open_one(name):
        page = browser.new_page(viewport={"width": 1500, "height": 1700})
        pages.append(page)
        return Notebook(page, lab, name)

    yield open_one
    for page in pages:
        page.close()
