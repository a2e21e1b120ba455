"""When does KRT pay? Tables and figures of docs/study.md from the runs of the matrices ``study_*``.

``python -m benchmarks.study`` takes what is finished of them: a figure (PNG and PDF) and tables of a factor go to the
folder of its matrix; ``--docs docs`` copies them to the page and fills in its results.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from krt_core.lab import figures
from krt_core.lab.bench.matrix import Matrix, load_matrix, runs_by_variant
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.report import runs_table
from krt_core.lab.report.significance import factor_table
from krt_core.machine.home import atomic_write
from krt_core.runs.folder import Run, in_order


@dataclass(frozen=True)
class Factor:
    """What a matrix varies: in words, and what a variant of its overrides is called."""

    words: str
    level: Callable[[Mapping], str]


def _backbone(changes: Mapping) -> str:
    start = "letters" if changes.get("model.weights") else "random start"
    return f"{start}, {'stands still' if changes.get('model.freeze') else 'learns'}"


FACTORS = {
    "study_labels": Factor("labels per image", lambda changes: f"{changes['data.cardinality']:g}"),
    "study_co_occurrence": Factor(
        "co-occurrence: share of images of one group", lambda changes: f"{changes.get('data.co_occurrence', 0):g}"
    ),
    "study_sessions": Factor("classes a session", lambda changes: str(changes.get("protocol.increment", 2))),
    "study_images": Factor("share of the images", lambda changes: f"{1 - changes.get('data.validation', 0):g}"),
    "study_backbone": Factor("backbone", _backbone),
    "study_coco_labels": Factor(
        "labels per training image, mean (coco_sub)", lambda changes: f"{changes['krt.mean_labels']:g}"
    ),
    "study_coco_images": Factor(
        "share of the images (coco_sub)", lambda changes: f"{1 - changes.get('data.validation', 0):g}"
    ),
}


def levels_of(matrix: Matrix, factor: Factor) -> dict[str, list[Run]]:
    """The finished runs of a matrix by level; a level without any is left out."""
    levels: dict[str, list[Run]] = {}
    for changes, job in runs_by_variant(matrix):
        files, level = JobFiles(matrix.folder, job), factor.level(changes)
        if files.finished and files.run is not None:
            levels.setdefault(level, []).append(files.run)
    return levels


def shown(table: pd.DataFrame) -> str:
    """A factor table for a page: of each level the last mAP of each method, and what KRT gains."""
    rows = []
    for level, own in table[table["metric"] == "last_mAP"].groupby("level", sort=False):
        lines = {line["method"]: line for line in own.to_dict("records")}
        row = {"level": level, "pairs": str(own["pairs"].iloc[0])}
        row |= {method: _pm(line["mean"], line["std"]) for method, line in lines.items()}
        for other in ("masked", "joint"):
            column, krt = f"over_{other}", lines.get("krt", {})
            row[f"krt − {other}"] = _pm(krt.get(column, np.nan), krt.get(f"{column}_std", np.nan))
        row["p, Holm"] = f"{p:.3f}" if np.isfinite(p := lines.get("krt", {}).get("over_masked_p", np.nan)) else "–"
        rows.append(row)
    frame = pd.DataFrame(rows).fillna("–")
    lines = ["| " + " | ".join(frame) + " |", "|---" * len(frame.columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in frame.to_numpy())])


def _pm(mean: float, std: float) -> str:
    if not np.isfinite(mean):
        return "–"
    return f"{mean:.1f}".replace("-", "−") + (f" ± {std:.1f}" if np.isfinite(std) else "")


def fill(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the marks of a matrix. ValueError where it has no such marks."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"The page has no place for {name}, between lines <!-- {name} --> and <!-- /{name} -->.")
    return marks.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)


def write(name: str, matrix: Matrix, docs: Path | None = None) -> bool:
    """Figure and tables of a factor; False where there is nothing to compare yet."""
    factor = FACTORS[name]
    levels = levels_of(matrix, factor)
    table, folder = factor_table(levels), Path(matrix.folder)
    if table.empty:  # no seed that all methods of a level have
        return False
    figures.save(figures.factor_chart(table, factor.words), folder, name)
    csv = atomic_write(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.4g"))
    runs = in_order(list({run.folder: run for own in levels.values() for run in own}.values()))
    every = atomic_write(folder / f"{name}_runs.csv", runs_table(runs).to_csv(index=False))
    if docs:
        (docs / "images").mkdir(exist_ok=True)
        (docs / "results").mkdir(exist_ok=True)
        shutil.copy(folder / f"{name}.png", docs / "images")
        for path in (csv, every):
            shutil.copy(path, docs / "results")
        page = docs / "study.md"
        picture = f"![{factor.words}](images/{name}.png)"
        atomic_write(page, fill(page.read_text(encoding="utf-8"), name, f"{picture}\n\n{shown(table)}"))
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tables and figures of docs/study.md from finished runs.")
    parser.add_argument("names", nargs="*", metavar="study_...", help="some of the matrices; default: all")
    parser.add_argument("--folder", help="where the runs are; default: where the matrices put them")
    parser.add_argument("--docs", type=Path, help="also write the page's figures, tables and results: docs")
    options = parser.parse_args(arguments)
    for name in options.names or FACTORS:
        matrix = load_matrix(name, folder=options.folder)
        print(f"{name}: {'written' if write(name, matrix, options.docs) else 'nothing to compare yet'}")


if __name__ == "__main__":
    main()
