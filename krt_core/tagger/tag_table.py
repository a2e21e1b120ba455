"""Tags that somebody gives photos: a table for `krt extend` to learn from."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..data.table_columns import CLASS, FLAGS, PATHS, SPLITS, TAGS
from ..errors import ConfigError, DataError
from ..machine.home import atomic_write, stamp
from ..machine.locks import only_one

PATH = "path"
RESERVED = {PATH, *PATHS, *TAGS, *SPLITS, *FLAGS}  # a column of such a name is no class
WORDS = {True: "1", False: "0", None: ""}


class TagTable:
    """What is said of photos: photo → tag → shown or not, kept in a CSV with a column ``path`` and one for each tag: 1,
    0, or blank where nobody has said.

    path: of the CSV, read where it is there, and written anew with each change, so nothing said is ever lost. known:
    the tags of the model. Others are new: somebody who looks for them has looked at each photo that is in the table,
    which shows those it is marked with and no other. Several pages, also of other processes, may write one table.
    Raises DataError for a file that is no such table, ConfigError on a file system without locks.
    """

    def __init__(self, path: Path, known: Iterable[str]):
        self.path, self.known = path, tuple(known)
        self.said: dict[str, dict[str, bool]] = {}
        self.new: list[str] = []  # tags the model does not know
        self._stamp: tuple[int, int] | None = None
        self._read()

    def __len__(self) -> int:
        """Photos of which anything is said."""
        return len(self.said)

    def of(self, photo: str | Path) -> dict[str, bool]:
        """What is said of a photo, tag by tag."""
        return dict(self.said.get(str(photo), {}))

    def add(self, tag: str) -> str:
        """A new tag, as it is kept. ConfigError for one that cannot be: empty, a column's name, there already."""
        tag = " ".join(tag.split())
        if not tag:
            raise ConfigError("Write the new tag's name first.")
        if tag.lower() in RESERVED:
            raise ConfigError(f"{tag!r} cannot be a tag: tables call a column of another kind so.")
        with self._change():
            if tag in self.known or tag in self.new:
                raise ConfigError(f"There is a tag {tag!r} already.")
            self.new.append(tag)
        return tag

    def begin(self, photos: Mapping[Path, Iterable[str]]) -> None:
        """Say of photos which new tags they show, where there is no table yet."""
        with self._change():
            if self.path.is_file():  # by another page, since this one has looked
                return
            self.said = {str(photo): dict.fromkeys(tags, True) for photo, tags in photos.items()}
            self.new = sorted({tag for tags in self.said.values() for tag in tags if tag not in self.known})

    def say(self, photo: str | Path, tags: Mapping[str, bool]) -> None:
        """Tags of a photo: shown or absent."""
        with self._change():
            for tag in tags:
                if tag not in self.known and tag not in self.new:
                    raise ConfigError(f"There is no tag {tag!r}: add it first.")
            self.said.setdefault(str(photo), {}).update(tags)

    def take_back(self, photo: str | Path, tag: str) -> None:
        """Nobody has said a tag of a photo. One of which nothing else is said is learned from no longer."""
        with self._change():
            mine = self.said.get(str(photo), {})
            mine.pop(tag, None)
            if not mine:
                self.said.pop(str(photo), None)

    def forget(self, photo: str | Path) -> None:
        """Take back all that is said of a photo; it is learned from no longer."""
        with self._change():
            self.said.pop(str(photo), None)

    def marked(self, tag: str) -> int:
        """How many photos are said to show a tag."""
        return sum(tags.get(tag, False) for tags in self.said.values())

    # ---- the file ----

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """What is in the file by now, to be changed by nobody else until it is written anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with only_one(self.path.with_name(f".{self.path.name}.lock")):
            self._read()
            yield
            self._write()

    def _columns(self) -> list[str]:
        spoken = {tag for tags in self.said.values() for tag in tags}
        return [tag for tag in self.known if tag in spoken] + self.new

    def _write(self) -> None:
        columns, text = self._columns(), io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([PATH, *columns])
        for photo, tags in self.said.items():
            of = {**dict.fromkeys(self.new, False), **tags}
            rows.writerow([photo, *(WORDS[of.get(tag)] for tag in columns)])
        atomic_write(self.path, text.getvalue())
        self._stamp = stamp(self.path)

    def _read(self) -> None:
        """Read the file where it has changed: another page may have written it."""
        if not self.path.is_file() or stamp(self.path) == self._stamp:
            return
        try:
            head, *rows = csv.reader(io.StringIO(self.path.read_text(encoding="utf-8-sig")))
        except (ValueError, csv.Error) as error:
            raise self._broken(f"it is no table of tags ({error})") from None
        if not head or head[0] != PATH or len(set(head)) < len(head) or "" in head:
            raise self._broken(f"its first row must be {PATH} and one name for each tag")
        said: dict[str, dict[str, bool]] = {}
        new = [tag for tag in head[1:] if tag not in self.known]
        for number, row in enumerate(rows, 2):
            if len(row) != len(head):
                raise self._broken(f"row {number} has {len(row)} cells, the first row {len(head)}")
            said[row[0]] = {}
            for tag, cell in zip(head[1:], row[1:], strict=True):
                value = CLASS.get(cell.strip().lower())
                if value is None:
                    raise self._broken(f"row {number}, column {tag!r} must be 1, 0 or blank, found {cell!r}")
                if value >= 0 and (tag in self.known or value):
                    said[row[0]][tag] = bool(value)
        self.said, self.new, self._stamp = said, new, stamp(self.path)

    def _broken(self, why: str) -> DataError:
        return DataError(f"{self.path}: {why}. Mend it, or move it away to begin anew.")
