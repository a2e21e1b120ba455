"""Pieces of a self-contained HTML page: text, tables, figures, one style sheet. Nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """A table cell: text, what class and inline style it has, whether it heads its row."""

    text: str
    kind: str = ""  # CSS classes
    style: str = ""
    head: bool = False
    markup: bool = False  # text is HTML already
    columns: int = 1  # how many it spans

    def html(self) -> str:
        tag = "th" if self.head else "td"
        about = ' scope="row"' if self.head else ""
        about += f' class="{self.kind}"' if self.kind else ""
        about += f' style="{self.style}"' if self.style else ""
        about += f' colspan="{self.columns}"' if self.columns > 1 else ""
        return f"<{tag}{about}>{self.text if self.markup else escape(self.text)}</{tag}>"


def heading(level: int, text: str, anchor: str = "") -> str:
    about = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{about}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(items: Sequence[str], kind: str = "") -> str:
    about = f' class="{kind}"' if kind else ""
    return f"<ul{about}>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def tag(text: str, kind: str) -> str:
    return f'<span class="tag {kind}">{escape(text)}</span>'


def table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], definition: str, kind: str = "") -> str:
    """A table with its definition under it. rows: (CSS class of the row, its cells)."""
    kinds = [cell.kind for cell in rows[-1][1]] if rows else []  # a column is aligned as its cells are
    kinds = ["text" if i < len(kinds) and kinds[i] == "text" else "" for i in range(len(columns))]
    head = "".join(
        f'<th scope="col"{" class=text" if kind else ""}>{_breakable(name)}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    body = "".join(
        f'<tr class="{row}">' + "".join(cell.html() for cell in cells) + "</tr>\n"
        if row
        else "<tr>" + "".join(cell.html() for cell in cells) + "</tr>\n"
        for row, cells in rows
    )
    about = f' class="{kind}"' if kind else ""
    return (
        f'<figure><div class="wide"><table{about}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        f"<figcaption>{escape(definition)}</figcaption></figure>\n"
    )


def _breakable(text: str) -> str:
    """Text that may break after the signs in a key=value, so that narrow columns can have it as their heading."""
    return re.sub("([=._])", r"\1<wbr>", escape(text))


def figure(drawing: Figure, alt: str, definition: str) -> str:
    """A matplotlib figure as an SVG inside the page, with a text for those who cannot see it and its definition."""
    file = io.BytesIO()
    # Glyphs are drawn as paths: the page looks the same whatever fonts its reader has. No date and a fixed salt: the
    # same runs give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "krt"}):
        drawing.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(definition)}</figcaption></figure>\n"
    )


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #5b6067; --line: #d5d8dc; --paper: #fff; --band: #f3f5f7;
  --mark: #0a6b9e; --warn: #a03000; --warn-paper: #fff1e8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --soft: #a4abb3; --line: #454b52; --paper: #16181b;
  --band: #202429; --mark: #7cc4ee; --warn: #ffb38a; --warn-paper: #3a2115; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: .5rem 0; }
h2 { font-size: 1.5rem; margin: 3rem 0 .5rem; border-top: 3px solid var(--line); padding-top: 1.2rem; }
h3 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; width: 100%; max-width: 800px; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .5rem; max-width: 100ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th { font-weight: 600; }
tbody th { font-weight: 400; min-width: 9rem; max-width: 24rem; overflow-wrap: anywhere; }
tbody th, th:first-child, .text { text-align: left; }
td.text { white-space: normal; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tr.group th { background: var(--band); color: var(--soft); font-size: .85rem; }
tr.published { color: var(--soft); font-style: italic; }
td.best { font-weight: 700; }
.tag { display: inline-block; border: 1px solid currentColor; border-radius: 3px; padding: 0 .35em; margin-left: .45em;
  font: 600 .72rem/1.45 system-ui, sans-serif; vertical-align: 1px; }
.tag.published { color: var(--mark); } .tag.leak { color: var(--warn); }
sup { line-height: 0; }
table.runs, table.dense { font-size: .78rem; } table.dense th, table.dense td { padding: .3rem .4rem; }
table.runs tbody th { min-width: 7rem; }
.remarks { background: var(--warn-paper); border-left: 4px solid var(--warn); padding: .6rem 1rem .6rem 2rem; }
.sources { font-size: .88rem; color: var(--soft); }
table.heat td { text-align: center; padding: .1rem .3rem; border: 0; min-width: 3rem; }
table.heat tbody th { padding: .1rem .6rem; border: 0; white-space: nowrap; }
table.heat tr.first > * { border-top: 2px solid var(--paper); }
table.heat thead th { max-width: 7rem; font-size: .8rem; text-align: center; }
table.heat thead th:first-child { text-align: left; }
nav ul { columns: 2; } a { color: var(--mark); }
@media print { main { max-width: none; } h2 { break-before: page; } figure, tr { break-inside: avoid; } }
"""
