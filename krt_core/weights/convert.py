"""Networks out of run folders: as modules for whoever looks at them, and as files for the published code."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..config import Experiment
from ..errors import RunError
from ..machine.home import resolve
from ..methods import Method, method_class
from ..model import Network
from ..model.network import build_network
from ..runs.files import damaged
from ..runs.folder import Run
from .published import save_published


def network_of(experiment: Experiment) -> Network:
    """The network of an experiment before its first session, with random weights. Where ``model.expand`` says nothing,
    a method's own ``expand`` is the width of the random layer."""
    e = experiment
    own = e.options.get("expand", 0) if isinstance(e.options, dict) else getattr(e.options, "expand", 0)
    model = e.model if e.model.expand else replace(e.model, expand=own)
    return build_network(model, e.head, e.data.image_size, e.train.compile, e.train.batch_norm == "frozen")


def load_model(run: Run, session: int) -> Network:
    """The network as it was after a session (0 is the first), in eval mode on the CPU; RunError if unfinished."""
    state = run.session_state(session)
    model = copy.deepcopy(_without_sessions(run.experiment))
    tensors = run.model_state(session)
    heads = {
        int(m[1]): len(b) for name, b in tensors.items() if (m := re.fullmatch(r"heads\.(\d+)\.(head\.)?bias", name))
    }
    for head in sorted(heads):
        model.add_session(heads[head])
    run.fill(model, session)
    if state["classes"] != list(run.protocol.classes):
        raise RunError(f"{run.folder}: classes of session {session + 1} do not follow from the protocol.")
    model.leak = run.leak
    return model.eval()


def load_method(run: Run, session: int, model: Network) -> Method:
    """The method as it was after a session, to answer for that session's model (`load_model`); ConfigError where a
    method outside the package is gone, RunError where its state does not fit."""
    e, state = run.experiment, run.method_state(session)
    method = method_class(e.method)(e.options, e)
    try:
        method.reopen(model, state)
    except (KeyError, RuntimeError, RunError, ValueError) as error:
        path = run.session_folder(session) / "state.json"
        raise damaged(path, f"of another {e.method}: {error}", run.way_out(session)) from None
    return method


@lru_cache(maxsize=1)
def _without_sessions(experiment: Experiment) -> Network:
    """Building a large backbone takes four times as long as copying it."""
    return network_of(experiment)


def export_published(run: Run, session: int, path: str | Path) -> Path:
    """Write a session's weights as a ``.pth`` file in the published layout; session 0 is the first.

    Raises RunError if the session is not finished, CheckpointError unless the model is ICA on a TResNet.
    """
    path = resolve(path)
    save_published(load_model(run, session), path)
    return path
