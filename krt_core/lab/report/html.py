"""The report as one HTML file: tables, figures and, under each of them, what it shows. It opens without a network.

page.html.j2 is the page, style.css its looks; here is what stands in them.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from datetime import datetime, timezone

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from ...runs.folder import Run
from .. import figures as plots
from . import definitions
from .f1 import Chosen, f1_cells
from .finding import LeftOut
from .paper_table import HIGHER_IS_BETTER, Line, Setting, mean_and_std, settings_of
from .recorded import Recorded
from .significance import against_best, judged

Rows = list[tuple[Line, dict[str, str]]]  # of a table: a line and its cells by column


def html_report(
    runs: Sequence[Run], left_out: Sequence[LeftOut] = (), chosen: Sequence[str] = (), thresholds: Chosen | None = None,
    earlier: Recorded | None = None,
) -> str:  # fmt: skip
    """The whole page. runs: finished ones, see `collect`; left_out: the others, to be listed; chosen: the settings that
    were searched for, in words; thresholds: those of F1 that validation images chose; earlier: recorded rows."""
    loader = PackageLoader(__package__, "")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"heat": _heat, "many": _many, "memory": _memory, "pieces": _pieces, "spread": mean_and_std,
                      "svg": _svg, "time": _time}  # fmt: skip
    parts = (
        _about, _classes, _costs, _curves, _differences, _forgetting, _kinds_of_forgetting, _provenance, _sessions,
        _tradeoffs,
    )  # fmt: skip
    return jinja.get_template("page.html.j2").render(
        {part.__name__.removeprefix("_"): part for part in parts},
        runs=runs,
        settings=settings_of(runs, earlier),
        left_out=left_out,
        chosen=chosen,
        f1=lambda setting: f1_cells(setting.lines, thresholds or {}),
        metrics={key: key.replace("_", " ") for key in HIGHER_IS_BETTER},
        definitions=definitions,
        now=datetime.now(timezone.utc),
    )


# ---- what the page has of a setting ----


def _about(setting: Setting) -> str:
    """As in "10 classes in 5 sessions of 2 classes each; 40 test images."."""
    sizes = [s.stop - s.start for s in setting.classes.sessions]
    steps = f"{sizes[0]} classes each" if len(set(sizes)) == 1 else f"{', '.join(map(str, sizes))} classes"
    images = sorted({run.session_state(0).get("test_images") for run in setting.runs} - {None})
    return (
        f"{len(setting.classes.classes)} classes in {_many(len(sizes), 'session')}"
        + (f" of {steps}" if len(sizes) > 1 else "")
        + (f"; {' or '.join(map(str, images))} test images." if images else ".")
    )


def _curves(setting: Setting) -> list[tuple[Figure, str, str]]:
    """Charts with what they show, in words for those who cannot see it, and with their definition."""
    last = "; ".join(f"{line.label} {mean_and_std(line.values['last_mAP'])}" for line in setting.lines)
    alt = {
        "mAP_seen": f"Line chart of mAP seen after each session. After the last: {last}. All values: table below.",
        "mAP_base": "Line chart of mAP base after each session.",
        "mAP_new": "Line chart of mAP new after each session.",
    }
    charts = []
    for key, words in definitions.CURVES.items():
        authors = setting.reference[key]
        chart = plots.session_curves(setting.runs, key, authors)
        charts.append((chart, alt[key], words + (definitions.AUTHORS if authors else "")))
    return charts


def _differences(setting: Setting) -> list[tuple[tuple[Figure, str, str], str, list[dict[str, str]]]]:
    """For average and last mAP: the chart of ranks, and our best method, bounds aside, against each other one, as
    cells. Nothing where there are no two methods with two replicates in common."""
    found = []
    for key in ("average_mAP", "last_mAP"):
        if not (here := judged(setting.lines, key)):
            continue
        metric, words = key.replace("_", " "), _ranked(here.ranks)
        chart = plots.rank_chart(here.ranks, here.stretches, len(here.values), metric)
        best, tests = against_best(setting, key, here)
        rows = [{f"{metric}: {best} {column}" if column == "against" else column: cell for column, cell in row.items()}
                for row in tests]  # fmt: skip
        found.append(((chart, f"Chart of mean ranks by {metric}: {words}.", definitions.RANKS), metric, rows))
    return found


def _tradeoffs(setting: Setting) -> list[tuple[Figure, str, str]]:
    """What is kept against what is learned, and what it costs."""
    if len(setting.lines) < 2:
        return []
    costs = "; ".join(f"{line.label} {_time(line.values['seconds'])}" for line in setting.lines)
    chart = plots.cost_chart(setting.lines, len(setting.classes.sessions))
    charts = [(chart, f"Average mAP against time. Whole runs: {costs}.", definitions.COST)]
    if len(setting.classes.sessions) > 1:
        alt = "Forgetting against mAP of new classes, a mark for each method."
        charts.insert(0, (plots.stability_chart(setting.lines), alt, definitions.STABILITY))
    return charts


def _sessions(setting: Setting) -> Rows:
    lines = [line for line in (*setting.lines, *setting.published) if line.curve.size]
    return [(line, {str(t): mean_and_std(values) for t, values in enumerate(line.curve.T, 1)}) for line in lines]


def _forgetting(setting: Setting) -> tuple[Figure, str, str]:
    lost = "; ".join(f"{line.label} {mean_and_std(line.values['forgetting'])}" for line in setting.lines)
    return plots.forgetting_summary(setting.runs), f"Bar chart of forgetting. {lost}.", definitions.FORGETTING


def _kinds_of_forgetting(setting: Setting) -> Rows:
    keys = dict.fromkeys(key for line in setting.lines for key in line.forgetting)
    return [
        (line, {key.replace("_", " "): mean_and_std(line.forgetting.get(key, np.zeros(0))) for key in keys})
        for line in (*setting.lines, *setting.published)
        if line.forgetting
    ]


def _classes(setting: Setting) -> list[tuple[str, list[str], list[tuple]]]:
    """A table of AP after the last session for each class order: its name, the methods with their numbers of runs, and
    rows of class, session and AP by method."""
    tables = []
    for classes in dict.fromkeys(run.protocol.classes for run in setting.runs):
        means, one = {}, next(run for run in setting.runs if run.protocol.classes == classes)
        order, sessions = one.experiment.protocol.order_name, one.protocol.sessions
        order = f"class order of {order}" if order.startswith("seed") else f"{order} class order"
        for line in setting.lines:
            if runs := [run for run in line.runs if run.protocol.classes == classes]:
                found = [run.session_state(len(sessions) - 1)["metrics"]["AP_seen"] for run in runs]
                means[f"{line.label} [{len(runs)}]"] = np.mean([[ap[name] for name in classes] for ap in found], axis=0)
        table = np.stack(list(means.values()), axis=1)  # (classes, methods)
        learned = [s.index + 1 for s in sessions for _ in range(s.start, s.stop)]
        rows = [*zip(classes, learned, table, strict=True), ("mean (last mAP)", "", table.mean(axis=0))]
        tables.append((order, list(means), rows))
    return tables


def _costs(setting: Setting) -> Rows:
    rows = []
    for line in setting.lines:
        seconds = line.values["seconds"]
        cells = {
            "time": _time(seconds),
            "least – most": f"{_time(seconds.min())} – {_time(seconds.max())}" if len(seconds) > 1 else "–",
            "per session": _time(seconds / len(setting.classes.sessions)),
            "peak memory": _memory(line.values["peak_memory_mb"]),
            "stored": line.stored,
            "hardware": "; ".join(sorted({_hardware(run) for run in line.runs})) or "–",
        }
        rows.append((line, cells))
    return rows


def _provenance(setting: Setting) -> Rows:
    """What made each run."""
    rows = []
    for line, run in ((x, run) for x in setting.lines for run in x.runs):
        e, about, summary = run.experiment, run.environment, run.summary
        versions = about.get("versions") or {}
        cells = {
            "seed": str(e.seed),
            "class order": e.protocol.order_name,
            "average mAP": f"{summary['average_mAP']:.2f}",
            "last mAP": f"{summary['last_mAP']:.2f}",
            "seconds": f"{summary['seconds']:.0f}",
            "precision": (about.get("reasons") or {}).get("precision", e.train.precision).split(":")[0],
            "first weights trained on": (about.get("weights") or {}).get("trained_on") or "random start",
            "machine": f"{about.get('host', '–')}: {_hardware(run)}",
            "versions": f"torch {versions.get('torch', '–')}, python {about.get('python', '–')}",
            "commit": about.get("commit") or "–",
            "finished": f"{datetime.fromtimestamp((run.folder / 'DONE').stat().st_mtime):%Y-%m-%d %H:%M}",
            "run folder": run.folder.name,
        }
        if any(x.mixed for x in setting.lines):
            cells["mixed"] = "; ".join(run.mixed) or "–"
        rows.append((line, cells))
    return rows


# ---- how things are written ----


def _ranked(ranks: pd.Series) -> str:
    return ", ".join(f"{name} {rank:.1f}" for name, rank in ranks.items())


def _hardware(run: Run) -> str:
    hardware = run.environment.get("hardware") or {}
    reasons = run.environment.get("reasons") or {}
    device = reasons.get("device", "")
    if "gpu" in hardware:
        count = reasons.get("processes", "1")
        return f"{hardware['gpu']}" + (f" × {count}" if count != "1" else "")
    threads = hardware.get("threads")
    return (hardware.get("cpu") or device or "–") + (f", {_many(threads, 'thread')}" if threads else "")


def _time(seconds: np.ndarray | float) -> str:
    """Median duration in the unit that reads best."""
    if not np.size(seconds):
        return "–"
    value = float(np.median(seconds))
    if value < 120:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _memory(mebibytes: np.ndarray) -> str:
    if not len(mebibytes):
        return "–"
    most = mebibytes.max()
    return f"{most:.0f} MiB" if most < 1024 else f"{most / 1024:.1f} GiB"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _heat(value: float) -> str:
    """The style of a cell of the heat table; value from 0 to 100."""
    colour = matplotlib.colormaps["viridis"](value / 100)
    ink = "#000" if colour[1] > 0.5 else "#fff"  # viridis gets lighter with its green; either way a contrast over 4.5
    return f"background:{matplotlib.colors.to_hex(colour)};color:{ink}"


def _pieces(text: str) -> list[str]:
    """Text cut after the signs in a key=value, where it may break, so that narrow columns can have it as heading."""
    return re.split("(?<=[=._])", text)


def _svg(figure: Figure) -> str:
    """A figure as an SVG in base64."""
    file = io.BytesIO()
    # Glyphs are drawn as paths: the page looks the same whatever fonts its reader has. No date and a fixed salt: the
    # same runs give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "krt"}):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    return base64.b64encode(file.getvalue()).decode()
