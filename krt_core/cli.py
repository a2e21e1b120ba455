"""``krt train | bench | data | inspect | import | export | extend | predict | report | compare | methods | presets``.

A command imports what it needs when it runs, after its configuration is read: help and a misspelt key answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys

from . import __version__
from .errors import ConfigError, DataError, KRTError, did_you_mean, printable
from .machine.cluster import SHARED, number_in, one_of_several
from .machine.command import COMMANDS, arg, command, number
from .machine.loading import be_command, leave, loading
from .tagger.command import EXPORT, PREDICT, export, predict
from .tagger.extend_command import EXTEND, extend

NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
PATHS = (
    "A relative path is meant from the workbench's home: $KRT_HOME, else the checkout you are in, else this folder. "
    "Presets, matrices and code of your own are looked for in this folder."
)
ELSEWHERE = "Results go elsewhere with --folder, everything with KRT_HOME."


def main(arguments: list[str] | None = None) -> int:
    if arguments is None:
        _in_utf8()
        be_command()
    code = _answer(arguments)
    if arguments is None and not code:  # what went wrong ends as any Python does: who started it may be told by it
        leave()
    return code


def _answer(arguments: list[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a "−" that the terminal has no letter for ends no run
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(options, "overrides") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest  # those after an option
    if not hasattr(options, "command"):
        parser.print_help()
        return 0
    try:
        return options.command(options) or 0
    except KRTError as error:
        first = SHARED not in os.environ or os.environ.get("RANK", "0") == "0"
        if first or not isinstance(error, (ConfigError, DataError)):  # once is enough
            print(printable(f"krt: {error}"), file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not one_of_several() or "Connection closed by peer" not in str(error):
            raise
        return 3  # another process of this training has failed, and has said why
    except KeyboardInterrupt:
        print("krt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `krt report | head`
        return 0
    except MemoryError as error:
        print(printable(f"krt: there is too little memory ({error or 'MemoryError'}): free some"), file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        way_out = f". {ELSEWHERE}" if error.errno in NO_PLACE else ""
        print(printable(f"krt: {error.filename}: {error.strerror}{way_out}"), file=sys.stderr)
        return 2


def _in_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale is another: names of files and what is started from here
    would else depend on the machine."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "krt_core.cli", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="krt", description="Multi-label class-incremental learning with KRT.", epilog=PATHS
    )
    parser.add_argument("--version", action="version", version=f"krt {__version__}")
    commands = parser.add_subparsers(metavar="command")
    for name, about, arguments, function in COMMANDS:
        own = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=PATHS)
        for names, options in arguments:
            own.add_argument(*names, **options)
        own.set_defaults(command=function)
    return parser


def _preset_first(preset: str, overrides: list[str]) -> tuple[str, list[str]]:
    """They may be typed in any order, as long as one word alone is no ``key=value``."""
    words = [preset, *overrides]
    names = [word for word in words if "=" not in word]
    if "=" in preset and len(names) == 1:
        return names[0], [word for word in words if word is not names[0]]
    return preset, overrides


OVERRIDES = arg("overrides", nargs="*", help="key=value, as in method=finetune train.epochs=3 seed=1")


@command(
    "train", "run (or continue) an experiment",
    arg("preset", help="a shipped preset (see `krt presets`) or a YAML file"), OVERRIDES,
    arg("--folder", help="run folder; default outputs/<name>-<method>-<hash>-s<seed>"),
    arg("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one"),
    arg("--allow-leak", action="store_true", help="accept weights that were trained on the labels to be learned"),
    arg("--max-steps", type=number(1), help="end each epoch after so many steps: a quick look, never marked done"),
    arg("--processes", type=number(1), default=1, help="share every batch among so many (one GPU each)"),
    arg("--nnodes", type=number(1), default=1, help="machines that share the run; start this on each of them"),
    arg("--node-rank", type=number(0), help="which of them this is, from 0; default: $SLURM_NODEID, else 0"),
    arg("--rendezvous", default="", metavar="HOST:PORT", help="where they meet: an address of rank 0"),
)  # fmt: skip
def _train(options: argparse.Namespace) -> None:
    from .config import load_experiment

    experiment = load_experiment(*_preset_first(options.preset, options.overrides))
    with loading():
        from .launch import Machines, launch
        from .machine.distributed import leave_world

    rank = number_in("SLURM_NODEID") if options.nnodes > 1 and options.node_rank is None else options.node_rank or 0
    machines = Machines(options.nnodes, rank, options.rendezvous)
    run = launch(
        experiment, options.folder, options.processes, options.device, options.allow_leak, options.max_steps, machines
    )
    leave_world()
    if not one_of_several():  # else the process that started them says where the run is
        print(run.folder)


@command(
    "bench", "run a matrix of experiments, headless",
    arg("matrix", help="a shipped matrix (digits, paper_voc, photos_frozen, ...) or a YAML file"),
    arg("--dry-run", action="store_true", help="list the runs, what is done, and how long the rest may take"),
    arg("--status", action="store_true", help="show how far it is, and why what failed did"),
    arg("--folder", help="where everything goes; default outputs/<name of the matrix>"),
    arg("--gpus-per-run", type=int, help="GPUs (or shares of the cores) that share the batches of a run"),
    arg("--workers", type=int, help="runs at once where there is no GPU; default: one per core"),
    arg("--launch", choices=("local", "slurm"), help="where the runs run; default: what the matrix says"),
    arg("--time-limit", help="of each run, such as 90m or 12h"),
    arg("--trials", metavar="FILE", help="a trials.csv of the same search: what stands in it is not tried again"),
    arg("--run", dest="only", metavar="NAME", action="append", help="of the runs this one alone, as a table names it"),
    arg("--retry-failed", action="store_true", help="also start what failed before"),
    arg("--max-failures", type=number(0), default=0,
        help="start nothing more after so many runs have failed; not with --launch slurm"),
)  # fmt: skip
def _bench(options: argparse.Namespace) -> int:
    from .lab.bench.matrix import load_matrix, plan

    keys = ("folder", "gpus_per_run", "workers", "launch", "time_limit", "trials", "only")
    matrix = load_matrix(options.matrix, **{key: getattr(options, key) for key in keys})
    planned = plan(matrix)
    from .lab.bench.command import dry_run, run, status

    if options.dry_run:
        return dry_run(matrix, planned)
    if options.status:
        return status(matrix, planned)
    return run(matrix, planned, options.retry_failed, options.max_failures)


@command(
    "data", "get or make a data set",
    arg("name", help="digits, voc2007 or coco2014"), arg("--root", help="folder to put it in; default data/<name>"),
)  # fmt: skip
def _data(options: argparse.Namespace) -> None:
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


@command("inspect", "explain a weights file: what it is, what it saw, whether it leaks", arg("checkpoint"))
def _inspect(options: argparse.Namespace) -> None:
    from .weights.checkpoint import inspect

    found = inspect(options.checkpoint)
    lines = {
        "file": found.path,
        "sha256": found.sha256,
        "layout": found.layout,
        "tensors": f"{len(found.tensors)} with {found.parameters / 1e6:.2f} M values",
        "trained on": found.trained_on,
        "classes": found.classes if found.classes is not None else "no classifier found",
        "leaks": found.leaks,
        **({"taken from": found.taken.rstrip(".")} if found.taken else {}),
        **({"note": "; ".join(found.notes)} if found.notes else {}),
    }
    for key, value in lines.items():
        print(printable(f"{key:>11}: {value}"))


@command(
    "import", "make a run folder of models that the published code saved",
    arg("preset", help="the setting they were trained in"), arg("files", nargs="+", help="one per session, in order"),
    arg("--set", nargs="*", default=[], metavar="key=value", help="overrides of the preset"),
    arg("--folder", help="run folder"),
)  # fmt: skip
def _import(options: argparse.Namespace) -> None:
    from .config import load_experiment

    experiment = load_experiment(options.preset, options.set)
    from .evaluate import import_published

    print(import_published(experiment, options.files, options.folder).folder)


command("export", "write a session's model: .onnx, .pt2 (torch.export), or .pth for the published code", *EXPORT)(
    export
)
command("extend", "grow a run by new classes, or more images, from data of their own", *EXTEND)(extend)
command("predict", "tag photos by the model of a run", *PREDICT)(predict)


@command(
    "report", "tables and figures of finished runs",
    arg("runs", nargs="+", help="run folders, or folders that hold some"),
    arg("--only", metavar="KEY=VALUE", action="append", default=[],
        help="with this dataset, protocol, method, buffer or backbone, as in protocol=B0-C10; may be given again"),
    arg("--beside", metavar="TABLE", action="append", default=[],
        help="a table.csv of earlier runs, whose rows of the same settings stand beside them; may be given again"),
    arg("--html", metavar="FILE", help="one page with every table and figure, which opens offline"),
    arg("--csv", metavar="FILE", help="one line per run; FILE_sessions.csv beside it has one per run and session"),
    arg("--latex", metavar="FILE", help="the paper's table with the published lines, to \\input (needs booktabs)"),
)  # fmt: skip
def _report(options: argparse.Namespace) -> None:
    from .lab.report import collect, only, runs_table, summary_table
    from .lab.report.recorded import recorded
    from .lab.report.write import write_report

    runs, left_out = collect(options.runs)
    for other in left_out:
        print(printable(f"left out: {other.name}: {other.reason}"), file=sys.stderr)
    if not runs:
        raise DataError("No finished run found there.")
    runs = only(runs, options.only)
    earlier = recorded(options.beside, runs, options.only)
    for words in earlier.left_out:
        print(printable(f"left out: {words}"), file=sys.stderr)
    table = runs_table(runs)
    print(printable(summary_table(table, earlier.rows).to_string(index=False)))
    print(
        "mAP, CF1, OF1 in percent, F1 at threshold 0.8; forgetting: max − last per class on the whole test set, points."
    )
    if on_test := [name for name, on in zip(table["name"], table["epoch_chosen_on"], strict=True) if on == "test"]:
        print(printable(f"epochs chosen on the test images (train.report=best): {', '.join(dict.fromkeys(on_test))}"))
    for path in write_report(runs, left_out, options.html, options.csv, options.latex, earlier=earlier):
        print(path)


@command(
    "compare", "are two runs the same to the last bit, where do they part, and why",
    arg("one", metavar="RUN", help="a run folder"), arg("two", metavar="RUN", help="another"),
)  # fmt: skip
def _compare(options: argparse.Namespace) -> int:
    with loading():
        from .lab.analysis import compared

    found = compared(options.one, options.two)
    print(printable(found.words()), end="")
    return 0 if found.same else 1


@command(
    "methods", "list the methods: where each comes from, what it needs, what it keeps of the past",
    arg("overrides", nargs="*", metavar="method", help="some, or mylab.module:Name; with --preset also key=value"),
    arg("--preset", default="", help="count the bytes that each keeps at its end, on made-up images (minutes)"),
    arg("--csv", metavar="FILE", help="the table, with all columns"), arg("--json", metavar="FILE", help="the same"),
)  # fmt: skip
def _methods(options: argparse.Namespace) -> None:
    from .lab.report.methods import methods_table, shown
    from .machine.home import atomic_write, resolve

    overrides = [word for word in options.overrides if "=" in word]
    names = [word for word in options.overrides if "=" not in word]
    if overrides and not options.preset:
        raise ConfigError(f"{overrides[0]} changes a preset: name it with --preset.")
    table = methods_table(names, options.preset, overrides)
    print(printable(shown(table, None if sys.stdout.isatty() else 160)), end="")
    for note in dict.fromkeys(filter(None, table.get("note", ()))):
        print(printable(f"note: {note}"))
    if options.csv:
        print(atomic_write(resolve(options.csv), table.to_csv(index=False)))
    if options.json:
        print(atomic_write(resolve(options.json), table.to_json(orient="records", indent=1, force_ascii=False) + "\n"))


@command("presets", "list the shipped presets, or show one in full", arg("preset", nargs="?"), OVERRIDES)
def _presets(options: argparse.Namespace) -> None:
    from .config import load_experiment, preset_names

    if options.preset:
        print(load_experiment(*_preset_first(options.preset, options.overrides)).to_yaml(), end="")
        return
    for e in map(load_experiment, preset_names()):
        base, replay = e.protocol.base or e.protocol.increment, e.replay
        stored = f"{replay.per_class} exemplars per class" if replay.per_class else f"{replay.budget} exemplars"
        learns = f" that learns from {e.model.tune_from} on" if e.model.tune_from else ""
        still = {"all": " that stands still", "first": " that learns in the first session"}.get(e.model.freeze, learns)
        print(
            f"{e.name:<18} {e.data.dataset}, {base} + {e.protocol.increment} classes, {e.model.backbone}{still}, "
            + (stored if replay.per_class or replay.budget else "no replay")
        )


if __name__ == "__main__":
    sys.exit(main())
