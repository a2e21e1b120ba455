"""``krt train | bench | data | inspect | import | export | report | presets``."""

from __future__ import annotations

import argparse
import errno
import os
import sys

from .errors import ConfigError, DataError, KRTError, did_you_mean

NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
ELSEWHERE = "Results go elsewhere with --folder, everything with KRT_HOME."


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except KRTError as error:
        if os.environ.get("RANK", "0") == "0" or not isinstance(error, (ConfigError, DataError)):  # once is enough
            print(f"krt: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RANK" not in os.environ or "Connection closed by peer" not in str(error):
            raise
        return 3  # another process of this training has failed, and has said why
    except KeyboardInterrupt:
        print("krt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `krt report | head`
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        way_out = f". {ELSEWHERE}" if error.errno in NO_PLACE else ""
        print(f"krt: {error.filename}: {error.strerror}{way_out}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="krt", description="Multi-label class-incremental learning with KRT.")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="run (or continue) an experiment")
    train.add_argument("preset", help="a shipped preset (see `krt presets`) or a YAML file")
    train.add_argument("overrides", nargs="*", help="key=value, as in method=finetune train.epochs=3 seed=1")
    train.add_argument("--folder", help="run folder; default outputs/<name>-<method>-<hash>-s<seed>")
    train.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    train.add_argument(
        "--allow-leak", action="store_true", help="accept weights that were trained on the labels to be learned"
    )
    train.add_argument(
        "--max-steps", type=int, help="end each epoch after so many steps: a quick look, never marked done"
    )
    train.add_argument("--processes", type=int, default=1, help="share every batch among so many (one GPU each)")
    train.add_argument("--nnodes", type=int, default=1, help="machines that share the run; start this on each of them")
    train.add_argument("--node-rank", type=int, help="which of them this is, from 0; default: $SLURM_NODEID, else 0")
    train.add_argument("--rendezvous", default="", metavar="HOST:PORT", help="where they meet: an address of rank 0")
    train.set_defaults(command=_train)

    bench = commands.add_parser("bench", help="run a matrix of experiments, headless")
    bench.add_argument("matrix", help="a shipped matrix (digits, paper_coco, paper_voc, voc_sub) or a YAML file")
    bench.add_argument(
        "--dry-run", action="store_true", help="list the runs, what is done, and how long the rest may take"
    )
    bench.add_argument("--status", action="store_true", help="show how far it is, and why what failed did")
    bench.add_argument("--folder", help="where everything goes; default outputs/<name of the matrix>")
    bench.add_argument("--gpus-per-run", type=int, help="GPUs (or shares of the cores) that share the batches of a run")
    bench.add_argument("--workers", type=int, help="runs at once where there is no GPU; default: one per core")
    bench.add_argument("--launch", choices=("local", "slurm"), help="where the runs run; default: what the matrix says")
    bench.add_argument("--time-limit", help="of each run, such as 90m or 12h")
    bench.add_argument("--retry-failed", action="store_true", help="also start what failed before")
    bench.add_argument(
        "--max-failures",
        type=int,
        default=0,
        help="start nothing more after so many runs have failed; not with --launch slurm",
    )
    bench.set_defaults(command=_bench)

    data = commands.add_parser("data", help="get or make a data set")
    data.add_argument("name", help="digits, voc2007 or coco2014")
    data.add_argument("--root", help="folder to put it in; default data/<name>")
    data.set_defaults(command=_data)

    inspect = commands.add_parser("inspect", help="explain a weights file: what it is, what it saw, whether it leaks")
    inspect.add_argument("checkpoint")
    inspect.set_defaults(command=_inspect)

    take = commands.add_parser("import", help="make a run folder of models that the published code saved")
    take.add_argument("preset", help="the setting they were trained in")
    take.add_argument("files", nargs="+", help="one per session, in order")
    take.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of the preset")
    take.add_argument("--folder", help="run folder")
    take.set_defaults(command=_import)

    give = commands.add_parser("export", help="write a session's weights so that the published code can load them")
    give.add_argument("run", help="run folder")
    give.add_argument("file", help="the .pth file to write")
    give.add_argument("--session", type=int, help="1 is the first; default: the last finished one")
    give.set_defaults(command=_export)

    report = commands.add_parser("report", help="tables and figures of finished runs")
    report.add_argument("runs", nargs="+", help="run folders, or folders that hold some")
    report.add_argument("--html", metavar="FILE", help="one page with every table and figure, which opens offline")
    report.add_argument(
        "--csv", metavar="FILE", help="one line per run; FILE_sessions.csv beside it has one per run and session"
    )
    report.add_argument(
        "--latex", metavar="FILE", help="the paper's table with the published lines, to \\input (needs booktabs)"
    )
    report.set_defaults(command=_report)

    presets = commands.add_parser("presets", help="list the shipped presets, or show one in full")
    presets.add_argument("preset", nargs="?")
    presets.add_argument("overrides", nargs="*")
    presets.set_defaults(command=_presets)
    return parser


def _train(options: argparse.Namespace) -> int:
    from .config import load_experiment
    from .launch import Machines, launch
    from .machine.distributed import leave_world

    experiment = load_experiment(options.preset, options.overrides)
    rank = int(os.environ.get("SLURM_NODEID", "0")) if options.nnodes > 1 else 0
    rank = rank if options.node_rank is None else options.node_rank
    machines = Machines(options.nnodes, rank, options.rendezvous)
    run = launch(
        experiment, options.folder, options.processes, options.device, options.allow_leak, options.max_steps, machines
    )
    leave_world()
    if "RANK" not in os.environ:  # not one of several processes: those leave it to the one that started them
        print(run.folder)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .lab.bench.command import dry_run, run, status
    from .lab.bench.matrix import expand, load_matrix

    keys = ("folder", "gpus_per_run", "workers", "launch", "time_limit")
    matrix = load_matrix(options.matrix, **{key: getattr(options, key) for key in keys})
    jobs = expand(matrix)
    if options.dry_run:
        return dry_run(matrix, jobs)
    if options.status:
        return status(matrix, jobs)
    return run(matrix, jobs, options.retry_failed, options.max_failures)


def _data(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .data import DEFAULT_ROOTS, download
    from .machine.home import resolve

    if options.name not in DEFAULT_ROOTS:
        raise DataError(f"There is no data set {options.name!r} to get.{did_you_mean(options.name, DEFAULT_ROOTS)}")
    bars: dict[str, tqdm] = {}

    def report(file: str, done: int, total: int) -> None:
        if file not in bars:
            bars[file] = tqdm(total=total or None, unit="B", unit_scale=True, desc=file, initial=done)
        bars[file].update(done - bars[file].n)

    root = download.get(options.name, resolve(options.root or DEFAULT_ROOTS[options.name]), report)
    for bar in bars.values():
        bar.close()
    print(root)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from .weights.checkpoint import inspect

    found = inspect(options.checkpoint)
    lines = {
        "file": found.path,
        "sha256": found.sha256,
        "layout": found.layout,
        "tensors": f"{len(found.tensors)} with {found.parameters / 1e6:.2f} M values",
        "trained on": found.trained_on,
        "classes": found.classes if found.classes is not None else "no classifier found",
        "leaks": f"yes: {found.leak}" if found.leak else "no reason known",
    }
    for key, value in lines.items():
        print(f"{key:>11}: {value}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from .config import load_experiment
    from .evaluate import import_published

    print(import_published(load_experiment(options.preset, options.set), options.files, options.folder).folder)
    return 0


def _export(options: argparse.Namespace) -> int:
    from .runs.folder import Run
    from .weights.convert import export_published

    run = Run(options.run)
    print(export_published(run, (options.session or run.finished_sessions) - 1, options.file))
    return 0


def _report(options: argparse.Namespace) -> int:
    from .lab.report import collect, runs_table, summary_table
    from .lab.report.write import write_report

    runs, left_out = collect(options.runs)
    for other in left_out:
        print(f"left out: {other.name}: {other.reason}", file=sys.stderr)
    if not runs:
        raise DataError("No finished run found there.")
    table = runs_table(runs)
    print(summary_table(table).to_string(index=False))
    print(
        "mAP, CF1, OF1 in percent, F1 at threshold 0.8; forgetting: max − last per class on the whole test set, points."
    )
    for path in write_report(runs, left_out, options.html, options.csv, options.latex):
        print(path)
    return 0


def _presets(options: argparse.Namespace) -> int:
    from .config import load_experiment, preset_names

    if options.preset:
        print(load_experiment(options.preset, options.overrides).to_yaml(), end="")
        return 0
    for name in preset_names():
        e = load_experiment(name)
        base, replay = e.protocol.base or e.protocol.increment, e.replay
        stored = f"{replay.per_class} exemplars per class" if replay.per_class else f"{replay.budget} exemplars"
        print(
            f"{name:<18} {e.data.dataset}, {base} + {e.protocol.increment} classes, {e.model.backbone}, "
            + (stored if replay.per_class or replay.budget else "no replay")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
