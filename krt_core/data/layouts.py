"""Which layout a folder or a file of a user has, told by what is in it."""

from __future__ import annotations

from pathlib import Path

from ..config import Data
from ..errors import DataError
from ..machine.home import resolve
from . import coco, table
from .class_folders import class_folders
from .table_columns import Said
from .table_file import PARQUET, TEXTS

WORDS = {"coco": "COCO layout", "voc": "VOC layout", "table": "a table"}
LOOKED_FOR = (
    "annotations/train.json or test.json (COCO), Annotations/ and ImageSets/Main/ (VOC), a table "
    f"({', '.join((*TEXTS, *PARQUET))}), folders of images that are called as classes are"
)


def layout_of(path: str | Path) -> str:
    """ "coco", "voc" or "table", as ``data.dataset`` calls it; a folder of folders is read as a table, too.

    Raises DataError where a folder or file has none of these layouts, saying what was looked for, and where it may have
    two, naming both.
    """
    root = resolve(path)
    if root.is_file():
        if root.suffix.lower() in (*TEXTS, ".txt", *PARQUET):
            return "table"
        raise DataError(f"{root} is no table ({', '.join((*TEXTS, *PARQUET))}). Other layouts go by their folder.")
    if not root.is_dir():
        raise DataError(f"There is no folder or table {root}.")
    try:
        found = {
            "coco": _coco(root),
            "voc": _voc(root),
            "table": ", ".join(path.name for path in table.tables_in(root)),
        }
        found = {layout: what for layout, what in found.items() if what}
        if len(found) > 1 and "table" in found and not _is_read(root):
            del found["table"]  # some list beside the annotations
        if len(found) == 1:
            return next(iter(found))
        if found:
            both = " and ".join(f"{WORDS[layout]} ({what})" for layout, what in found.items())
            raise DataError(f"{root} has {both}: which is meant? Move one of them away" + _or_file(found) + ".")
        if class_folders(root, Said()):
            return "table"
    except PermissionError as error:
        raise DataError(f"{error.filename or root} cannot be read ({error.strerror}).") from None
    raise DataError(
        f"{root} has no annotations. Looked for {LOOKED_FOR}. For images without any write a table, such as path,tags."
    )


def _or_file(found: dict[str, str]) -> str:
    return ", or name the table itself" if "table" in found else ""


def _coco(root: Path) -> str:
    """Its first annotation file; empty: there is none."""
    for split in ("train", "test"):
        try:
            return str(next(iter(coco.locate(root, split).annotations)).relative_to(root))
        except DataError:
            continue
    return ""


def _voc(root: Path) -> str:
    """Its folder of annotations; empty: there is none. What else it lacks is for its reader to say."""
    for base in (root, *sorted(root.glob("VOCdevkit/VOC*")), *sorted(root.glob("VOC*"))):
        if (base / "Annotations").is_dir() and ((base / "ImageSets").is_dir() or (base / "JPEGImages").is_dir()):
            return f"{(base / 'Annotations').relative_to(root)}/"
    return ""


def _is_read(root: Path) -> bool:
    """Is what could be a table one of images with labels?"""
    try:
        table.read(table.locate(root, "train", Data(dataset="table")), "table", "train")
    except DataError:
        return False
    return True
