"""The paper's table in LaTeX: one ``table`` per setting, to be read with ``\\input``; it needs the booktabs package.

table.tex.j2 is the table; its expressions stand in << >> and its statements in <% %>, as braces are LaTeX's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...metrics import F1_THRESHOLD
from ...runs.folder import Run
from .paper_table import HIGHER_IS_BETTER, mean_and_std, settings_of
from .recorded import Recorded
from .significance import against_best, judged

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


def latex_report(runs: Sequence[Run], earlier: Recorded | None = None) -> str:
    """A table for each setting of finished runs, recorded rows beside them and published lines marked by a dagger, and
    under it, where there are replicates to compare, one that says how far our best method is from each other one, and
    whether that holds."""
    jinja = Environment(  # `finalize` escapes for LaTeX  # nosec B701
        loader=PackageLoader(__package__, ""),
        finalize=lambda value: escape(str(value)),  # of all that is put in
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
    )
    jinja.filters["spread"] = mean_and_std
    return jinja.get_template("table.tex.j2").render(
        settings=settings_of(runs, earlier),
        metrics=list(HIGHER_IS_BETTER),
        threshold=F1_THRESHOLD,
        against_best=lambda setting, key: against_best(setting, key, judged(setting.lines, key)),
    )
