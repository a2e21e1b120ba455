"""The card of a run says what the run says, and its command repeats it."""

import json
import re

from benchmarks.made_up_runs import finished
from krt_core.config import load_experiment
from krt_core.runs.card import card
from krt_core.runs.folder import Run
from krt_core.session import train


def cells(text, first):
    """The cells of the line of a table that begins so."""
    return [cell.strip() for cell in re.search(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.M).group(1).split("|")]


def test_it_says_the_runs_numbers_and_its_command_gives_them_again(tiny, home):
    run = train(tiny(replay__per_class=2), home / "run", show="none")
    text = (run.folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# krt on coco, B0-C2, seed 0\n") and "exemplars: 2 a class" in text
    for name, key in (("average mAP", "average_mAP"), ("last mAP", "last_mAP"), ("CF1", "CF1")):
        assert cells(text, name)[0] == f"{run.summary[key]:.2f}"
    for session in range(2):
        metrics = run.session_state(session)["metrics"]
        assert cells(text, str(session + 1))[1:4] == [
            f"{metrics[f'mAP_{part}']:.2f}" for part in ("seen", "base", "new")
        ]
    assert "LEAK" not in text and "ORACLE" not in text and "mixed" not in text
    again = train(load_experiment(str(run.folder / "experiment.yaml")), home / "again", show="none")
    assert {**again.summary, "seconds": 0, "peak_memory_mb": 0} == {**run.summary, "seconds": 0, "peak_memory_mb": 0}


def test_marks_come_before_any_number(tiny, home):
    run = train(tiny(krt__oracle=True), home / "run", show="none")
    text = (run.folder / "README.md").read_text(encoding="utf-8")
    assert text.index("**ORACLE**") < text.index("## Numbers") and "LEAK" not in text
    leaked = finished(overrides=["method=krt"], leak="it saw all ten digits")
    text = card(leaked, leaked.summary)
    assert text.index("**LEAK**: it saw all ten digits") < text.index("## Numbers") and "ORACLE" not in text


def test_it_says_which_images_the_numbers_are_of(tiny, home):
    how = {"method": "finetune", "data__validation": 0.3, "train__report": "best", "train__evaluate_every": 1}
    held = train(tiny(**how, data__test="validation"), home / "held", show="none")
    text = (held.folder / "README.md").read_text(encoding="utf-8")
    assert "on the training images held out for validation that show one" in text and "test images" not in text
    chosen = train(tiny(**{**how, "data__validation": 0.0}), home / "chosen", show="none")
    text = (chosen.folder / "README.md").read_text(encoding="utf-8")
    assert text.index("**Epochs chosen on the test images**") < text.index("## Numbers")


def test_a_run_that_goes_on_has_no_card(tiny, home):
    run = train(tiny(), home / "run", show="none")
    (run.session_folder(1) / "state.json").unlink()
    Run(run.folder).drop_after(1, 0)
    assert not (run.folder / "README.md").exists() and not (run.folder / "DONE").exists()


def test_names_with_a_bar_do_not_break_the_table(tiny, home):
    run = train(tiny(data__classes=["ant", "bee", "cat", "dog"]), home / "run", show="none")
    path = run.session_folder(0) / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, "classes": ["a|b", *state["classes"][1:]]}), encoding="utf-8")
    other = Run(run.folder)
    other.write_done(other.final_summary())
    assert "a\\|b" in (run.folder / "README.md").read_text(encoding="utf-8")
