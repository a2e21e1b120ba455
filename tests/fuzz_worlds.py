"""What the fuzzer mutates and reads: a small world of every kind of file that comes from outside."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mutate
import numpy as np
import torch
from conftest import TINY, write_coco, write_voc
from PIL import Image
from safetensors.torch import save_file

from benchmarks.made_up_runs import finished
from krt_core.config import Data, load_experiment, load_experiments
from krt_core.data import open_dataset
from krt_core.data.store import load_image
from krt_core.errors import KRTError
from krt_core.lab.bench.matrix import expand, load_matrix
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.report import collect, runs_table, summary_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.presets import preset_names
from krt_core.runs.folder import Run
from krt_core.weights.checkpoint import inspect

BY_NAME = {
    ".json": mutate.json_of, "DONE": mutate.json_of, ".jsonl": mutate.json_lines_of, ".yaml": mutate.yaml_of,
    ".xml": mutate.xml_of, ".txt": mutate.lines_of, ".csv": mutate.table_of,
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """make: writes it into a folder. read: reads it as the package does. share: of all inputs."""

    make: Callable[[Path], object]
    read: Callable[[Path, Random], object]
    share: float = 1.0

    def mutation(self, name: str, rng: Random) -> Callable:
        """By its meaning mostly, else by its bytes."""
        path = Path(name)
        by_meaning = BY_NAME.get(path.suffix or path.name)
        return by_meaning if by_meaning and rng.random() < 0.75 else mutate.bytes_of


def each(*readings: Callable[[], object]) -> None:
    """Several readings, of which one that ends in an error of ours keeps no other from being tried."""
    last = None
    for reading in readings:
        try:
            reading()
        except KRTError as error:
            last = error
    if last is not None:
        raise last


# ---- configuration ----

PRESET = """# mine
extends: base.yaml
method: krt
data: {classes: [ant, bee], root: somewhere}
train:
  epochs: 3  # few
  lr: 1e-4
krt: {token_weight: 10}
"""
OVERRIDES = (
    "train.epochs=3", "train.lr=1e-4", "data.root=/a/b", "data.classes=[a, b]", "seed=1", "method=pod", "name=x",
    "krt.target=estimated", "model.mean=[0.1, 0.2, 0.3]", "protocol.order_seed=null", "replay={per_class: 2}",
    "train.compile=yes", "data.dataset=voc", "protocol.sizes=[2, 2]",
)  # fmt: skip


def _preset(folder: Path) -> None:
    base = load_experiment("digits_demo", TINY).to_yaml()
    (folder / "base.yaml").write_text(base, encoding="utf-8")
    (folder / "mine.yaml").write_text(PRESET, encoding="utf-8")


def _read_preset(folder: Path, rng: Random) -> None:
    for name in ("mine", "base"):
        load_experiment(folder / f"{name}.yaml").to_yaml()


def _overrides(folder: Path) -> None:
    (folder / "overrides.txt").write_text("\n".join(OVERRIDES), encoding="utf-8")


def _read_overrides(folder: Path, rng: Random) -> None:
    text = (folder / "overrides.txt").read_bytes().decode("utf-8", "surrogateescape")
    lines = [line for line in text.splitlines() if line]
    chosen = rng.sample(lines, min(len(lines), rng.randrange(1, 4)))
    key = rng.choice(OVERRIDES).partition("=")[0]
    value = mutate.tree_of(rng, rng.choice(mutate.ODD))
    whole = rng.choice((text, chosen[0] if chosen else "", value))
    each(
        lambda: load_experiment(rng.choice(preset_names()), chosen).to_yaml(),
        lambda: load_experiment("digits_demo", [f"{key}={rng.choice(mutate.TEXTS)}"]).run_name(),
        lambda: load_experiment("digits_demo", {key: value}).run_name(),
        lambda: load_experiments("digits_demo", ["krt"], whole, whole),
        lambda: load_experiments("digits_demo", whole, 0),
        lambda: load_experiments(whole, "krt", 0),
    )


def _matrix(folder: Path) -> None:
    _preset(folder)
    (folder / "matrix.yaml").write_text(
        "presets: [mine.yaml, digits_demo]\nmethods: [krt, pod, krt replay.per_class=2]\nseeds: [0, 1]\n"
        "class_orders: [null, 3]\noverrides: {train.epochs: 1}\nalso:\n  - methods: [joint]\n    seeds: [0]\n"
        "time_limit: 2h\nlaunch: local\nworkers: 1\nanalysis: [03_forgetting_analysis]\n"
        "slurm: {partition: p, minutes: 10, options: {account: a}}\n",
        encoding="utf-8",
    )


def _read_matrix(folder: Path, rng: Random) -> None:
    expand(load_matrix(folder / "matrix.yaml"))


# ---- data ----


def _read_coco(folder: Path, rng: Random) -> None:
    _read_data(folder, "coco", rng)


def _read_voc(folder: Path, rng: Random) -> None:
    _read_data(folder, "voc", rng)


def _read_data(folder: Path, kind: str, rng: Random) -> None:
    def read(split: str) -> None:
        for _ in range(2):  # the second time from the cache
            dataset = open_dataset(Data(dataset=kind, root=str(folder)), split)
        dataset.digest()
        load_image(dataset.path(rng.randrange(len(dataset))), 32)

    each(lambda: read("train"), lambda: read("test"))


def _coco(folder: Path) -> None:
    write_coco(folder, train=3, test=2)


def _voc(folder: Path) -> None:
    write_voc(folder, train=3, test=2)


def _table(folder: Path) -> None:
    """A table of each form, with its images."""
    for form, content in {
        "tags": "path,tags,split\n{0}.png,cat|dog,train\n{1}.png,dog,test\n{2}.png,cat,val\n",
        "columns": "id,path,cat,dog\n7,{0}.png,1,0\n8,{1}.png,0,1\n9,{2}.png,1,-1\n10,{3}.png,1,1\n",
        "rows": "path,tag\n{0}.png,cat\n{0}.png,dog\n{1}.png,dog\n{2}.png,cat\n{3}.png,cat\n",
    }.items():
        (folder / form).mkdir()
        (folder / form / "table.csv").write_text(content.format(*range(4)), encoding="utf-8")
        for number in range(4):
            Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / form / f"{number}.png")


def _read_table(folder: Path, rng: Random) -> None:
    each(*(lambda form=form: _read_data(folder / form, "table", rng) for form in ("tags", "columns", "rows")))


def _read_cached(folder: Path, rng: Random) -> None:
    """A cache of labels that has been cut short, or was written by something else, is made again or named."""
    root = folder / "coco"
    open_dataset(Data(dataset="coco", root=str(root)), "train")
    from krt_core.machine.home import data_dir

    caches = [path for path in (data_dir() / "cache").rglob("*") if path.is_file() and path.name.startswith("labels")]
    for path in caches:
        path.write_bytes(mutate.bytes_of(rng, path.read_bytes(), [b"", path.read_bytes()[:50]]))
    open_dataset(Data(dataset="coco", root=str(root)), "train")


def _image(folder: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm", "ico"):
        picture.save(folder / f"one.{kind}")
    Image.fromarray(rng.integers(0, 65535, (20, 24), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.random((20, 24), dtype=np.float32)).save(folder / "float.tiff")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "turned.jpeg", exif=turned)
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.jpeg")


def _read_images(folder: Path, rng: Random) -> None:
    each(*(lambda path=path: load_image(path, 32) for path in sorted(folder.iterdir())))


# ---- weights ----


def _weights(folder: Path) -> None:
    tensors = {"body.conv1.weight": torch.ones(2, 3, 1, 1), "fc.weight": torch.ones(80, 4), "fc.bias": torch.ones(80)}
    run = finished(folder=str(folder / "run"), classes=("ant", "bee", "cat", "dog"), overrides=["protocol.increment=2"])
    run.write_session(0, tensors, run.scores(0), {**run.session_state(0), "method": {}})
    shutil.copy(run.session_folder(0) / "model.safetensors", folder / "ours.safetensors")
    shutil.rmtree(folder / "run")
    save_file(tensors, folder / "plain.safetensors")
    torch.save(tensors, folder / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, folder / "nested.pth")
    torch.save({"model": {"ema": {"state_dict": tensors}}, "args": {"lr": 0.1}}, folder / "deep.pt")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    (folder / "arrays.pth").write_bytes(buffer.getvalue())


def _read_weights(folder: Path, rng: Random) -> None:
    each(*(lambda path=path: inspect(path) for path in sorted(folder.iterdir())))


# ---- run folders ----


def _run(folder: Path) -> None:
    overrides = ["protocol.increment=2", "data.dataset=coco", "data.root=somewhere"]
    run = finished(folder=str(folder / "run"), classes=("ant", "bee", "cat", "dog"), overrides=overrides, images=12)
    run.write_json(
        "progress.json", {"session": 1, "sessions": 2, "epoch": 0, "epochs": 2, "updated_at": "2026-01-01T00:00:00"}
    )
    lines = [{"session": s, "epoch": 0, "loss": 1.0, "images_per_second": 9.0, "mAP_seen": 50.0} for s in (0, 1)]
    for line in lines:
        run.append_epoch(line)
    of_others = dict.fromkeys(("learner", "method", "made_with", "best"))
    resume = {"session": 1, "epoch": 1, "model": {"a": torch.ones(2)}, "seconds": 1.0, **of_others}
    torch.save(resume, run.folder / "resume.pt")


def _read_run(folder: Path, rng: Random) -> None:
    def read(look: Callable[[Run], object]) -> Callable[[], object]:
        return lambda: look(Run(folder / "run"))

    def report() -> None:
        runs, left_out = collect([folder])
        if runs:
            summary_table(runs_table(runs)).to_string()
            if rng.random() < 0.03:  # a second each
                html_report(runs, left_out)
                latex_report(runs)

    each(
        read(lambda run: run.experiment), read(lambda run: run.done), read(lambda run: run.progress),
        read(lambda run: run.epochs), read(lambda run: run.leak), read(lambda run: run.curve()),
        read(lambda run: [run.scores(t) for t in range(run.finished_sessions)]), read(lambda run: run.forgetting()),
        read(lambda run: run.method_state(0)), read(lambda run: run.load_resume()), report,
    )  # fmt: skip


def _job(folder: Path) -> None:
    (folder / "jobs" / "a").mkdir(parents=True)
    from krt_core.lab.bench.matrix import Job

    files = JobFiles(folder, Job("a", "g", "02_train_sessions", {"seeds": [0]}, str(folder / "run")))
    files.write_job()
    files.write(state="failed", attempts=2, kind="error", reason="x")


def _read_job(folder: Path, rng: Random) -> None:
    files = JobFiles.of(folder / "jobs" / "a")
    files.current()


KINDS = {
    "preset": World(_preset, _read_preset, 2),
    "override": World(_overrides, _read_overrides, 1),
    "matrix": World(_matrix, _read_matrix, 0.5),
    "coco": World(_coco, _read_coco, 3),
    "voc": World(_voc, _read_voc, 3),
    "table": World(_table, _read_table, 3),
    "cache": World(lambda folder: _coco(folder / "coco"), _read_cached, 0.5),
    "image": World(_image, _read_images, 1.5),
    "weights": World(_weights, _read_weights, 1.5),
    "run": World(_run, _read_run, 1.5),
    "job": World(_job, _read_job, 0.5),
}
