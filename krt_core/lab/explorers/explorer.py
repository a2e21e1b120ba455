"""Controls above views: the part that all explorers share.

An explorer is a view on run folders. It holds no result of its own, so running its cell again rebuilds it. Each of its
views is also a plain method that returns figures and tables; where no browser is connected (papermill), these are what
its cell shows.
"""

from __future__ import annotations

import gc
import html
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from ...errors import KRTError, RunError, did_you_mean
from ...machine.home import resolve
from ...runs.progress import headless_kernel
from .. import figures
from .picture import Picture

Shown = Figure | pd.DataFrame | str
Result = Shown | Sequence[Shown]

WIDTH = "360px"  # of a control
TABLE_STYLE = """<style>
.krt-table table {border-collapse: collapse} .krt-table td, .krt-table th {padding: 2px 9px; text-align: right;
font-variant-numeric: tabular-nums; line-height: 1.5}
.krt-table tbody tr:nth-child(odd) {background: rgba(128,128,128,.1)}
</style>"""


class Explorer:
    """Controls and views; a change of a control draws the view that is open, and only that one.

    controls: name → ipywidget, read through `value`. views: title → method without arguments. folder and name say where
    `Save` puts what is shown. picks: title → what to do with a click into that view's figure, see `Picture`. follow:
    name → what to bring in line, such as other menus, before a change of that control is drawn. headless: the views to
    show where there is no browser; None: all. Raises RunError for an unknown one.
    """

    def __init__(
        self,
        controls: dict[str, widgets.Widget],
        views: dict[str, Callable[[], Result]],
        folder: str | Path,
        name: str,
        picks: dict[str, Callable] | None = None,
        follow: dict[str, Callable[[], None]] | None = None,
        per_row: int = 3,
        headless: Sequence[str] | None = None,
    ):
        self.controls, self.views, self.folder, self.name = controls, views, resolve(folder), name
        self.picks, self.follow = picks or {}, follow or {}
        self.headless = list(views if headless is None else headless)
        for title in self.headless:
            if title not in views:
                raise RunError(f"There is no view {title!r}.{did_you_mean(title, views)}")
        self.seconds = 0.0  # that the last drawing took
        self.message = widgets.HTML()
        self.notice = ""  # what holds for all views
        self.tabs = widgets.Tab([widgets.VBox() for _ in views], titles=list(views))
        save = widgets.Button(description="Save", icon="save", tooltip=f"write what is shown to {folder}/figures")
        save.on_click(lambda _: self.save())
        for control in controls.values():
            control.style = {"description_width": "initial"}
            control.observe(self._changed, "value")
        self.tabs.observe(lambda _: self.draw(), "selected_index")
        shown = [c for c in controls.values() if c.layout.display != "none"]
        rows = [widgets.HBox(shown[i : i + per_row]) for i in range(0, len(shown), per_row)]
        self.widget = widgets.VBox([*rows, widgets.HBox([save, self.message]), self.tabs])
        self._drawing, self._asked, self._drawn = False, set(), -1

    def value(self, name: str) -> Any:
        """What a control is set to; a view that has asked for it is drawn anew when it changes."""
        self._asked.add(name)
        return self.controls[name].value

    def offer(self, name: str, options: Sequence, value: Any = None) -> None:
        """Give a menu new options; it keeps its value where that is still there, else takes ``value`` or the first."""
        control = self.controls[name]
        before, offered = control.value, [o[1] if isinstance(o, tuple) else o for o in options]
        control.options = options
        control.value = before if before in offered else value if value is not None else offered[0]

    def set(self, **values: Any) -> None:
        """Set controls by name; the open view is drawn once."""
        self._drawing = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._drawing = False
        self.draw()

    def to_last(self, name: str, sessions: int) -> None:
        """Let a slider reach so many sessions, and set it to the last one."""
        control = self.controls[name]
        control.max = max(control.min, sessions)  # 0: the folder is gone, as the view will say
        control.value = control.max

    # ---- drawing ----

    def _changed(self, change: dict) -> None:
        name = next(name for name, control in self.controls.items() if control is change["owner"])
        held, self._drawing = self._drawing, True
        try:
            if name in self.follow:
                self.follow[name]()
        finally:
            self._drawing = held
        if name in self._asked or name in self.follow or self._drawn != self.tabs.selected_index:
            self.draw()

    def begin(self, name: str) -> None:
        """Bring in line what follows from a control, and draw the first time."""
        self._changed({"owner": self.controls[name]})

    def draw(self) -> None:
        """Draw the open view."""
        if not self._drawing:
            watched = gc.isenabled()
            gc.disable()  # looking for garbage among all of torch would hold up some pictures for a quarter of a second
            try:
                self._draw()
            finally:
                if watched:
                    gc.enable()
            gc.collect(1)  # the figure just shown, before many of them make a long pause

    def _draw(self) -> None:
        began, self._asked, self._drawn = time.perf_counter(), set(), self.tabs.selected_index
        title = list(self.views)[self.tabs.selected_index or 0]
        box = self.tabs.children[self.tabs.selected_index or 0]
        try:
            shown, problem = self.result(title)
            self._fill(box, [problem] if problem else shown, title)
        except Exception:  # JupyterLab would hide it in a log
            self._fill(box, [], title)
            box.children = [widgets.HTML(f"<pre>{html.escape(traceback.format_exc())}</pre>")]
        self.seconds = time.perf_counter() - began
        self.message.value = ""

    def result(self, title: str) -> tuple[list[Shown], str]:
        """What a view shows now, or why it cannot."""
        try:
            made = self.views[title]()
        except KRTError as error:
            return [], str(error)
        shown = [made] if isinstance(made, Figure | pd.DataFrame | str) else list(made)
        return ([self.notice, *shown] if self.notice else shown), ""

    def _fill(self, box: widgets.VBox, shown: list[Shown], title: str) -> None:
        """Reuse the widgets that are there, so that nothing flickers; close the others, which would stay for ever."""
        children, old = [], list(box.children)
        for item in shown:
            kind = Picture if isinstance(item, Figure) else widgets.HTML
            child = next((child for child in old if isinstance(child, kind)), None)
            if child is None:
                child = Picture(self.picks.get(title)) if kind is Picture else kind()
            else:
                old.remove(child)
            children.append(child)
            if isinstance(item, Figure):
                child.show(item, f"{title}: {describe(item)}")
            else:
                child.value = table_html(item) if isinstance(item, pd.DataFrame) else f"<p>{html.escape(item)}</p>"
        if children != list(box.children):
            box.children = children
        for child in old:
            child.close()

    def _ipython_display_(self) -> None:
        if headless_kernel():
            for title in self.headless:
                shown, problem = self.result(title)
                for item in shown or [problem]:
                    display(item) if not isinstance(item, str) else print(item)
        else:
            self.draw()
            display(self.widget)

    # ---- keeping ----

    def save(self) -> list[Path]:
        """Write what the open view shows, figures as PNG and PDF, tables as CSV; returns the files. Older ones are not
        overwritten: a number is added to the name."""
        title = list(self.views)[self.tabs.selected_index or 0]
        shown, problem = self.result(title)
        stem, into, files = f"{self.name}_{title.lower().replace(' ', '_')}", self.folder / "figures", []
        try:
            for item in shown:
                if isinstance(item, Figure):
                    name = _free(into, stem, "png")
                    figures.save(item, into, name)
                    files += [into / f"{name}.{kind}" for kind in ("png", "pdf")]
                elif isinstance(item, pd.DataFrame):
                    files.append(figures.save_table(item, into / f"{_free(into, stem, 'csv')}.csv"))
        except OSError as error:  # a button's error would go unseen
            problem = f"Not saved: {error.filename or into}: {error.strerror}"
        self.message.value = html.escape(problem or f"{', '.join(path.name for path in files)} in {into}")
        return files


def _free(folder: Path, stem: str, kind: str) -> str:
    """The stem, or with the first number that makes it new."""
    number, name = 1, stem
    while (folder / f"{name}.{kind}").exists():
        number += 1
        name = f"{stem}_{number}"
    return name


def menu(words: str, options: Sequence = (), **more: Any) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, description=words, layout=widgets.Layout(width=WIDTH), **more)


def slider(words: str, low: float = 1, high: float = 1, step: float = 1, value: float | None = None) -> widgets.Widget:
    """Of whole numbers where the step is one; draws once it is let go."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    limits = dict(min=low, max=high, step=step, value=low if value is None else value)
    return kind(**limits, description=words, continuous_update=False, layout=widgets.Layout(width=WIDTH))


def table_html(table: pd.DataFrame) -> str:
    return f'{TABLE_STYLE}<div class="krt-table">{table.to_html(border=0, na_rep="–")}</div>'


def describe(figure: Figure) -> str:
    """The titles in a figure, as the words a screen reader says."""
    if alt := getattr(figure, "alt", ""):  # of one whose title is plain text
        return alt.replace("\n", ", ")
    titles = [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
    return "; ".join(title.replace("\n", ", ") for title in titles if title)[:500]
