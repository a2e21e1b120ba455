"""What the fuzzer mutates and reads: a small world of every kind of file that comes from outside."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
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
from krt_core.data import open_dataset, open_halves
from krt_core.data.store import load_image
from krt_core.errors import KRTError
from krt_core.lab import analysis, figures
from krt_core.lab.bench.matrix import expand, load_matrix
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.report import collect, labels_of, runs_table, summary_table
from krt_core.lab.report.html import html_report
from krt_core.lab.report.latex import latex_report
from krt_core.presets import preset_names
from krt_core.runs.calibration import Calibration
from krt_core.runs.folder import Run
from krt_core.runs.inherit import inherit
from krt_core.session import train
from krt_core.tagger.extend import check_method, extend, grown_experiment, look_at_new
from krt_core.weights.checkpoint import inspect

BY_NAME = {
    ".json": mutate.json_of, "DONE": mutate.json_of, ".jsonl": mutate.json_lines_of, ".yaml": mutate.yaml_of,
    ".xml": mutate.xml_of, ".txt": mutate.lines_of, ".csv": mutate.table_of, ".tsv": mutate.table_of,
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


def _other_tables(folder: Path) -> None:
    """The same as other programs write them."""
    import pyarrow
    import pyarrow.parquet

    _table(folder)
    for form in ("tags", "columns"):
        path = folder / form / "table.csv"
        lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        path.unlink()
        shutil.copytree(folder / form, folder / f"{form}_tsv")
        text = "\n".join("\t".join(line) for line in lines)
        (folder / f"{form}_tsv" / "table.tsv").write_text(text, encoding="utf-8")
        columns = {name: list(column) for name, *column in zip(*lines, strict=True)}
        if form == "tags":
            columns["tags"] = [cell.split("|") for cell in columns["tags"]]
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / form / "table.parquet")
    shutil.rmtree(folder / "rows")


def _read_tables(folder: Path, rng: Random) -> None:
    forms = sorted(path for path in folder.iterdir() if path.is_dir())
    each(*(lambda form=form: _read_data(form, "table", rng) for form in forms))


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
    for session, isotonic in ((0, False), (1, True)):
        classes = 2 * (session + 1)
        curves = tuple(np.array([[-1.0, 0, 2], [-2.0, 0.5, 1]]) for _ in range(classes)) if isotonic else ()
        made = Calibration(*np.full((3, classes), 0.5), np.arange(classes) > 0, curves, 12.0, np.full(classes, 4.0))
        made.write(run.session_folder(session) / "calibration.json")
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
        read(lambda run: [run.calibration(t).probabilities(run.scores(t).scores) for t in (0, 1)]),
        read(lambda run: run.calibrated()), read(lambda run: rng.random() < 0.1 and figures.reliability(run)),
    )  # fmt: skip


# ---- runs that have grown ----


@contextlib.contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """Home is beside the data, which are named from there: where the world lies makes no difference."""
    before = os.environ.get("KRT_HOME")
    os.environ["KRT_HOME"] = str(folder / "home")
    try:
        yield
    finally:
        os.environ.pop("KRT_HOME") if before is None else os.environ.update(KRT_HOME=before)


def _grown(folder: Path) -> None:
    """A run of ant and bee that has grown by a table with cat, calibrated; and more data for it to grow by."""
    write_coco(folder / "first", train=24, test=6)
    for name, seed in (("second", 5), ("third", 7)):
        source = open_dataset(Data(dataset="coco", root=str(write_coco(folder / "source", 16, 4, seed))), "train")
        (folder / name).mkdir()
        rows = ["path,tags,split"]
        for row in range(len(source)):
            shutil.copy(source.path(row), folder / name)
            shown = [tag for tag, there in zip(source.classes[:3], source.labels[row], strict=False) if there]
            rows.append(f"{source.path(row).name},{'|'.join(shown)},{'train' if row < 12 else 'test'}")
        (folder / name / "tags.csv").write_text("\n".join(rows), encoding="utf-8")
        shutil.rmtree(folder / "source")
    with at_home(folder):
        about = {"data.root": "../first", "data.classes": ["ant", "bee"], "method": "ridge", "data.validation": 0.4}
        run = train(load_experiment("digits_demo", {**TINY, **about}), "../old", show="none", device="cpu")
        new = extend(run, "../second", folder="../run", show="none", device="cpu")
        shutil.rmtree(run.folder)
        for path in [*new.folder.rglob("*.json"), new.folder / "experiment.yaml"]:
            path.write_text(path.read_text(encoding="utf-8").replace(str(folder.resolve()), ".."), encoding="utf-8")
        new = Run(new.folder)
        new.write_json("DONE", new.final_summary())
    shutil.rmtree(folder / "home")


def _read_grown(folder: Path, rng: Random) -> None:
    def grow() -> None:
        run = Run(folder / "run")
        sessions = len(run.protocol.sessions)
        found = look_at_new(run, sessions, "../third", {}, {}, (), "refuse", None)
        experiment = grown_experiment(run, sessions, found, {})
        check_method(run, sessions, experiment)
        inherit(run, sessions, experiment, folder / "new", found.notes)

    def look(read: Callable[[Run], object]) -> Callable[[], object]:
        return lambda: read(Run(folder / "run"))

    def report() -> None:
        if runs := collect([folder])[0]:
            summary_table(runs_table(runs))

    def split(kind: str) -> Callable[[], object]:
        return look(lambda run: open_dataset(run.experiment.data, kind).digest())

    with at_home(folder):
        each(
            split("train"), split("test"), split("validation"),
            look(lambda run: open_halves(run.experiment.data).notes),
            look(lambda run: labels_of([run])), report,
            look(lambda run: [run.calibration(t) for t in (0, 1)]),
            look(lambda run: [run.epochs_of(t) for t in (0, 1)]), look(lambda run: analysis.lost_images(run, 0)),
            look(lambda run: train(run.experiment, run.folder, show="none", device="cpu")), grow,
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
    "table": World(_table, _read_tables, 3),
    "tables": World(_other_tables, _read_tables, 2),
    "cache": World(lambda folder: _coco(folder / "coco"), _read_cached, 0.5),
    "image": World(_image, _read_images, 1.5),
    "weights": World(_weights, _read_weights, 1.5),
    "run": World(_run, _read_run, 1.5),
    "grown": World(_grown, _read_grown, 1),
    "job": World(_job, _read_job, 0.5),
}
