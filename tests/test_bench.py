"""A matrix of runs: what it expands to, who may run what, and what survives."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import torch
import yaml
from conftest import TINY

from benchmarks import interruptions
from krt_core.bench import follower
from krt_core.bench import slots as slot_module
from krt_core.bench import state as s
from krt_core.bench.command import estimate
from krt_core.bench.matrix import Job, check_parameters, expand, load_matrix, matrix_names, seconds_of
from krt_core.bench.runner import Runner
from krt_core.bench.slots import Slots, find_slots, take
from krt_core.bench.slurm import ClusterJob
from krt_core.bench.state import JobFiles, State
from krt_core.bench.view import View, clock, table
from krt_core.bench.worker import CODES, Worker
from krt_core.cli import main
from krt_core.errors import ConfigError
from krt_core.processes import MARK, end_job, of_job, with_parent
from krt_core.processes import PARENT as PARENT_ID
from krt_core.session import train


@pytest.fixture
def matrix_file(tmp_path, coco_root):
    """Writes a matrix over the tiny COCO folder, with a preset beside it."""
    preset = {**{k: v for k, v in TINY.items() if "." not in k}, "extends": "digits_demo"}
    for key, value in {**TINY, "data.root": str(coco_root)}.items():
        if "." in key:
            section, name = key.split(".")
            preset.setdefault(section, {})[name] = value

    def write(**content):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset))
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump({"presets": ["tiny.yaml"], "analysis": [], "folder": "outputs/m", **content}))
        return path

    return write


# ---- the matrix ----


@pytest.mark.parametrize("name", matrix_names())
def test_shipped_matrices_expand(name):
    jobs = expand(load_matrix(name))
    assert len({job.id for job in jobs}) == len(jobs) and any(not job.trains for job in jobs)
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


# ---- slots ----


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(slot_module.tempfile, "gettempdir", lambda: str(tmp_path))
    return Slots("cpu", ("0", "1", "2"), 1)


def test_a_slot_is_taken_once_and_free_when_its_process_has_ended(machine):
    one, two = take(machine, 1), take(machine, 2)
    assert one.names == ("0",) and two.names == ("1", "2") and take(machine, 1) is None
    two.close()
    assert take(machine, 3) is None  # all or none: the two free ones are not kept
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=one.descriptors)
    one.close()
    assert "0" not in take(machine, 2).names  # the process holds it
    process.kill()
    process.wait()
    held = take(machine, 1)
    assert held.names == ("0",)
    with pytest.raises(ConfigError, match="asks for 4 cpu slots, this machine has 3"):
        take(machine, 4)


def test_threads_do_not_depend_on_what_is_done(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_slots().names == tuple("01234567") and find_slots().threads == 1
    assert find_slots(at_most=2).threads == 4 and find_slots(workers=3).threads == 2
    assert find_slots(workers=3).environment(("1",)) == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}


def test_gpus_are_locked_by_their_uuid(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aa'\necho '1, GPU-bb'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slot_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    slots = find_slots()
    assert slots.names == ("0", "1") and slots.environment(("1",))["CUDA_VISIBLE_DEVICES"] == "1"
    held = take(slots, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    assert take(find_slots(), 1).names == ("GPU-bb",) and held.names == ("0",)


# ---- states ----


def job_of(tmp_path, notebook="02_train_sessions", **parameters):
    return Job("job", "group", notebook, parameters, str(tmp_path / "run"))


def test_done_is_what_the_run_folder_says(tmp_path, tiny):
    files = JobFiles(tmp_path, job_of(tmp_path))
    assert files.current().state == s.QUEUED
    files.write(state=s.DONE)
    assert files.current().state == s.QUEUED  # a state file alone proves nothing
    run = train(tiny(train__epochs=1), tmp_path / "run", show="none")
    files.write(state=s.FAILED, kind="error", reason="so it was")
    assert files.current() == s.State(state=s.DONE)
    done = json.loads((run.folder / "DONE").read_text())
    (run.folder / "DONE").write_text(json.dumps({**done, "config_hash": "another"}))
    assert files.current().state == s.FAILED


def test_running_is_a_job_whose_process_holds_its_lock(tmp_path):
    files = JobFiles(tmp_path, job_of(tmp_path))
    files.write(state=s.RUNNING)
    assert files.current().state == s.QUEUED and files.current().kind == "killed"
    with files.lock() as mine:
        assert mine and files.held() and files.current().state == s.RUNNING
        with files.lock() as other:
            assert not other
        files.write_job()
        assert Worker(files.folder).go() == CODES["elsewhere"]
    assert not files.held()
    (files.folder / "state.json").write_text("{")
    assert files.current() == s.State()


def failure(tmp_path, error, kills=(0, 0), monkeypatch=None):
    files = JobFiles(tmp_path, job_of(tmp_path))
    files.write_job()
    counts = iter(kills)
    monkeypatch.setattr("krt_core.bench.worker.out_of_memory_kills", lambda: next(counts))
    return Worker(files.folder).explain(error)[0]


@pytest.mark.parametrize(
    ("name", "text", "kills", "kind"),
    [
        ("KeyError", "'cat'", (0, 0), "error"),
        ("OSError", "[Errno 28] No space left on device: 'resume.pt'", (0, 0), "disk full"),
        ("RunError", "exit code 1. Its last lines:\nRuntimeError: No space left on device", (0, 0), "disk full"),
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


def test_a_full_disk_is_named(tmp_path, tiny, monkeypatch):
    """Whatever writes a file of a run, the error says that the disk is full, and which file it was."""
    run = train(tiny(train__epochs=1), tmp_path / "run", show="none")
    scores, state = run.scores(0), run.session_state(0)

    def full(*_):
        raise OSError(28, "No space left on device")

    class FullFile(io.BufferedWriter):
        write = full

    monkeypatch.setattr("krt_core.home.os.fdopen", lambda handle, _: FullFile(io.FileIO(handle, "wb")))
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


# ---- processes ----


def test_what_a_job_has_started_ends_with_it(tmp_path):
    mark, code = str(tmp_path), "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    for arguments in (code, "import time; time.sleep(60)"):
        subprocess.Popen([sys.executable, "-c", arguments], env={**os.environ, MARK: mark}, start_new_session=True)
    time.sleep(0.5)
    assert len(of_job(mark)) == 2 and not of_job(mark + "x")
    assert end_job(mark, grace=0.5) == 2 and not of_job(mark)


PARENT = """
import os, subprocess
from krt_core.processes import parent_is_this, with_parent
child = subprocess.Popen(with_parent("waits"), env={**os.environ, **parent_is_this()})
print(child.pid, flush=True)
child.wait()
"""


def test_a_process_dies_with_its_parent(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def test_a_process_whose_parent_is_gone_does_not_start(monkeypatch, capfd):
    monkeypatch.setenv(PARENT_ID, "1234567")
    assert subprocess.run(with_parent("this"), timeout=20).returncode == 1 and not capfd.readouterr().out


def _alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


# ---- the runner, with a stand-in for its workers ----


class Stand(subprocess.Popen):
    """Starts a short Python process instead of a worker: it runs what ``plan`` says for the job's next attempt."""

    plan: ClassVar[dict] = {}

    def __init__(self, command, **options):
        job = os.path.basename(command[4])
        code = self.plan[job].pop(0)
        super().__init__([sys.executable, "-c", code], **options)


def test_a_reason_with_brackets_is_shown_as_it_is(matrix_file):
    matrix = load_matrix(matrix_file(methods=["krt"]))
    job = expand(matrix)[0]
    state = State(state=s.FAILED, kind="out of memory", reason="[enforce fail at alloc.cpp] cannot allocate")
    shown = View(live=False).console
    with shown.capture() as captured:
        shown.print(table({job.id: JobFiles(matrix.folder, job)}, {job.id: state}))
    assert "[enforce fail at alloc.cpp]" in captured.get()


@pytest.fixture
def run_matrix(matrix_file, monkeypatch, machine):
    def go(plan, **options):
        matrix = load_matrix(matrix_file(methods=["krt", "finetune"], workers=2))
        jobs = expand(matrix)
        Stand.plan = {job.id: list(plan[job.experiment.method]) for job in jobs}
        monkeypatch.setattr("krt_core.bench.runner.subprocess.Popen", Stand)
        runner = Runner(matrix, jobs, View(live=False), **options)
        runner.go()
        return {job.experiment.method: runner.states[job.id] for job in jobs}, Stand.plan

    return go


ENDS = {kind: f"import os; os._exit({code})" for kind, code in CODES.items()}
KILLED = "import os; os.kill(os.getpid(), 9)"


@pytest.mark.slow
def test_what_was_killed_goes_on_and_what_failed_waits_to_be_asked(run_matrix):
    states, left = run_matrix({"krt": [KILLED, ENDS["start-up"], ENDS[""]], "finetune": [ENDS["disk full"], ENDS[""]]})
    assert states["krt"].state == s.DONE and states["finetune"].state == s.FAILED
    assert states["finetune"].kind == "disk full" and [len(v) for v in left.values()] == [0, 1]
    states, left = run_matrix({"krt": [KILLED] * 4, "finetune": [ENDS[""]]})
    assert states["krt"].state == s.FAILED and "signal 9" in states["krt"].reason
    assert states["finetune"].state == s.FAILED and sum(map(len, left.values())) == 2  # not asked to be tried again
    states, left = run_matrix({"krt": [ENDS[""]], "finetune": [ENDS[""]]}, retry_failed=True)
    assert states["krt"].state == states["finetune"].state == s.DONE


@pytest.mark.slow
def test_a_limit_of_failures_ends_it(run_matrix, monkeypatch):
    monkeypatch.setattr("krt_core.bench.runner.find_slots", lambda *_: Slots("cpu", ("0",), 1))
    states, left = run_matrix({"krt": [ENDS["error"]], "finetune": [ENDS[""]]}, max_failures=1)
    assert states["krt"].state == s.FAILED and states["finetune"].state == s.QUEUED


# ---- everything for real ----


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_a_matrix_runs_once_survives_kills_and_gives_the_same(matrix_file, tmp_path, machine, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # slots of its own
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
    monkeypatch.setenv("TMPDIR", str(tmp_path))
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


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


# ---- clusters, with stand-ins for their commands; tests/cluster has trials of the real ones ----


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch, srun and squeue that take every job and have none."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, says in (("sbatch", "Submitted batch job 42"), ("srun", ""), ("squeue", "")):
        (tools / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


def test_jobs_are_submitted_to_slurm_as_one_array(matrix_file, slurm, capsys):
    asked = {"partition": "lab", "gpus": 2, "minutes": 90, "options": {"account": "us"}}
    path = matrix_file(seeds=[0, 1, 2], launch="slurm", slurm=asked, time_limit="2h")
    jobs = expand(load_matrix(path))
    assert main(["bench", str(path)]) == 1  # submitted, but not done
    folder = path.parent / "outputs" / "m"
    (script,) = folder.glob("slurm/*_submission.sh")
    text = script.read_text()
    for line in ("--array=0-2%3", "--partition=lab", "--time=90", "--gpus-per-node=2", "--account=us", "--requeue"):
        assert f"#SBATCH {line}" in text
    states = [JobFiles(folder, job).read() for job in jobs]
    assert [state.slot for state in states] == ["slurm 42_0", "slurm 42_1", "slurm 42_2"]
    assert all(state.state == s.QUEUED for state in states)
    (slurm / "squeue").write_text("#!/bin/sh\n[ -f $0.once ] || echo '42_0 42_1 42_2'\ntouch $0.once\n")
    before = script.stat().st_mtime_ns
    main(["bench", str(path)])  # they are still in the queue: nothing is submitted twice
    assert [p.stat().st_mtime_ns for p in folder.glob("slurm/*_submission.sh")] == [before]


def test_without_slurm_it_says_so(matrix_file, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench", str(matrix_file(launch="slurm"))]) == 2
    assert "needs the commands of Slurm" in capsys.readouterr().err


def test_a_cluster_job_ends_its_process_before_it_is_queued_again(tmp_path, monkeypatch):
    job = ClusterJob()
    job.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    again = job.checkpoint(str(tmp_path), 90.0)
    assert job.process.poll() is not None and again.args == (str(tmp_path), 90.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"launch": "torchrun"}, ["nnodes"]),
        ({"nnodes": 2}, ["launch: torchrun"]),
        ({"launch": "torchrun", "nnodes": 2}, ["--rendezvous HOST:PORT"]),
        ({"launch": "torchrun", "nnodes": 2, "rendezvous": "here"}, ["HOST:PORT", "here"]),
    ],
)
def test_several_machines_need_to_know_where_to_meet(matrix_file, content, words, capsys):
    assert main(["bench", str(matrix_file(**content))]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_another_machine_follows_the_main_one(matrix_file, monkeypatch):
    path = matrix_file(launch="torchrun", nnodes=2, rendezvous="here:1", seeds=[0, 1])
    matrix = load_matrix(path)
    jobs = expand(matrix)
    assert jobs[0].parameters["machines"] == 2 and jobs[0].parameters["rendezvous"] == "here:1"
    files, seen = [JobFiles(matrix.folder, job) for job in jobs], []
    plan = iter(
        [
            lambda: files[0].write(state=s.RUNNING, attempts=1),
            lambda: files[0].write(state=s.RUNNING, attempts=2),
            lambda: (files[0].write(state=s.DONE), files[1].write(state=s.RUNNING, attempts=1)),
            lambda: (files[1].write(state=s.DONE), follower.tell_followers(matrix)),
        ]
    )
    monkeypatch.setattr(follower.time, "sleep", lambda _: next(plan)())
    monkeypatch.setattr(follower, "_join", lambda m, f, rank: seen.append((f.job.id, rank)))
    monkeypatch.setattr(follower, "_end", lambda *_: None)
    assert follower.follow(matrix, jobs, 1, View(live=False)) == 0
    assert seen == [(jobs[0].id, 1), (jobs[0].id, 1), (jobs[1].id, 1)]  # each attempt once
