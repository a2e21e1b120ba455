"""One XML of the VOC layout, of whatever tool."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .text import class_name, decode, flag, number, read_bytes

Box = tuple[float, float, float, float]
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotated:
    """objects: (name, difficult, box as shares of the image or None). filename: of the image, as the XML has it.
    unreadable: boxes that could not be read; no label hangs on them."""

    objects: tuple[tuple[str, bool, Box | None], ...]
    filename: str
    unreadable: int


def read_xml(path: Path) -> Annotated:
    """Raises DataError naming the file for a missing or broken one, an object without a name and odd flags."""
    try:
        data = read_bytes(path)
    except DataError as error:
        if not os.path.exists(path):
            raise DataError(f"{path} is missing, though the image list names it.") from None
        raise error
    says = re.match(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)["']""", data[:200])
    text = decode(data, path, says[1].decode("ascii") if says else "").lstrip()
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is not readable XML: {error}.") from None
    for element in tree.iter():  # <ns:Object> is meant as <object>
        element.tag = element.tag.rpartition("}")[2].lower()
    width, height = (number(tree.findtext(f"size/{key}")) for key in ("width", "height"))
    objects, unreadable = [], 0
    for place, node in enumerate(tree.iter("object"), 1):
        where = f"{path}: object {place}"
        box = _box(node, width, height)
        unreadable += box is None and node.find("bndbox") is not None
        difficult = flag(node.findtext("difficult"), f"{where}: difficult")
        objects.append((class_name(node.findtext("name") or "", where), difficult, box))
    return Annotated(tuple(objects), (tree.findtext("filename") or "").strip(), unreadable)


def _box(node: ElementTree.Element, width: float | None, height: float | None) -> Box | None:
    corners = [number(node.findtext(f"bndbox/{key}")) for key in CORNERS]
    x, y, u, v = corners
    if not width or not height or x is None or y is None or u is None or v is None:
        return None
    left, right, top, bottom = min(x, u), max(x, u), min(y, v), max(y, v)
    return left / width, top / height, (right - left) / width, (bottom - top) / height
