"""A matrix on Slurm, with stand-ins for its commands; tests/cluster has a trial of the real ones."""

import os
import signal
import threading
import time

import pytest
from bench_world import ENDS, KILLED, job_of

from krt_core.cli import main
from krt_core.lab.bench import slurm as slurm_module
from krt_core.lab.bench import state as s
from krt_core.lab.bench.matrix import expand, load_matrix
from krt_core.lab.bench.slurm import ClusterJob, _wanted
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.bench.worker import CODES

pytest_plugins = ("bench_world",)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch, srun and squeue that take every job and have none."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, says in (("sbatch", "Submitted batch job 42"), ("srun", ""), ("squeue", "")):
        (tools / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_module, "INTERVAL", 0.01)
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
    files = [JobFiles(folder, job) for job in jobs]
    assert [(f.folder / "slurm_id").read_text() for f in files] == ["42_0", "42_1", "42_2"]
    assert all(f.read().state == s.QUEUED for f in files)
    (slurm / "squeue").write_text("#!/bin/sh\n[ -f $0.once ] || echo '42_0 42_1 42_2'\ntouch $0.once\n")
    before = script.stat().st_mtime_ns
    main(["bench", str(path)])  # they are still in the queue: nothing is submitted twice
    assert [p.stat().st_mtime_ns for p in folder.glob("slurm/*_submission.sh")] == [before]


def test_without_slurm_it_says_so(matrix_file, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench", str(matrix_file(launch="slurm"))]) == 2
    assert "needs the commands of Slurm" in capsys.readouterr().err


def test_a_run_that_shares_its_batches_gets_as_many_gpus(matrix_file, slurm):
    path = matrix_file(launch="slurm", gpus_per_run=2)
    main(["bench", str(path)])
    (script,) = path.parent.glob("outputs/m/slurm/*_submission.sh")
    assert "#SBATCH --gpus-per-node=2" in script.read_text()


def test_what_a_worker_writes_at_once_is_kept(matrix_file, slurm):
    path = matrix_file(launch="slurm")
    (job,) = expand(load_matrix(path))
    files = JobFiles(path.parent / "outputs" / "m", job)
    stored = '{"state": "done", "attempts": 1}'
    (slurm / "sbatch").write_text(
        f"#!/bin/sh\necho '{stored}' > {files.folder}/state.json\necho 'Submitted batch job 42'\n"
    )
    main(["bench", str(path)])
    assert files.read() == s.State(s.DONE, attempts=1)


def test_a_controller_that_is_away_for_a_while_does_not_end_the_watch(matrix_file, slurm, capsys, monkeypatch):
    path = matrix_file(launch="slurm")
    (slurm / "squeue").write_text(  # the second and third question fail
        f"#!/bin/sh\necho x >> {slurm}/asked\nn=$(wc -l < {slurm}/asked)\n"
        "[ $n = 2 ] || [ $n = 3 ] && { echo 'not now' >&2; exit 1; }\n[ $n = 4 ] && echo 42\nexit 0\n"
    )
    assert main(["bench", str(path)]) == 1
    assert len((slurm / "asked").read_text().split()) == 5 and "the jobs go on" not in capsys.readouterr().out
    (slurm / "asked").unlink()
    monkeypatch.setattr(slurm_module, "PATIENCE", 0.0)
    assert main(["bench", str(path)]) == 2
    said = capsys.readouterr()
    assert "not now" in said.err and "the jobs go on; the same command watches them again" in said.out


def test_ctrl_c_ends_the_watching_not_the_jobs(matrix_file, slurm, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_module, "_watch", interrupt)
    assert main(["bench", str(matrix_file(launch="slurm"))]) == 130
    assert "the jobs go on" in capsys.readouterr().out


def test_an_analysis_is_repeated_after_new_runs(matrix_file):
    matrix = load_matrix(matrix_file(seeds=[0, 1], analysis=["03_forgetting_analysis"]))
    files = {job.id: JobFiles(matrix.folder, job) for job in expand(matrix)}
    one, two, analysis = files.values()

    def wanted(queue=(), retry_failed=False):
        return [f.job.id for f in _wanted(files, set(queue), list(files) if retry_failed else ())]

    one.write(state=s.FAILED)
    analysis.write(state=s.DONE, inputs=s.inputs_of([]))
    assert wanted() == [two.job.id, analysis.job.id]  # a new run
    (two.folder).mkdir(parents=True)
    (two.folder / "slurm_id").write_text("42_1")
    assert wanted(["42_1"]) == [analysis.job.id]  # one that Slurm has already
    with two.lock():
        assert wanted() == [analysis.job.id]  # one that is running
    two.write(state=s.FAILED)
    assert not wanted()
    assert wanted(retry_failed=True) == list(files)
    (analysis.folder / "slurm_id").write_text("43_0")
    assert wanted(["43_0"], retry_failed=True) == [one.job.id, two.job.id]


def test_a_limit_of_failures_is_not_for_slurm(matrix_file, slurm, capsys):
    assert main(["bench", str(matrix_file(launch="slurm")), "--max-failures", "1"]) == 2
    assert "--max-failures is for runs on this machine" in capsys.readouterr().err


# ---- what runs on a node ----


@pytest.fixture
def files(tmp_path):
    files = JobFiles(tmp_path, job_of(tmp_path))
    files.write_job()
    return files


@pytest.mark.parametrize(
    ("plan", "left", "kind"),
    [
        ([KILLED, KILLED, ENDS[""], ""], 1, ""),
        ([KILLED] * 4, 1, "killed"),
        ([ENDS["start-up"], "1 / 0", ENDS[""]], 1, "start-up"),
        ([ENDS["error"], ENDS[""]], 1, "error"),
        ([ENDS["stopped"], ENDS[""]], 1, "stopped"),
    ],
)
def test_a_cluster_job_is_tried_again_as_on_this_machine(files, stand, plan, left, kind):
    stand[files.job.id] = list(plan)
    code = ClusterJob()(str(files.folder))
    assert len(stand[files.job.id]) == left and files.read().kind == kind and files.read().exit_code == code
    goes_on = kind in ("killed", "stopped")
    assert files.read().state == (s.QUEUED if goes_on else s.FAILED if kind else s.DONE) and not files.held()


def test_a_cluster_job_leaves_one_that_runs_elsewhere(files, stand):
    with files.lock():
        assert ClusterJob()(str(files.folder)) == CODES["elsewhere"]


WARNED = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), open("{0}/written", "w").close(), os._exit(9)))
open("{0}/up", "w").close()
time.sleep(60)
"""


def test_a_cluster_job_ends_its_process_before_it_is_queued_again(files, stand):
    """Slurm's warning arrives while it waits for its process, in the same thread."""
    job, made = ClusterJob(), []
    stand[files.job.id] = [WARNED.format(files.folder)]
    argument = (str(files.folder), 90.0, 0)

    def warn():
        while not (files.folder / "up").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    def warned(*_):
        began = time.monotonic()
        made.extend([job.checkpoint(*argument), job.process.poll(), time.monotonic() - began])

    before = signal.signal(signal.SIGUSR2, warned)
    try:
        threading.Thread(target=warn).start()
        assert job(*argument) == CODES["stopped"]
    finally:
        signal.signal(signal.SIGUSR2, before)
    again, code, seconds = made
    assert again.args == argument and code == CODES["stopped"] and seconds < 10 and (files.folder / "written").exists()
