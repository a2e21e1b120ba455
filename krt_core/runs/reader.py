"""What a run folder tells: its configuration, its sessions, its numbers."""

from __future__ import annotations

import contextlib
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Experiment
from ..errors import RunError
from ..machine.home import resolve, stamp
from ..methods import class_of, is_oracle
from ..metrics import best_threshold, calibration_errors, forgetting, precision_recall_f1
from ..protocol import Protocol, protocol_of
from . import configuration, shapes
from .calibration import Calibration
from .files import check_arrays, damaged, is_still, known, read_epochs, read_json, read_tensors
from .scores import Ahead, Scores, read_ap
from .starts import mixed_of
from .state import join
from .summary import SHARES, ap_of_session, summary_of, tables_of

ANEW = "start the same experiment again: it is written anew."
GROWING = ("classes", "exemplar_ids", "memory", "method", "shown")
NEEDED = ("classes", "metrics", "method", "memory", "seconds", "exemplar_ids", "weights")  # in a state.json, to go on


class Reader:
    """Reads one run folder. Raises RunError, with the way out, where a file it needs is missing or damaged."""

    def __init__(self, folder: str | Path):
        self.folder = resolve(folder)
        self._short: dict[int, tuple[tuple[int, int], dict]] = {}
        if not (self.folder / "experiment.yaml").is_file():
            raise RunError(f"{self.folder} is no run folder: it has no experiment.yaml.")

    @cached_property
    def experiment(self) -> Experiment:
        return configuration.read(self.folder)

    @property
    def done(self) -> bool:
        """Is the run complete, by a DONE file of this very configuration?"""
        return self.summary is not None

    @property
    def summary(self) -> dict | None:
        """Content of DONE, or None while the run is unfinished, and where DONE is damaged: it is then written anew."""
        with contextlib.suppress(RunError):
            content = self.written_summary()
            if not content or isinstance(self.experiment.options, dict):
                return content or None  # without its method's defaults there is no hash to compare
            return content if content.get("config_hash") == self.experiment.hash() else None
        return None

    def written_summary(self) -> dict | None:
        """Content of DONE, of whatever configuration; RunError where it is damaged."""
        content = read_json(self.folder / "DONE", ANEW, shapes.SUMMARY)
        return content and content | known({key: content[key] for key in SHARES if key in content})

    @property
    def complete(self) -> bool:
        """Is the run done, and no session's folder taken out since?"""
        summary = self.summary
        return summary is not None and self.finished_sessions >= len(summary.get("mAP_per_session", ()))

    @property
    def finished_sessions(self) -> int:
        """Sessions whose state.json (written last) is there, counted from the first without a gap."""
        count = 0
        while (self.session_folder(count) / "state.json").is_file():
            count += 1
        return count

    def session_folder(self, session: int) -> Path:
        return self.folder / f"session_{session:02d}"

    def way_out(self, session: int) -> str:
        """What to do where a file of a session is damaged."""
        return (
            f"delete the folder {self.session_folder(session)} and start the same experiment again, which makes this "
            "session and the later ones anew."
        )

    def session_state(self, session: int) -> dict:
        path = self.session_folder(session) / "state.json"
        state = read_json(path, self.way_out(session), shapes.STATE)
        if state is None:
            raise RunError(f"{self.folder.name} has not finished session {session + 1}.")
        if missing := [key for key in ("classes", "metrics", "method") if key not in state]:
            raise damaged(path, f"it lacks {', '.join(missing)}", self.way_out(session))
        if "mAP_seen" not in state["metrics"]:
            raise damaged(path, "its metrics lack mAP_seen", self.way_out(session))
        if state.get("session", session) != session:
            raise damaged(path, f"it is of session {state['session'] + 1}", self.way_out(session))
        return {**state, "metrics": known(state["metrics"])}

    def in_short(self, session: int) -> dict:
        """`session_state` without what grows with classes and exemplars, so that those of hundreds can be held; read
        again only where the file has changed."""
        now = stamp(self.session_folder(session) / "state.json")
        if session not in self._short or self._short[session][0] != now:
            state = self.session_state(session)
            numbers = {key: value for key, value in state["metrics"].items() if key != "AP_seen"}
            short = {key: value for key, value in state.items() if key not in GROWING} | {"metrics": numbers}
            self._short[session] = now, short
        return self._short[session][1]

    @property
    def environment(self) -> dict:
        """What the newest start ran on and with; empty where nothing is recorded."""
        return {key: value for key, value in self._starts().items() if key != "starts"}

    @property
    def starts(self) -> list[dict]:
        """The records of all starts; a folder of an older version has that of the newest alone."""
        content = self._starts()
        return content.get("starts") or ([content] if content else [])

    def _starts(self) -> dict:
        way_out = "delete it; the run then goes on, and what its earlier starts ran on is unknown."
        return read_json(self.folder / "environment.json", way_out, shapes.ENVIRONMENT) or {}

    @property
    def leak(self) -> str | None:
        """Why its first weights had seen the labels to be learned (``--allow-leak``); None: no reason known."""
        return next((why for s in self.starts if (why := (s.get("weights") or {}).get("leak"))), None)

    @property
    def oracle(self) -> bool:
        """Was its method shown true labels of old classes, so that it is a bound and no method?"""
        e = self.experiment
        return is_oracle(class_of(e.method), e.options) or any(start.get("oracle") for start in self.starts)

    @property
    def mixed(self) -> list[str]:
        """In what the starts that made a finished run differ, in words; empty for one of a piece."""
        with contextlib.suppress(RunError):
            return (self.written_summary() or {}).get("mixed") or []
        return []

    @property
    def data(self) -> dict[str, str]:
        """Hashes of labels (``inputs``) and image files (``images``) it was made with, as far as it tells."""
        made_with = self.session_state(0).get("made_with") or {} if self.finished_sessions else {}
        images = made_with.get("images")
        found = {"inputs": made_with.get("inputs"), "images": images and images["sizes"] + images["sample"]}
        return {key: value for key, value in found.items() if value}

    @property
    def progress(self) -> dict:
        try:
            return read_json(self.folder / "progress.json", ANEW, shapes.PROGRESS) or {}
        except RunError:
            return {}  # for looking only

    @property
    def epochs(self) -> list[dict]:
        """Lines of metrics.jsonl, up to one that was cut short."""
        return read_epochs(self.folder / "metrics.jsonl")

    def epochs_of(self, session: int) -> int:
        """How many epochs a session has. One of the run that this one has grown from may have others than it."""
        if self.experiment.data.added and session + 1 < len(self.experiment.protocol.sizes):
            return max((made["epoch"] + 1 for made in self.epochs if made["session"] == session), default=1)
        return self.experiment.train.epochs

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol as this run used it, from the classes stored with its first session."""
        return self._protocol(self.session_state(0)["classes"])

    def _protocol(self, classes: list[str]) -> Protocol:
        made = protocol_of(self.experiment.protocol, tuple(sorted(classes)), len(self.experiment.data.added))
        if list(made.classes) != classes:
            raise RunError(f"{self.folder}: the stored class order does not follow from its protocol.")
        return made

    def method_state(self, session: int) -> dict:
        """What the method kept after a session, tensors included."""
        path = self.session_folder(session) / "method.safetensors"
        tensors = read_tensors(path, self.way_out(session)) if path.is_file() else {}
        try:
            return join(self.session_state(session)["method"], tensors)
        except KeyError as error:
            raise RunError(f"{path} lacks the tensor {error}: {self.way_out(session)}") from None

    def scores(self, session: int) -> Scores:
        """Scores of the whole test set after a session."""
        path = self.session_folder(session) / "scores.npz"
        if not path.is_file():
            raise RunError(f"{path} is missing: session {session + 1} of {self.folder.name} is not finished.")
        found, learned = Scores.read(path, len(self.protocol.classes), self.way_out(session)), self.protocol.sessions
        if found.scores.shape[1] != (stop := learned[session].stop if session < len(learned) else 0):
            raise damaged(path, f"it must hold scores of {stop} classes", self.way_out(session))
        return found

    def calibration(self, session: int) -> Calibration:
        """How scores after a session become probabilities; of a run that calibrates nothing: as they are."""
        path, classes = self.session_folder(session) / "calibration.json", self.protocol.sessions[session].stop
        return Calibration.read(path, classes, self.way_out(session)) or Calibration.none(classes)

    def calibrated(self) -> dict[str, float]:
        """After the last session, on the test images that show a class: CF1 and OF1 with each class's own threshold on
        its calibrated probability, and the mean over classes of the expected calibration error of the scores (ECE) and
        of the probabilities (ECE_calibrated). Empty for a run that calibrates nothing."""
        found = self.calibration(len(self.protocol.sessions) - 1)
        if not found.fitted.any():
            return {}
        scores, labels = self.tested()
        p = found.probabilities(scores)
        f1 = precision_recall_f1(p, labels, found.thresholds)
        error, left = (float(np.nanmean(calibration_errors(said, labels))) for said in (scores, p))
        return {"CF1_calibrated": f1["CF1"], "OF1_calibrated": f1["OF1"], "ECE": error, "ECE_calibrated": left}

    def f1(self, threshold: float) -> dict[str, float]:
        """CP to OF1 after the last session as `krt_core.evaluate.session_metrics` has them, at another threshold."""
        return precision_recall_f1(*self.tested(), threshold)

    def best_thresholds(self) -> tuple[float, float]:
        """Of CF1 and of OF1 after the last session, on the images that this run was tested on."""
        scores, labels = self.tested()
        return best_threshold(scores, labels, "CF1"), best_threshold(scores, labels, "OF1")

    def tested(self, session: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels (m, C) after a session (-1: the last) of the test images that show a class seen by then."""
        session %= len(self.protocol.sessions)
        found = self.scores(session)
        rows, columns = self.protocol.test_subsets(found.labels, session)["seen"]
        return found.scores[rows][:, columns], found.labels[rows][:, columns]

    def ahead(self, session: int) -> Ahead | None:
        """What the model after a session said to the next one's training images; None if no method asked."""
        path = self.session_folder(session) / "ahead.npz"
        return Ahead.read(path, self.way_out(session)) if path.is_file() else None

    def ap(self, session: int) -> dict[str, np.ndarray]:
        """AP (C seen,) after a session on each pool of test images, see `ap_of_session`."""
        path = self.session_folder(session) / "ap.npz"
        with contextlib.suppress(RunError, FileNotFoundError):  # of older versions, or damaged: the scores tell it too
            found = read_ap(path, self.way_out(session))
            if all(ap.shape == (self.protocol.sessions[session].stop,) for ap in found.values()):
                return found
        scores = self.scores(session)
        return ap_of_session(self.protocol, session, scores.scores, scores.labels, scores.ids)

    @cached_property
    def ap_tables(self) -> dict[str, np.ndarray]:
        """AP (sessions, classes) of the finished sessions on each pool of test images; NaN where a class is not yet
        learned. At most one session's scores are held at a time."""
        return tables_of(self.protocol, (self.ap(t) for t in range(self.finished_sessions)))

    @property
    def first_session(self) -> np.ndarray:
        """(C,) session in which each class was learned, for the classes learned so far."""
        sessions = self.protocol.sessions[: self.finished_sessions]
        return np.concatenate([np.full(s.stop - s.start, s.index) for s in sessions])

    def forgetting(self) -> dict[str, float]:
        """Every definition of forgetting over the finished sessions (see `krt_core.metrics.forgetting`)."""
        learned = len(self.first_session)
        return forgetting({pool: table[:, :learned] for pool, table in self.ap_tables.items()}, self.first_session)

    def curve(self, key: str = "mAP_seen") -> np.ndarray:
        """One metric after each finished session."""
        return np.array([self.in_short(t)["metrics"][key] for t in range(self.finished_sessions)])

    def final_summary(self) -> dict:
        """What DONE holds: the numbers of the whole run, from its session states and scores."""
        last = len(self.protocol.sessions) - 1
        states = [*map(self.in_short, range(last)), self.session_state(last)]
        e = self.experiment
        about = {"method": e.method, "dataset": e.data.dataset, "protocol": self.protocol.name, "seed": e.seed}
        made_by = {"config_hash": self.experiment.hash(), "commit": self.environment.get("commit")}
        starts, used = self.starts, sorted({index for state in states for index in state.get("starts", [0])})
        mixed = mixed_of([starts[index] if index < len(starts) else {} for index in used])
        return about | summary_of(states, self.forgetting()) | made_by | ({"mixed": mixed} if mixed else {})

    def model_state(self, session: int) -> dict[str, Tensor]:
        """Weights after a session; of a backbone that stands still since, they are in the file of the first one."""
        path = self.session_folder(session) / "model.safetensors"
        tensors = read_tensors(path, self.way_out(session))
        if not session or any(name.startswith("backbone.") for name in tensors):
            return tensors
        below = self.session_folder(0) / "model.safetensors"
        if not below.is_file():
            raise RunError(
                f"{path} holds no backbone: it stands still and is in {below} alone, which is missing. Copy it there "
                "from where the run was made."
            )
        first = read_tensors(below, self.way_out(0))
        return tensors | {name: tensor for name, tensor in first.items() if name not in tensors and is_still(name)}

    def fill(self, model: torch.nn.Module, session: int) -> None:
        """Give a network the weights after a session; RunError where they are not of such a network."""
        tensors = self.model_state(session)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            path, lines = self.session_folder(session) / "model.safetensors", str(error).splitlines()
            raise RunError(
                f"{path} is not of the network that {self.folder / 'experiment.yaml'} describes "
                f"({''.join(lines[1:2]).strip().rstrip('.')}): it was put there from another run, or made by another "
                "version of the workbench. Open it with that one, copy the right file there, or "
                f"{self.way_out(session)}"
            ) from None

    def load_resume(self) -> dict[str, Any] | None:
        """Where an interrupted session goes on; None where there is none. RunError if the file is damaged."""
        path = self.folder / "resume.pt"
        if not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
                if (spoiled := archive.testzip()) is not None:
                    raise ValueError(f"{spoiled} is not as it was written")
            content = torch.load(path, map_location="cpu", weights_only=True)
            if {"session", "epoch", "model", "learner", "method", "made_with", "best", "seconds"} <= content.keys():
                return content
            raise ValueError("it lacks keys")
        except Exception as error:  # whatever zip files, pickles and tensors raise
            raise damaged(path, error, "the session it belongs to starts anew.") from None

    def check_sessions(self) -> list[str]:
        """What is damaged among the finished sessions and not needed to go on, in words. RunError, with the way out,
        where it is needed."""
        said, finished = [], self.finished_sessions
        for session in range(finished):
            state = self.session_state(session)
            if missing := [key for key in NEEDED if key not in state]:
                path = self.session_folder(session) / "state.json"
                raise RunError(f"{path} lacks {', '.join(missing)}: {self.way_out(session)}")
            try:
                check_arrays(self.session_folder(session) / "scores.npz", self.way_out(session))
            except (RunError, FileNotFoundError) as error:
                self.ap(session)  # enough to finish the run with
                said.append(f"{error} The training goes on without it; figures of that session are not to be had.")
        if finished:
            self.calibration(finished - 1)  # from which that of the next one follows
        return said
