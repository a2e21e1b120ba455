"""A matrix of runs: what it expands to, who may run what, and what survives."""

import errno
import io
import json
import os
import signal

import numpy as np
import pytest
import torch
from bench_world import job_of, wait_for

from benchmarks import interruptions
from krt_core.cli import main
from krt_core.config import Data
from krt_core.data import open_dataset
from krt_core.data.store import ImageStore
from krt_core.errors import ConfigError
from krt_core.lab.bench import state as s
from krt_core.lab.bench.command import estimate
from krt_core.lab.bench.matrix import expand, load_matrix, matrix_names, seconds_of
from krt_core.lab.bench.notebooks import check_parameters
from krt_core.lab.bench.state import JobFiles, State
from krt_core.lab.bench.view import View, clock, table
from krt_core.lab.bench.worker import CODES, Worker
from krt_core.machine.home import data_dir
from krt_core.session import train

pytest_plugins = ("bench_world",)


# ---- the matrix ----


@pytest.mark.parametrize("name", matrix_names())
def test_shipped_matrices_expand(name):
    matrix = load_matrix(name)
    jobs = expand(matrix)
    assert len({job.id for job in jobs}) == len(jobs)
    assert not matrix.analysis or any(job.trial or not job.trains for job in jobs)
    assert [job.id for job in jobs] == [job.id for job in expand(load_matrix(name))]


def test_a_matrix_is_every_combination_once(matrix_file):
    path = matrix_file(
        methods=["krt", "krt replay.per_class=2", "finetune"], seeds=[0, 1], class_orders=[None, 3],
        overrides=[{"train.lr": "1e-4"}, {"train.epochs": 1}], also=[{"methods": ["joint", "krt"], "seeds": [0]}],
        analysis=["03_forgetting_analysis", "04_attention_maps"],
    )  # fmt: skip
    jobs = expand(load_matrix(path))
    trainings = [job for job in jobs if job.trains]
    assert len(trainings) == 3 * 2 * 2 * 2 + 2 * 2  # `also` adds joint; its krt runs are there already
    assert {job.group for job in jobs} == {"tiny-B0-C2", "tiny-B0-C2-order3"}
    first = trainings[0]
    assert first.experiment.train.lr == 1e-4 and first.parameters["overrides"] == {"train.lr": "1e-4"}
    assert first.parameters["methods"] == ["krt"] and first.run_folder.endswith(f"tiny-B0-C2/runs/{first.id}")
    analyses = [job for job in jobs if not job.trains]
    assert len(analyses) == 4 and all(len(job.needs) == 14 for job in analyses)


def test_a_notebook_about_a_method_needs_a_run_of_it(matrix_file):
    jobs = expand(
        load_matrix(matrix_file(methods=["finetune"], analysis=["03_forgetting_analysis", "04_attention_maps"]))
    )
    assert [job.notebook for job in jobs] == ["02_train_sessions", "03_forgetting_analysis"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"method": ["krt"]}, ["unknown key 'method'", "methods"]),
        ({"methods": "krt"}, ["methods", "list"]),
        ({"methods": ["krtt"]}, ["krtt", "krt"]),
        ({"methods": ["krt replay.perclass=2"]}, ["replay.perclass", "per_class"]),
        ({"overrides": {"train.epochz": 3}}, ["train.epochz", "epochs"]),
        ({"overrides": [3]}, ["overrides[0]", "section"]),
        ({"seeds": ["a"]}, ["seeds[0]", "whole number"]),
        ({"presets": ["coco_b0c11"]}, ["coco_b0c11", "coco_b0c10"]),
        ({"presets": None}, ["presets"]),
        ({"gpus_per_run": 0}, ["gpus_per_run", "at least 1"]),
        ({"gpus_per_run": 99}, ["gpus_per_run", "batch_size"]),
        ({"time_limit": "soon"}, ["time_limit", "90m"]),
        ({"analysis": ["03_forgeting"]}, ["03_forgeting", "03_forgetting_analysis"]),
        ({"launch": "slurmm"}, ["launch", "slurm"]),
        ({"slurm": {"partitions": "gpu"}}, ["slurm.partitions", "partition"]),
        ({"also": [{"gpus_per_run": 2}]}, ["also", "gpus_per_run"]),
        ({"also": [{"seed": [1]}]}, ["also", "seeds"]),
        ({"also": {"presets": ["digits_demo"]}}, ["matrix.yaml", "also must be a list"]),
        ({"also": ["digits_demo"]}, ["matrix.yaml", "also must be a list"]),
        ({"time_limit": "-5m"}, ["time_limit", "above 0"]),
        ({"launch": "torchrun", "nnodes": 2}, ["launch: torchrun", "krt train --nnodes N --rendezvous HOST:PORT"]),
        ({"also": [{"seeds": [1]}], "rendezvous": "here:1"}, ["rendezvous", "krt train --nnodes"]),
    ],
)
def test_a_wrong_matrix_stops_before_anything_starts(matrix_file, content, words, capsys):
    path = matrix_file(**content)
    assert main(["bench", str(path)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (path.parent / "outputs" / "m").exists()


def test_notebook_parameters_are_checked_by_name_and_type():
    with pytest.raises(ConfigError, match=r"no parameter 'foldr'. Did you mean 'folder'"):
        check_parameters("03_forgetting_analysis", {"foldr": "x"})
    with pytest.raises(ConfigError, match="processes must be of type int"):
        check_parameters("02_train_sessions", {"processes": "2"})
    with pytest.raises(ConfigError, match="methods must be of type list"):
        check_parameters("02_train_sessions", {"methods": "krt"})


def test_durations():
    assert [seconds_of(t) for t in ("", "45s", "1.5m", "12h", "2d")] == [None, 45, 90, 43200, 172800]
    assert clock(3723) == "1:02:03" and clock(59.6) == "1:00"
    for wrong in ("0s", "-5m", "infh", "nand", "h", "5"):
        with pytest.raises(ConfigError, match="above 0"):
            seconds_of(wrong)


# ---- states ----


def test_done_is_what_the_run_folder_says(tmp_path, tiny):
    files = JobFiles(tmp_path, job_of(tmp_path))
    assert files.current().state == s.QUEUED
    files.write(state=s.DONE)
    assert files.current().state == s.QUEUED  # a state file alone proves nothing
    run = train(tiny(train__epochs=1), tmp_path / "run", show="none")
    files.write(state=s.FAILED, kind="error", reason="so it was")
    assert files.current() == s.State(state=s.DONE)
    for cut in (dict(state=s.RUNNING, kind=""), dict(state=s.QUEUED, kind="stopped")):
        files.write(**cut)
        assert files.current().state == s.QUEUED  # its notebook has figures to draw
    files.write(state=s.FAILED)
    done = json.loads((run.folder / "DONE").read_text())
    (run.folder / "DONE").write_text(json.dumps({**done, "config_hash": "another"}))
    assert files.current().state == s.FAILED


def test_running_is_a_job_whose_process_holds_its_lock(tmp_path):
    files = JobFiles(tmp_path, job_of(tmp_path))
    files.write(state=s.RUNNING)
    assert files.current().state == s.QUEUED and files.current().kind == "killed"
    with files.lock():
        assert files.held() and files.current().state == s.RUNNING
        assert files.current(mine=True).state == s.QUEUED  # who holds it knows better
        assert files.lock() is None
        files.write_job()
        assert Worker(files.folder).go() == CODES["elsewhere"]
    assert not files.held()
    (files.folder / "state.json").write_text("{")
    assert files.current() == s.State()


def failure(tmp_path, error, kills=(0, 0), monkeypatch=None):
    files = JobFiles(tmp_path, job_of(tmp_path))
    files.write_job()
    counts = iter(kills)
    monkeypatch.setattr("krt_core.lab.bench.worker.out_of_memory_kills", lambda: next(counts))
    return Worker(files.folder).explain(error)[0]


@pytest.mark.parametrize(
    ("name", "text", "kills", "kind"),
    [
        ("KeyError", "'cat'", (0, 0), "error"),
        ("OSError", "[Errno 28] No space left on device: 'resume.pt'", (0, 0), "disk full"),
        ("RunError", "exit code 1. Its last lines:\nRuntimeError: No space left on device", (0, 0), "disk full"),
        ("OSError", "[Errno 122] Disk quota exceeded: 'resume.pt'", (0, 0), "disk full"),
        ("RuntimeError", "CUDA error: out of memory\nCUDA kernel errors might be", (0, 0), "out of memory"),
        ("OSError", "[Errno 12] Cannot allocate memory", (0, 0), "out of memory"),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", (0, 0), "out of memory"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried", (0, 0), "out of memory"),
        ("RunError", "the training ended with exit code 137. Its last lines:", (0, 0), "killed"),
        ("RunError", "the training ended with exit code 137. Its last lines:", (3, 4), "out of memory"),
        ("RunError", "the training ended with exit code 1. Its last lines:", (3, 4), "error"),
    ],
)
def test_failures_are_told_apart(tmp_path, monkeypatch, name, text, kills, kind):
    from papermill.exceptions import PapermillExecutionError

    error = PapermillExecutionError(3, 1, "cell", name, text, [])
    assert failure(tmp_path, error, kills, monkeypatch) == kind


def test_failures_outside_a_cell_are_told_apart(tmp_path, monkeypatch):
    from nbclient.exceptions import DeadKernelError

    assert failure(tmp_path, DeadKernelError("Kernel died"), (0, 0), monkeypatch) == "killed"
    assert failure(tmp_path, DeadKernelError("Kernel died"), (0, 1), monkeypatch) == "out of memory"
    assert failure(tmp_path, RuntimeError("Kernel didn't respond"), (0, 0), monkeypatch) == "start-up"
    assert failure(tmp_path, OSError(28, "No space left on device"), (0, 0), monkeypatch) == "disk full"
    assert failure(tmp_path, OSError(errno.EDQUOT, "over it"), (0, 0), monkeypatch) == "disk full"


def test_a_run_with_a_gpu_slot_never_takes_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("the notebook ran"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    files = JobFiles(tmp_path, job_of(tmp_path))
    files.write_job()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    try:
        assert Worker(files.folder, "gpu 7", gpus=1).go() == CODES["start-up"]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "CUDA sees 0 of 1 GPUs here (CUDA_VISIBLE_DEVICES=7)" in files.read().reason


def test_a_full_disk_under_the_image_cache_is_named(coco_root, monkeypatch):
    """A memory map would meet it as SIGBUS, which kills without a word."""
    real = os.posix_fallocate

    def full(handle, offset, size):
        if size > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, offset, size)

    data = open_dataset(Data(dataset="coco", root=str(coco_root)), "train")
    monkeypatch.setattr("krt_core.data.store.os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.part'"):
        ImageStore(data, 32)
    assert not list(data_dir().rglob("*.part"))
    monkeypatch.setattr("krt_core.data.store.os.posix_fallocate", real)
    assert ImageStore(data, 32).rows(np.arange(2)).shape == (2, 32, 32, 3)


def test_a_folder_one_may_not_write_to_is_named_without_a_traceback(matrix_file, monkeypatch, capsys):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("krt_core.lab.bench.state.atomic_write", refuse)
    assert main(["bench", str(matrix_file())]) == 2
    said = capsys.readouterr().err
    assert "job.json: Permission denied. Results go elsewhere with --folder" in said and "Traceback" not in said


def test_a_full_disk_is_named(tmp_path, tiny, monkeypatch):
    """Whatever writes a file of a run, the error says that the disk is full, and which file it was."""
    run = train(tiny(train__epochs=1), tmp_path / "run", show="none")
    scores, state = run.scores(0), run.session_state(0)

    def full(*_):
        raise OSError(28, "No space left on device")

    class FullFile(io.BufferedWriter):
        write = full

    monkeypatch.setattr("krt_core.machine.home.os.fdopen", lambda handle, _: FullFile(io.FileIO(handle, "wb")))
    for write in (
        lambda: run.save_resume({"model": {"w": torch.zeros(1000)}}),
        lambda: run.write_json("progress.json", {}),
        lambda: run.write_session(0, run.model_state(0), scores, state),
    ):
        with pytest.raises(OSError, match=rf"No space left on device: '{run.folder}"):
            write()
    assert not [p for p in run.folder.rglob("*") if p.name.endswith(".tmp")]


def test_an_estimate_goes_by_finished_runs(tmp_path, tiny, matrix_file):
    run = train(tiny(train__epochs=1), tmp_path / "run", show="none")
    seconds = run.summary["seconds"]
    jobs = expand(load_matrix(matrix_file(methods=["krt", "krt train.epochs=1", "finetune"])))
    assert estimate(jobs[1], [run]) == seconds
    assert estimate(jobs[0], [run]) == pytest.approx(2 * seconds)  # twice the epochs
    assert estimate(jobs[2], [run]) is None


def test_a_reason_with_brackets_is_shown_as_it_is(matrix_file):
    matrix = load_matrix(matrix_file(methods=["krt"]))
    job = expand(matrix)[0]
    state = State(state=s.FAILED, kind="out of memory", reason="[enforce fail at alloc.cpp] cannot allocate")
    shown = View(live=False).console
    with shown.capture() as captured:
        shown.print(table({job.id: JobFiles(matrix.folder, job)}, {job.id: state}))
    assert "[enforce fail at alloc.cpp]" in captured.get()


# ---- everything for real ----


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_a_matrix_runs_once_survives_kills_and_gives_the_same(matrix_file, tmp_path, machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = matrix_file(methods=["krt replay.per_class=2"], seeds=[0, 1], analysis=["03_forgetting_analysis"],
                       overrides={"train.epochs": 12})  # fmt: skip
    assert interruptions.main([str(path), "--kills", "4", "--pause", "6", "12", "--folder", str(tmp_path / "two")]) == 0
    folder = tmp_path / "two" / "killed"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("DONE")}
    assert main(["bench", str(path), "--folder", str(folder)]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("DONE")} and len(before) == 2
    assert (folder / "tiny-B0-C2" / "forgetting.csv").is_file()
    assert all(json.loads(p.read_text())["state"] == s.DONE for p in folder.glob("jobs/*/state.json"))
    state = json.loads(next((tmp_path / "two" / "plain").glob("jobs/*s0/state.json")).read_text())
    assert state["state"] == s.DONE and state["host"] and state["versions"]["torch"] and state["seconds"] > 0


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(300)
def test_being_asked_to_stop_and_running_out_of_time(matrix_file, tmp_path, machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = matrix_file(overrides={"train.epochs": 5000})
    folder = tmp_path / "outputs" / "m"
    process = interruptions.start(str(path), folder, tmp_path / "log")
    progress = wait_for(lambda: next(folder.rglob("progress.json"), None), 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130 and interruptions.left_after(folder) < 10
    state = json.loads(next(folder.glob("jobs/*/state.json")).read_text())
    assert (state["state"], state["kind"]) == (s.QUEUED, "stopped") and progress.is_file()
    assert main(["bench", str(path), "--time-limit", "15s"]) == 1
    state = json.loads(next(folder.glob("jobs/*/state.json")).read_text())
    assert (state["state"], state["kind"], state["attempts"]) == (s.FAILED, "time limit", 2)
    assert interruptions.left_after(folder) < 10
