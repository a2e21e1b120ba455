"""A figure in a notebook that tells where it is clicked."""

from __future__ import annotations

import io
from collections.abc import Callable

import anywidget
import traitlets
from matplotlib.figure import Figure

SCREEN_DPI = 96

SCRIPT = """
function render({ model, el }) {
  const image = document.createElement("img");
  image.style.maxWidth = "100%";
  let address = null;
  const draw = () => {
    const bytes = model.get("png");
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    image.src = address;
    image.alt = model.get("alt");
    image.dataset.drawn = model.get("drawn");
    image.style.cursor = model.get("clickable") ? "pointer" : "default";
  };
  image.addEventListener("click", (event) => {
    if (!model.get("clickable")) return;
    const box = image.getBoundingClientRect();
    model.set("clicked", [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, Date.now()]);
    model.save_changes();
  });
  model.on("change:drawn", draw);
  draw();
  el.appendChild(image);
  return () => { if (address) URL.revokeObjectURL(address); };
}
export default { render };
"""


class Picture(anywidget.AnyWidget):
    """Shows a figure as PNG; ``on_pick(axis, x, y)`` is called with the data coordinates of a click inside an axis."""

    _esm = SCRIPT
    png = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)  # what the picture shows, for screen readers
    drawn = traitlets.Int(0).tag(sync=True)  # how often it was drawn
    clickable = traitlets.Bool(False).tag(sync=True)
    clicked = traitlets.List().tag(sync=True)  # x and y as shares of width and height, from the top left; time

    def __init__(self, on_pick: Callable | None = None):
        super().__init__(clickable=on_pick is not None)
        self.on_pick, self._figure = on_pick, None
        self.observe(self._picked, "clicked")

    def show(self, figure: Figure, alt: str = "") -> None:
        """Draw a figure. It is kept only where clicks are to be understood."""
        self._figure = figure if self.on_pick else None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=SCREEN_DPI, pil_kwargs={"compress_level": 1})  # quick, not small
        with self.hold_sync():
            self.png, self.alt = buffer.getvalue(), alt
            self.drawn += 1

    def _picked(self, change: dict) -> None:
        if self._figure is None or len(change["new"]) < 2:
            return
        x, y = change["new"][:2]
        width, height = self._figure.bbox.size
        point = (x * width, (1 - y) * height)
        for axis in self._figure.axes:
            if axis.bbox.contains(*point):
                self.on_pick(axis, *axis.transData.inverted().transform(point))
                return
