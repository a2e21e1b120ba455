"""The paper's table in LaTeX: one ``table`` per setting, to be read with ``\\input``; it needs the booktabs package."""

from __future__ import annotations

from collections.abc import Sequence

from ...runs.folder import Run
from . import definitions
from .paper_table import HIGHER_IS_BETTER, Line, Setting, mean_and_std, settings_of

COLUMNS = {"average_mAP": "Avg. mAP", "last_mAP": "Last mAP", "CF1": "CF1", "OF1": "OF1", "forgetting": "Forgetting"}
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "−": r"$-$", "–": "--", "λ": r"$\lambda$", "·": r"$\cdot$",
}  # fmt: skip


def escape(text: str) -> str:
    """Text in which LaTeX sees nothing but text.

    >>> escape("a_b, 50 %")
    'a\\\\_b, 50 \\\\%'
    """
    return "".join(ESCAPES.get(character, character) for character in text)


def latex_report(runs: Sequence[Run]) -> str:
    """A table for each setting of finished runs, published lines marked by a dagger."""
    head = "% Made by krt report. In the preamble: \\usepackage{booktabs}. In two columns, table* has the width.\n"
    return head + "\n".join(_table(setting) for setting in settings_of(runs))


def _table(setting: Setting) -> str:
    width = len(COLUMNS) + 3
    best = {key: setting.best(key) for key in HIGHER_IS_BETTER}
    body, sources = [], setting.sources
    for group, lines in setting.by_buffer().items():
        body.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(group)}}}}} \\")
        body += [_row(line, best, sources) for line in lines]
        body.append(r"\midrule")
    body[-1] = r"\bottomrule"
    caption = f"{escape(setting.dataset)}, {escape(setting.protocol)}. {definitions.LATEX}"
    if setting.leaks:
        caption += r" \textsc{leak}: first weights had seen the labels to be learned."
    notes = []
    if sources:
        caption += r" $\dagger$: published, with the number of the source."
        listed = "; ".join(rf"$^{{{i}}}${escape(source)}" for i, source in enumerate(sources, 1))
        notes = [r"\par\smallskip", rf"\footnotesize {listed}."]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{ll{'r' * len(COLUMNS)}l}}",
            r"\toprule",
            " & ".join(["Method", "Buffer", *COLUMNS.values(), "Runs"]) + r" \\",
            r"\midrule",
            *body,
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _row(line: Line, best: dict[str, Line | None], sources: list[str]) -> str:
    """A line of the table; a published one has the number of its source."""
    name = escape(line.method)
    if line.leak:
        name += r" \textsc{leak}"
    if line.published:
        name = rf"\textit{{{name}}}$^{{\dagger {sources.index(line.cited) + 1}}}$"
    cells = [name, escape(line.buffer)]
    for key in COLUMNS:
        text = escape(mean_and_std(line.values[key]))
        cells.append(rf"\textbf{{{text}}}" if line is best[key] else text)
    seeds, orders = line.counts
    runs = f"{len(line.runs)} ({seeds}, {orders})" if line.runs else "--"
    return " & ".join([*cells, runs]) + r" \\"
