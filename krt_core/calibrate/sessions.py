"""The calibration after each session of a run.

A session's own classes are fitted on its own images that were held out, with the labels that it shows. Two things then
stand between these images and all that were seen:

*How often.* Each of a session's images shows one of its classes, so that they are more frequent there. With n images of
m that show a class, and N images seen so far, the odds of it are multiplied by [n / (N − n)] / [n / (m − n)] (Saerens
et al., *Neural Computation*, 2002). N grows with each session, and so it goes on for old classes.

*Drift.* What a model says of old classes moves while it learns new ones, and their images are gone. The new images were
scored before and after: a straight line from what is said now to what was said before leads back to the old
calibration. Ridge regression knows that line from its sums, over all images that it ever saw.

*One class alone.* Where all images of a session show its class, none of them tells what is said where it is absent. The
class then takes the middle of the old classes' calibrations, at its own frequency, and the threshold above which half
of the images held out lie.

A method that sees all images calibrates all its classes on all images that were held out of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..config import Calibrate
from ..data import Halves
from ..machine.distributed import World
from ..methods import Method
from ..methods.base import Moments
from ..protocol import Protocol
from ..runs.calibration import Calibration, logit
from ..runs.folder import Run
from ..runs.shown import Tally
from .fit import FEWEST, Fitted, fit
from .thresholds import aimed_threshold, threshold_for

Middle = tuple[float, float]  # slope, and offset at even odds
Line = tuple[np.ndarray, np.ndarray]  # slopes and offsets (C old,), from logits now to logits before
Predict = Callable[[np.ndarray], np.ndarray]  # rows (m,) of the training set → scores (m, ≥ C)
FOLDS = 5  # in which training images are left out
HALF = 0.5  # of the images that show a class are named where no image tells more: docs/calibration.md
SLOPES = (0.1, 10.0)  # of a line of drift: what few images, or scores that have all become one, tell beyond is chance


def moments(now: np.ndarray, before: np.ndarray) -> Moments | None:
    """Of logits (m, C) and (m, C) by class; None where they are too few to tell."""
    if len(now) < 2 * FEWEST:
        return None
    means = now.mean(axis=0), before.mean(axis=0)
    centred = now - means[0]
    return *means, (centred**2).mean(axis=0), (centred * before).mean(axis=0)


def straight(means: np.ndarray, aims: np.ndarray, variances: np.ndarray, covariances: np.ndarray) -> Line:
    """The straight lines of least squares that these moments tell."""
    slopes = (covariances / np.maximum(variances, 1e-12)).clip(*SLOPES)
    return slopes, aims - slopes * means


@dataclass
class Calibrating:
    """How a run calibrates. ``on``: does it? Not without images that were held out, nor where it is tested on them."""

    config: Calibrate
    protocol: Protocol
    method: Method
    labels: np.ndarray  # (n, C) of all training images, those held out too, in learning order
    held: np.ndarray  # (n,) bool
    run: Run
    world: World
    log: Callable[[str], None]
    on: bool
    last: np.ndarray | None = None  # scores, where the model stays

    def __post_init__(self) -> None:
        self.tally = Tally(self.protocol, self.labels)  # of all images, those held out too

    @classmethod
    def of(
        cls, run: Run, halves: Halves, protocol: Protocol, method: Method, world: World, log: Callable[[str], None]
    ) -> Calibrating:  # fmt: skip
        config, labels = run.experiment.calibrate, protocol.reorder(halves.train.truth)
        protocol = protocol.on(halves.train)
        carried = run.experiment.data.added and run.finished_sessions  # old classes' go on, whatever the new data have
        able = bool(halves.held.any()) or (carried and run.calibration(run.finished_sessions - 1).fitted.any())
        on = config.kind != "none" and bool(able) and halves.test is not None
        return cls(config, protocol, method, labels, halves.held, run, world, log, on)

    def rows(self, session: int) -> np.ndarray:
        """(m,) the images held out of those that a session shows."""
        sees, protocol = self.method.sees, self.protocol
        if sees == "all":
            found = np.flatnonzero((self.labels > 0).any(axis=1))
        else:
            found = (protocol.train_images if sees == "session" else protocol.shown_images)(self.labels, session)
        return found[self.held[found]]

    def before(self, session: int, predict: Predict) -> np.ndarray | None:
        """What the old model says to these images, for `after`; None where nobody will ask."""
        asked = self.on and self.method.sees == "session" and session
        return predict(rows) if asked and len(rows := self.rows(session)) else None

    def after(self, session: int, before: np.ndarray | None, predict: Predict) -> Calibration | None:
        """The calibration after a session; before: see there. None where nothing is calibrated, and in processes that
        write nothing."""
        if not self.on:
            return None
        rows, own, sees = self.rows(session), self.protocol.sessions[session], self.method.sees
        scores = self.last if self.last is not None else predict(rows) if len(rows) else np.zeros((0, own.stop))
        self.last = scores if sees == "all" else None
        more = self._left_out(session, rows, predict) if sees == "session" else None
        if not self.world.main:
            return None
        scores = scores[:, : own.stop]
        seen = self._seen(session)
        if sees != "session":
            every = seen if sees == "seen" else np.count_nonzero((self.labels > 0).any(axis=1))
            return self._fitted(slice(0, own.stop), rows, scores, every, seen)
        shown = len(self.protocol.train_images(self.labels, session))
        fitted_on, said = rows, scores[:, own.columns]
        if more is not None:
            fitted_on, said = np.append(rows, more[0]), np.concatenate([said, more[1][:, own.columns]])
        if not session:
            return self._fitted(own.columns, fitted_on, said, shown, seen)
        old = self._moved(session, scores, before).for_images(seen)
        line = self._middle(old, scores[:, : own.start])
        return old.then(self._fitted(own.columns, fitted_on, said, shown, seen, line))

    @property
    def _share(self) -> float:
        """Of the images that show a class, named where no image is without it."""
        return self.config.at if self.config.aim == "recall" else HALF

    def _left_out(self, session: int, rows: np.ndarray, predict: Predict) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows (m,) of the session's images that were learned from, and their scores (m, ≥ C), each by a model that was
        not shown it: for classes of which too little was held out, rows, and methods that can do that."""
        columns = self.protocol.sessions[session].columns
        held = self.labels[rows][:, columns]
        few = np.minimum((held > 0).sum(axis=0), (held == 0).sum(axis=0)) < FEWEST
        learned = self.protocol.train_images(self.labels, session)
        learned = learned[~self.held[learned]]
        if not few.any() or len(learned) < 2 * FEWEST:
            return None
        order = learned[np.lexsort(self.labels[learned][:, columns].T)]  # images of one kind stand side by side
        scored = np.zeros((0, self.protocol.sessions[session].stop))
        folds = [order[fold::FOLDS] for fold in range(FOLDS)]
        for fold in folds:
            without = self.method.without(fold)
            if without is None:
                return None
            with without:
                said = predict(fold)
            scored = np.concatenate([scored, said[:, : scored.shape[1]]])
        names = np.array(self.protocol.classes[columns])[few]
        self.log(
            f"calibration: under {FEWEST} validation images show, or lack, {', '.join(names)}: the {len(learned)} "
            "training images count too, each scored as if it had not been learned from"
        )
        return np.concatenate(folds), scored

    def _seen(self, session: int) -> int:
        """How many images the sessions so far have shown; those before one that was added are told by the calibration
        that these have left, or else by what they have shown to learn from."""
        if not self.protocol.arrival(session):
            return self.tally.images(session)
        shown = (self.run.session_state(session - 1).get("shown") or {}).get("images", [])
        before = self.run.calibration(session - 1).images or max(filter(np.isfinite, shown), default=0)
        return round(before) + len(self.protocol.train_images(self.labels, session))

    def _moved(self, session: int, scores: np.ndarray, before: np.ndarray | None) -> Calibration:
        """That of the old classes, for what the model says now."""
        old = self.run.calibration(session - 1)
        known = self.method.drift()
        if known is None and before is not None:
            known = moments(logit(scores[:, : len(old.a)]), logit(before))
        return old.moved(*straight(*known)) if known else old

    def _middle(self, old: Calibration, scores: np.ndarray) -> Middle | None:
        """Of the old classes' calibrations, for what is said of them now (m, C old); None where none tells."""
        of = old.fitted & (old.shown > 0) & (old.shown < old.images)
        line = straight(*known) if old.curves and (known := moments(z := logit(scores), old.logits(z))) else None
        if not of.any() or (old.curves and line is None):
            return None
        slopes, offsets = line or (old.a, old.b)
        odds = np.log(old.shown[of] / (old.images - old.shown[of]))
        return float(np.median(slopes[of])), float(np.median(offsets[of] - odds))

    def _fitted(
        self, columns: slice, rows: np.ndarray, scores: np.ndarray, shown: int, seen: int, middle: Middle | None = None
    ) -> Calibration:
        """Classes on rows (m,) of ``shown`` images, for as many as were ``seen``, with their thresholds. middle: for
        those that no image, or too few, are without."""
        labels, names = self.labels[rows][:, columns], np.array(self.protocol.classes[columns])
        found = fit(scores, labels, self.config.kind)
        share = found.calibration.shown / np.maximum((labels >= 0).sum(axis=0), 1)
        made = replace(found.calibration, images=float(shown), shown=share * shown).for_images(seen)
        made, alone = self._alone(made, seen, middle)
        p, thresholds, missed = made.probabilities(scores), made.thresholds.copy(), []
        for c in np.flatnonzero(alone):
            thresholds[c] = threshold_for(p[labels[:, c] > 0, c], self._share)
        others = (seen - made.shown) / np.maximum(shown - made.shown, 1e-9)  # for which each without the class stands
        for c in np.flatnonzero(made.fitted & ~alone):
            known, y = p[labels[:, c] >= 0, c], labels[labels[:, c] >= 0, c]
            aimed = aimed_threshold(known, np.where(y > 0, 1.0, others[c]), self.config)
            thresholds[c] = aimed.threshold
            if not aimed.held:
                missed.append(f"{names[c]} ({aimed.expected:.2f})")
        self._tell(names, found, made, missed, alone)
        return replace(made, thresholds=thresholds)

    def _alone(self, made: Calibration, seen: int, middle: Middle | None) -> tuple[Calibration, np.ndarray]:
        """With the middle of the old classes' for those (C,) bool that cannot be fitted, though images show them."""
        alone = ~made.fitted & (made.shown > 0) & (made.shown < seen)
        if middle is None or not alone.any():
            return made, np.zeros_like(alone)
        slope, offset = middle
        odds = np.log(np.where(alone, made.shown, 1) / np.where(alone, seen - made.shown, 1))
        a, b = np.where(alone, slope, made.a), np.where(alone, offset + odds, made.b)
        return replace(made, a=a, b=b, fitted=made.fitted | alone), alone

    def _tell(
        self, names: np.ndarray, found: Fitted, made: Calibration, missed: list[str], alone: np.ndarray
    ) -> None:  # fmt: skip
        """What is to be known of the classes that are no plain case."""
        left, others = ~made.fitted, found.among & ~found.few
        said = {
            f"under {FEWEST} validation images show {', '.join(names[found.few])}: they share one calibration, with "
            f"{others.sum()} of the other classes": found.few.any(),
            f"too few validation images show, or lack, {', '.join(names[left])}: their scores stay as they are": (
                left.any()
            ),
            f"too few validation images lack {', '.join(names[alone])}: the middle of the old classes' calibrations is "
            f"taken, at its own frequency, and {self._share:.0%} of the images that show it are named": alone.any(),
            f"no threshold holds a {self.config.aim} of {self.config.at:g} for {', '.join(missed)}: the closest is "
            "taken": missed,
        }
        for text, is_so in said.items():
            if is_so:
                self.log(f"calibration: {text}")
