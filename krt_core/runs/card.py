"""The card of a run: README.md in its folder, for whoever finds it. What it was, its numbers, how to repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..metrics import F1_THRESHOLD
from .reader import Reader

STILL = {"none": "", "first": ", learns in the first session alone", "all": ", stands still"}


def card(run: Reader, summary: dict[str, Any]) -> str:
    """Markdown of a run whose sessions are finished; summary: what DONE holds."""
    import jinja2

    states = [run.in_short(index) for index in range(run.finished_sessions)]
    e, replay, weights = run.experiment, run.experiment.replay, summary["weights"]
    stored = f"{replay.per_class} a class" if replay.per_class else f"{replay.budget} in all" if replay.budget else ""
    file = weights.get("file") or weights.get("weights") or "random"
    template = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)  # nosec B701: no HTML
    return environment.from_string(template).render(
        run=run, e=e, summary=summary, marks=_marks(run, states), still=STILL[e.model.freeze], changes=e.changes(),
        stored=(stored if summary["exemplars"] else f"none, as {e.method} uses none") if stored else "none",
        weights=f"{file} (trained on: {weights['trained_on']})" if weights.get("trained_on") else file,
        made=run.environment,
        images="training images held out for validation" if e.data.test == "validation" else "test images",
        states=states,
        number=lambda value: "–" if value is None or value != value else f"{value:.2f}", threshold=F1_THRESHOLD,
    )  # fmt: skip


def _marks(run: Reader, states: list[dict[str, Any]]) -> list[str]:
    """What must be said before any number."""
    on_test = any(state.get("epoch_chosen_on") == "test" for state in states)
    return [
        *([f"**LEAK**: {run.leak}"] if run.leak else []),
        *(
            ["**ORACLE**: the method was shown true labels of old classes, which no method may see."]
            if run.oracle
            else []
        ),
        *(["**Epochs chosen on the test images** (train.report=best): the numbers are too good."] if on_test else []),
        *([f"**mixed**: its starts differ in {'; '.join(run.mixed)}."] if run.mixed else []),
    ]
