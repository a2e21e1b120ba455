"""A field to drop photos on, of any size: a server takes messages of at most 10 MB, and breaks off at larger ones."""

from __future__ import annotations

from collections.abc import Callable

import anywidget

SCRIPT = """
const PART = 2 ** 21;  // bytes
function render({ model, el }) {
  const zone = document.createElement("label"), input = document.createElement("input");
  const words = document.createElement("span");
  zone.style.cssText = "display: inline-block; padding: 4px 12px; border: 1px dashed currentColor; cursor: pointer";
  input.type = "file"; input.multiple = true; input.accept = "image/*";
  input.style.cssText = "position: absolute; width: 1px; height: 1px; opacity: 0";  // still reached by the keyboard
  input.onfocus = () => { zone.style.outline = "2px solid"; };
  input.onblur = () => { zone.style.outline = ""; };
  const asked = "drop photos here, or choose some";
  words.textContent = asked;
  zone.append(words, input);
  let taken = null, last = Promise.resolve();
  model.on("msg:custom", () => { if (taken) taken(); });
  const ask = (content, buffers) => new Promise((done) => { taken = done; model.send(content, undefined, buffers); });
  const send = async (files) => {
    for (const [number, file] of files.entries()) {
      words.textContent = `${number + 1} of ${files.length}: ${file.name}`;
      const bytes = await file.arrayBuffer();
      for (let from = 0; from === 0 || from < bytes.byteLength; from += PART) {
        const part = bytes.slice(from, from + PART), whole = from + PART >= bytes.byteLength;
        const left = whole ? files.length - number - 1 : files.length - number;
        await ask({ name: file.name, first: from === 0, whole, left }, [new DataView(part)]);
      }
    }
    words.textContent = asked;
  };
  const queue = (list) => { const files = [...list]; if (files.length) last = last.then(() => send(files)); };
  input.onchange = () => { queue(input.files); input.value = ""; };
  zone.ondragover = (event) => { event.preventDefault(); };
  zone.ondrop = (event) => { event.preventDefault(); queue(event.dataTransfer.files); };
  el.appendChild(zone);
}
export default { render };
"""


class Uploader(anywidget.AnyWidget):
    """Files come in parts, one after the other. ``on_file(name, content, left)`` is called with each that is whole;
    left: how many are still to come."""

    _esm = SCRIPT

    def __init__(self, on_file: Callable[[str, bytes, int], None]):
        super().__init__()
        self.on_file, self._parts = on_file, bytearray()
        self.on_msg(self._came)

    def _came(self, _, content: dict, buffers: list) -> None:
        try:
            if content["first"]:
                self._parts.clear()
            self._parts += buffers[0]
            if content["whole"]:
                whole = bytes(self._parts)
                self._parts.clear()
                self.on_file(content["name"], whole, content["left"])
        finally:
            self.send({})  # the next part
