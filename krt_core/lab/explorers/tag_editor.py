"""Tag photos by a model, correct what it says, teach it new tags."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from ...errors import DataError, KRTError, RunError
from ...machine.home import atomic_write, file_digest, file_name, resolve
from ...runs.folder import Run
from ...tagger.extend import extend
from ...tagger.photos import find, pixels_of
from ...tagger.tag_table import TagTable
from ...tagger.tagger import Tagger
from ...tagger.tags import Tags
from .. import figures
from ..analysis.growing import session_photos
from ..figures.sheet import card_at
from .explorer import Explorer, Result, menu, slider
from .uploader import Uploader

PAGE = 12  # photos on a page
NONE = "–"
BY_NAME, BY_TAG, BY_DOUBT = "as they come", "most probable first, by the tag", "least certain first, by the tag"


class TagEditor(Explorer):
    """Photos with what the model of a run names on them; a click says that the chosen tag is there, or not.

    photos: a file, a folder, a pattern, or a list of these; what is uploaded comes to them. "upload": nothing else.
    None or empty: training images of one of the run's own sessions, marked with its new tags, as if the run had not had
    it (``session`` is then the one before, by default that before the last). folder: in one of its
    folders for each model are kept: ``tags.csv``, what has been said, at once; ``photos/``, what is uploaded; the runs
    that have grown. session: of the model, 0 is the first; default: the last. device: see `Tagger`.

    Raises RunError where the run has no such session, DataError where there are no photos.
    """

    def __init__(
        self,
        run: Run | str | Path,
        photos: str | Path | Sequence[str | Path] | None = None,
        folder: str | Path = "outputs/grown",
        session: int | None = None,
        device: str | None = None,
        headless: Sequence[str] | None = None,
    ):
        self.run = run if isinstance(run, Run) else Run(run)
        replayed: Mapping[Path, Sequence[str]] = {}
        if not photos:
            session = self.run.finished_sessions - 2 if session is None else session
            if not 0 <= session < self.run.finished_sessions - 1:
                raise RunError(f"{self.run.folder} has no session after session {session + 1}: give photos to tag.")
            replayed = session_photos(self.run, session + 1)
            photos = list(replayed)
        self.tagger, self.device = Tagger(self.run, session, device), device
        self.own = bool(replayed)  # images that the run has learned from
        self.place = resolve(folder) / f"{self.run.folder.name}-session{self.tagger.session + 1}"
        self.table = TagTable(self.place / "tags.csv", self.tagger.classes)
        if replayed and not self.table.path.is_file():
            self.table.begin(replayed)
        self.photos, self.lacking = self._found(photos)
        self._tags: dict[Path, Tags | DataError] = {}
        controls = {
            "tag": menu("tag", [NONE]),
            "order": menu("photos", [BY_NAME, BY_TAG, BY_DOUBT]),
            "page": slider("page"),
            "photo": slider("photo"),
        }
        views = {"Photos": self.cards, "Evidence": self.evidence, "Said": self.said}
        follow = {"order": self._to_first_page, "tag": self._new_tag, "page": self._new_page}
        picks = {"Photos": self._picked}
        super().__init__(controls, views, self.place, "tags", picks=picks, follow=follow, headless=headless)
        self._add_buttons()
        self._offer_tags(next(iter(self.table.new), None))
        self.begin("page")

    # ---- what is chosen ----

    @property
    def tag(self) -> str:
        """The chosen tag; empty: none."""
        chosen = self.value("tag")
        return "" if chosen == NONE else chosen

    @property
    def shown(self) -> list[Path]:
        """The photos of the page, in their order."""
        first = PAGE * (self.value("page") - 1)
        return self._ordered()[first : first + PAGE]

    @property
    def chosen(self) -> Path:
        """The photo of the chosen number. RunError while there is none."""
        if not self.photos:
            raise RunError("There is no photo yet: drop some on the field above.")
        return self._ordered()[self.value("photo") - 1]

    @property
    def readable(self) -> list[Path]:
        """All photos that can be read."""
        found = zip(self.photos, self._look(self.photos), strict=True)
        return [photo for photo, tags in found if isinstance(tags, Tags)]

    def tags(self, run: Run | None = None) -> list[Tags]:
        """What the model, or that of another run after its last session, says of the `readable` photos."""
        tagger = self.tagger if run is None else Tagger(run, device=self.device)
        found = self._look(self.photos) if run is None else tagger.stream(self.readable)
        return [tags for tags in found if isinstance(tags, Tags)]

    def _look(self, photos: Sequence[Path]) -> list[Tags | DataError]:
        missing = [photo for photo in photos if photo not in self._tags]
        self._tags |= zip(missing, self.tagger.stream(missing), strict=True) if missing else {}
        return [self._tags[photo] for photo in photos]

    def _ordered(self) -> list[Path]:
        tag, order = self.tag, self.value("order")
        if order == BY_NAME or tag not in self.tagger.classes:
            return self.photos
        found = [one[tag] if isinstance(one, Tags) else np.nan for one in self._look(self.photos)]
        key = -np.array(found) if order == BY_TAG else np.abs(np.array(found) - self._threshold(tag))
        return [self.photos[row] for row in np.argsort(key, kind="stable")]  # NaN last

    def _threshold(self, tag: str) -> float:
        return float(self.tagger.thresholds[self.tagger.classes.index(tag)])

    def _offer_tags(self, chosen: str | None = None) -> None:
        """New tags first, with the number of their photos; ``chosen`` or what was chosen stays so. Draws nothing."""
        new = [(f"{tag} (new, {self.table.marked(tag)} photos)", tag) for tag in self.table.new]
        options = [*new, (NONE, NONE), *((tag, tag) for tag in self.tagger.classes)]
        held, self._drawing = self._drawing, True
        try:
            self.offer("tag", options)
            if chosen:
                self.controls["tag"].value = chosen
        finally:
            self._drawing = held

    def _to_first_page(self) -> None:
        self.controls["page"].max = max(1, -(-len(self.photos) // PAGE))
        self.controls["page"].value = 1
        self._new_page()

    def _new_tag(self) -> None:
        if self.controls["order"].value != BY_NAME:
            self._to_first_page()

    def _new_page(self) -> None:
        self.controls["page"].max = max(1, -(-len(self.photos) // PAGE))
        self.controls["photo"].max = max(1, len(self.photos))
        first, page = PAGE * (self.controls["page"].value - 1), self.shown
        named = [isinstance(tags, Tags) and bool(tags.named) for tags in self._look(page)]
        self.controls["photo"].value = first + 1 + (named.index(True) if True in named else 0)

    # ---- views ----

    def cards(self) -> Result:
        """The page's photos with what is named and what has been said."""
        if not self.photos:
            return "There is no photo yet: drop some on the field above."
        shown, tag = self.shown, self.tag
        found = self._look(shown)
        tags = [one if isinstance(one, Tags) else None for one in found]
        said, first = [self.table.of(photo) for photo in shown], PAGE * (self.value("page") - 1) + 1
        words = [str(one) for one in found if isinstance(one, DataError)]
        figure = figures.photos_with_tags(shown, tags, said, tag, first, self.value("photo"))
        return [figure, *self.tagger.notes, *self.lacking, *words]

    def evidence(self) -> Result:
        """Where on the photo the evidence for what is named lies."""
        number, photo = self.value("photo"), self.chosen
        tags = self.tagger(photo, evidence=True)
        figure = figures.evidence_for_tags(photo, tags, f"{number} · {photo.name}")
        return figure if tags.named else [figure, "No tag is named on it."]

    def said(self) -> Result:
        """What has been said so far, tag by tag."""
        table = self.table
        every = [*table.new, *(tag for tag in table.known if any(tag in tags for tags in table.said.values()))]
        counts = {
            tag: {"new": tag in table.new, "there": table.marked(tag), "absent": self._absent(tag)} for tag in every
        }
        words = (
            f"{len(table)} of {len(self.photos)} photos are looked at and will be learned from; kept in {table.path}"
        )
        return [words, pd.DataFrame(counts).T] if counts else words

    def _absent(self, tag: str) -> int:
        if tag in self.table.new:
            return len(self.table) - self.table.marked(tag)
        return sum(tags.get(tag) is False for tags in self.table.said.values())

    # ---- saying ----

    def mark(self, photo: Path, tag: str) -> None:
        """Say the contrary of what the model says of a tag on a photo; said already, it is taken back."""
        if tag in self.table.of(photo):
            return self.table.take_back(photo, tag)
        found = self._look([photo])[0]
        named = isinstance(found, Tags) and tag in found.named
        return self.table.say(photo, {tag: not named})

    def confirm(self, photo: Path) -> None:
        """Say that a photo shows what is named or marked there, and no other tag."""
        found = self._look([photo])[0]
        if isinstance(found, DataError):
            raise found
        said = self.table.of(photo)
        self.table.say(photo, {tag: said.get(tag, tag in found.named) for tag in self.tagger.classes})

    def upload(self, name: str, content: bytes) -> Path:
        """Keep a photo from elsewhere, under its name or one with a number. DataError where it is none."""
        path = self.place / "photos" / file_name(Path(name).name)
        number = 1
        while path.exists() and path.read_bytes() != content:
            number += 1
            path = path.with_name(file_name(f"{Path(name).stem}_{number}{Path(name).suffix}"))
        atomic_write(path, content)
        try:
            pixels_of(path, 32)
        except DataError:
            path.unlink()
            raise
        if path not in self.photos:
            self.photos.append(path)
        return path

    def _found(self, photos: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[str]]:
        """Photos, and what there is none of."""
        if photos == "upload":
            return self._uploaded(), []
        named = [photos] if isinstance(photos, (str, Path)) else photos
        found = find([name if str(name).startswith("~") else resolve(name) for name in named])
        return list(dict.fromkeys([*found.photos, *self._uploaded()])), found.lacking

    def _uploaded(self) -> list[Path]:
        folder = self.place / "photos"
        return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []

    # ---- learning ----

    def extend(self, overrides: Mapping[str, Any] | None = None, show: str = "auto") -> Run:
        """A run that has learned what has been said, in a folder of its own; one that is there already is opened.

        overrides: of the new session, see `krt.extend`. Raises RunError while nothing has been said.
        """
        if not len(self.table):
            raise RunError("Nothing is said of any photo yet: mark some above, then run this cell again.")
        for tag in self.table.new:
            if not self.table.marked(tag):
                raise RunError(f"No photo is marked with {tag}: mark some above, then run this cell again.")
        about = json.dumps([str(self.run.folder), self.tagger.session, file_digest(self.table.path), overrides or {}])
        folder = self.place / f"run-{hashlib.sha256(about.encode()).hexdigest()[:8]}"
        return extend(
            self.run, self.table.path, {"blank": "unknown", **(overrides or {})}, folder=folder,
            session=self.tagger.session + 1, new=self.table.new, known="keep" if self.own else "refuse",
            device=self.device, show=show,
        )  # fmt: skip

    # ---- the widget ----

    def _add_buttons(self) -> None:
        self.uploader = Uploader(self._received)
        self._came, self._refused = 0, list[str]()
        self.name = widgets.Text(placeholder="a new tag", layout={"width": "160px"})
        there = "on the photo of this number"
        buttons = (
            ("Add tag", "plus", "a tag that the model does not know", lambda: self._add_tag(self.name.value)),
            ("Mark photo", "check", f"the chosen tag {there}, as by a click on it", self._mark_chosen),
            ("All right", "check-square-o", f"what is named {there} is there, and no other tag of the model",
             lambda: self.confirm(self.chosen)),
            ("Take back", "undo", f"all that is said {there}", lambda: self.table.forget(self.chosen)),
        )  # fmt: skip
        self.buttons = {}
        for words, icon, tooltip, act in buttons:
            button = widgets.Button(description=words, icon=icon, tooltip=tooltip, layout={"width": "120px"})
            button.on_click(lambda _, act=act: self._do(act))
            self.buttons[words] = button
        row = [self.uploader, self.name, *self.buttons.values()]
        controls, saving, tabs = self.widget.children[:-2], self.widget.children[-2], self.widget.children[-1]
        flow = widgets.Layout(flex_flow="row wrap")
        self.widget.children = [*controls, widgets.HBox(row, layout=flow), saving, tabs]

    def _do(self, act) -> None:
        """Do it and draw; what cannot be done is said beside the buttons."""
        problem = ""
        try:
            act()
        except (KRTError, OSError) as error:
            problem = str(error)
        self._offer_tags()
        self.draw()
        self.message.value = html.escape(problem)

    def _add_tag(self, name: str) -> None:
        self._offer_tags(self.table.add(name))
        self.name.value = ""

    def _mark_chosen(self) -> None:
        if not self.tag:
            raise RunError("Choose a tag first.")
        self.mark(self.chosen, self.tag)

    def _picked(self, axis, x: float, y: float) -> None:
        place, shown = card_at(axis.figure, x, y), self.shown
        if place is not None and place < len(shown):
            self.controls["photo"].value = PAGE * (self.value("page") - 1) + place + 1
            self._do(self._mark_chosen)

    def _received(self, name: str, content: bytes, left: int) -> None:
        try:
            self.upload(name, content)
            self._came += 1
        except (KRTError, OSError) as error:
            self._refused.append(str(error))
        if left:
            return
        self.controls["order"].value = BY_NAME
        self.controls["page"].max = max(1, -(-len(self.photos) // PAGE))
        self.controls["page"].value = self.controls["page"].max  # where the new ones are
        self.draw()
        self.message.value = html.escape("; ".join([f"{self._came} photos came", *self._refused]))
        self._came, self._refused = 0, []
