"""The report as one HTML file: tables, figures and, under each of them, what it shows. It opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

import matplotlib
import numpy as np

from ...runs.folder import Run
from .. import figures as plots
from . import definitions
from .finding import LeftOut
from .page import Cell, bullets, figure, heading, page, paragraph, table, tag
from .paper_table import HIGHER_IS_BETTER, Line, Setting, mean_and_std, settings_of

METRICS = {
    "average_mAP": "average mAP",
    "last_mAP": "last mAP",
    "CF1": "CF1",
    "OF1": "OF1",
    "forgetting": "forgetting",
}


def html_report(runs: Sequence[Run], left_out: Sequence[LeftOut] = ()) -> str:
    """The whole page. runs: finished ones, see `collect`; left_out: the others, to be listed."""
    settings = settings_of(runs)
    names = [f"{s.dataset} · {s.protocol}" for s in settings]
    now = datetime.now(timezone.utc)
    parts = [
        heading(1, "Multi-label class-incremental learning: report"),
        paragraph(
            f"{len(runs)} finished run{'s' * (len(runs) != 1)} in {len(settings)} setting{'s' * (len(settings) != 1)} "
            f"(data set and protocol), {len(left_out)} left out. Made by krt report on {now:%Y-%m-%d %H:%M} UTC. "
            "Numbers of different settings are not comparable."
        ),
        "<nav><ul>" + "".join(f'<li><a href="#s{i}">{name}</a></li>' for i, name in enumerate(map(escape, names))),
        '<li><a href="#left-out">Runs left out</a></li></ul></nav>\n' if left_out else "</ul></nav>\n",
    ]
    for i, (setting, name) in enumerate(zip(settings, names, strict=True)):
        parts += [heading(2, name, f"s{i}"), *_section(setting)]
    if left_out:
        rows = [("", [Cell(x.name, head=True), Cell(x.reason, "text")]) for x in left_out]
        parts += [heading(2, "Runs left out", "left-out"), table(["run folder", "reason"], rows, definitions.LEFT_OUT)]
    return page("krt report: " + "; ".join(names), "".join(parts))


def _section(setting: Setting) -> list[str]:
    protocol, several = setting.classes, len(setting.classes.sessions) > 1
    sizes = [s.stop - s.start for s in protocol.sessions]
    steps = f"{sizes[0]} classes each" if len(set(sizes)) == 1 else f"{', '.join(map(str, sizes))} classes"
    about = f"{len(protocol.classes)} classes in {len(sizes)} session{'s' * several}" + (
        f" of {steps}" if several else ""
    )
    images = sorted({run.session_state(0).get("test_images") for run in setting.runs} - {None})
    tested = f"; {' or '.join(map(str, images))} test images" if images else ""
    return [
        paragraph(f"{about}{tested}."),
        bullets(setting.remarks, "remarks") if setting.remarks else "",
        heading(3, "Results"),
        _results(setting),
        *(_curves(setting) if several else []),
        *(_forgetting(setting) if several else []),
        heading(3, "Classes after the last session"),
        *_classes(setting),
        heading(3, "Time and memory"),
        _costs(setting),
        heading(3, "Runs"),
        _runs(setting),
    ]


# ---- the paper's table ----


def _results(setting: Setting) -> str:
    sources: list[str] = []
    columns = ["method", "buffer", *METRICS.values(), "time", "peak memory", "runs"]
    best = {key: setting.best(key) for key in HIGHER_IS_BETTER}
    rows = []
    for group, lines in setting.by_buffer().items():
        rows.append(("group", [Cell(group, head=True, columns=len(columns))]))
        for line in lines:
            cells = [_name(line, line.method, sources), Cell(line.buffer)]
            cells += [Cell(mean_and_std(line.values[key]), "best" if line is best[key] else "") for key in METRICS]
            cells += [Cell(_time(line.values["seconds"])), Cell(_memory(line.values["peak_memory_mb"]))]
            rows.append((_kind(line), [*cells, Cell(line.replicates if line.runs else "–", "text")]))
    out = table(columns, rows, definitions.RESULTS)
    if sources:
        items = "".join(f"<li>{escape(source)}</li>" for source in sources)
        out += f'<div class="sources">Sources of the published lines:<ol>{items}</ol></div>\n'
    return out


def _name(line: Line, text: str, sources: list[str] | None = None) -> Cell:
    """A line's name with its marks; where sources are listed, its own gets a number."""
    marks = tag("LEAK", "leak") if line.leak else ""
    if line.published:
        marks += tag("published", "published")
        if sources is not None:
            source = line.source + (f" ({line.note})" if line.note else "")
            if source not in sources:
                sources.append(source)
            marks += f" <sup>{sources.index(source) + 1}</sup>"
    return Cell(escape(text) + marks, head=True, markup=True)


def _kind(line: Line) -> str:
    return "published" if line.published else ""


def _bare(line: Line) -> str:
    return line.label.removesuffix(" (LEAK)")  # which is shown as a mark


# ---- session by session ----


def _curves(setting: Setting) -> list[str]:
    last = "; ".join(f"{line.label} {mean_and_std(line.values['last_mAP'])}" for line in setting.lines)
    alt = {
        "mAP_seen": f"Line chart of mAP seen after each session. After the last: {last}. All values: table below.",
        "mAP_base": "Line chart of mAP base after each session.",
        "mAP_new": "Line chart of mAP new after each session.",
    }
    figures = []
    for key, words in definitions.CURVES.items():
        reference = setting.reference[key]
        drawing = plots.session_curves(setting.runs, key, reference)
        figures.append(figure(drawing, alt[key], words + (definitions.AUTHORS if reference else "")))
    rows = []
    for line in (*setting.lines, *setting.published):
        if line.curve.size:
            rows.append((_kind(line), [_name(line, _bare(line)), *map(Cell, map(mean_and_std, line.curve.T))]))
    columns = ["mAP seen after session", *(str(s.index + 1) for s in setting.classes.sessions)]
    seen, *others = figures
    return [heading(3, "After each session"), seen, table(columns, rows, definitions.SESSIONS), *others]


def _forgetting(setting: Setting) -> list[str]:
    lost = "; ".join(f"{line.label} {mean_and_std(line.values['forgetting'])}" for line in setting.lines)
    keys = list(dict.fromkeys(key for line in setting.lines for key in line.forgetting))
    rows = []
    for line in (*setting.lines, *setting.published):
        if line.forgetting:
            cells = [Cell(mean_and_std(line.forgetting.get(key, np.zeros(0)))) for key in keys]
            rows.append((_kind(line), [_name(line, _bare(line)), *cells]))
    columns = ["method", *(key.replace("_", " ") for key in keys)]
    return [
        heading(3, "Forgetting"),
        figure(plots.forgetting_summary(setting.runs), f"Bar chart of forgetting. {lost}.", definitions.FORGETTING),
        table(columns, rows, definitions.FORGETTING_BY_DEFINITION, "dense"),
    ]


# ---- class by class ----


def _classes(setting: Setting) -> list[str]:
    """AP after the last session as coloured tables, one for each class order."""
    orders: dict[tuple[str, ...], list[Run]] = {}
    for run in setting.runs:
        orders.setdefault(run.protocol.classes, []).append(run)
    label = {run.folder: line for line in setting.lines for run in line.runs}
    out = []
    for classes, runs in orders.items():
        seed = runs[0].experiment.protocol.order_seed
        order = "alphabetical class order" if seed is None else f"class order of seed {seed}"
        lines: dict[str, list[np.ndarray]] = {}
        for run in runs:
            ap = run.session_state(len(run.protocol.sessions) - 1)["metrics"]["AP_seen"]
            lines.setdefault(label[run.folder].label, []).append(np.array([ap[name] for name in classes]))
        means = np.array([np.mean(group, axis=0) for group in lines.values()])  # (methods, classes)
        rows = []
        for session in runs[0].protocol.sessions:
            for c in range(session.start, session.stop):
                cells = [Cell(str(session.index + 1)), *(_heat(value) for value in means[:, c])]
                rows.append(("first" if c == session.start else "", [Cell(classes[c], head=True), *cells]))
        rows.append(("first", [Cell("mean (last mAP)", head=True), Cell(""), *(_heat(v) for v in means.mean(axis=1))]))
        columns = ["class", "session", *(f"{name} [{len(lines[name])}]" for name in lines)]
        out.append(table(columns, rows, definitions.CLASSES.format(order=order), "heat"))
    return out


def _heat(value: float) -> Cell:
    colour = matplotlib.colormaps["viridis"](value / 100)
    ink = "#000" if colour[1] > 0.5 else "#fff"  # viridis gets lighter with its green; either way a contrast over 4.5
    return Cell(f"{value:.1f}", style=f"background:{matplotlib.colors.to_hex(colour)};color:{ink}")


# ---- time, memory, runs ----


def _costs(setting: Setting) -> str:
    rows = []
    for line in setting.lines:
        seconds, sessions = line.values["seconds"], len(setting.classes.sessions)
        spread = f"{_time(seconds.min())} – {_time(seconds.max())}" if len(seconds) > 1 else "–"
        stored = line.values["exemplars"]
        cells = [_time(seconds), spread, _time(seconds / sessions), _memory(line.values["peak_memory_mb"]),
                 f"{np.median(stored):.0f}" if len(stored) else "–",
                 "; ".join(sorted({_hardware(run) for run in line.runs}))]  # fmt: skip
        rows.append(("", [_name(line, _bare(line)), *map(Cell, cells[:-1]), Cell(cells[-1], "text")]))
    columns = ["method", "time", "least – most", "per session", "peak memory", "images stored", "hardware"]
    return table(columns, rows, definitions.COSTS)


def _runs(setting: Setting) -> str:
    rows = []
    for line in setting.lines:
        for run in line.runs:
            e, about, summary = run.experiment, run.environment, run.summary
            versions, order = about.get("versions") or {}, e.protocol.order_seed
            cells = {
                "seed": str(e.seed),
                "class order": "alphabetical" if order is None else f"seed {order}",
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
            rows.append(("", [_name(line, _bare(line)), *(Cell(text, "text") for text in cells.values())]))
    leaks = sorted({str(run.leak) for run in setting.runs if run.leak})
    words = definitions.RUNS + (f" LEAK: {'; '.join(leaks)}." if leaks else "")
    return table(["method", *cells], rows, words, "runs")


def _hardware(run: Run) -> str:
    hardware = run.environment.get("hardware") or {}
    device = (run.environment.get("reasons") or {}).get("device", "")
    if "gpu" in hardware:
        count = (run.environment["reasons"] or {}).get("processes", "1")
        return hardware["gpu"] + (f" × {count}" if count != "1" else "")
    threads = hardware.get("threads")
    return (hardware.get("cpu") or device or "–") + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")


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
