"""The study: its matrices, the page made of their runs, and the backbone that has seen no digit."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY

from benchmarks import letters, study
from benchmarks.made_up_runs import finished
from krt_core.config import load_experiment
from krt_core.data import digits
from krt_core.lab.bench.matrix import expand, load_matrix, matrix_names, runs_by_variant
from krt_core.session import train

DOCS = Path(__file__).parents[1] / "docs"
METHODS = {"krt", "masked", "finetune", "ridge", "census", "joint"}


@pytest.mark.parametrize("name", study.FACTORS)
def test_a_matrix_varies_one_factor_alike_for_all_methods(name):
    levels = {}
    for changes, job in runs_by_variant(load_matrix(name)):
        levels.setdefault(study.FACTORS[name].level(changes), []).append(job.experiment)
    assert len(levels) >= 2 and {len(runs) for runs in levels.values()} == {18}
    for runs in levels.values():
        assert {e.method for e in runs} == METHODS
        assert {(e.seed, e.protocol.order_seed) for e in runs} == {(0, None), (1, 1), (2, 2)}
        assert len({(e.data, e.protocol.increment) for e in runs}) == 3 or len({e.data for e in runs}) == 1
        asked = [e.options.mean_labels for e in runs if e.method == "krt"]
        assert len(set(asked)) == 1
        assert not runs[0].data.cardinality or asked[0] == runs[0].data.cardinality  # μ is what the scenes have


def test_the_matrices_share_their_standard_runs():
    names = [name for name in matrix_names() if name.startswith("study_")]
    assert set(names) == set(study.FACTORS)
    jobs = {name: {job.run_folder for job in expand(load_matrix(name))} for name in names}
    standard = jobs["study_sessions"] & jobs["study_images"] & jobs["study_co_occurrence"] & jobs["study_backbone"]
    assert len(standard) == 18
    assert "outputs/study" in next(iter(standard))


def made_up(folder):
    """Three methods at two levels of a factor, but for a seed that is still to come."""
    matrix = load_matrix("study_sessions", folder=str(folder))
    for changes, job in runs_by_variant(matrix):
        e = job.experiment
        to_come = e.protocol.increment == 1 or (e.protocol.increment == 5 and e.seed == 2)
        if e.method in ("krt", "masked", "joint") and not to_come:
            wanted = [f"method={e.method}", f"seed={e.seed}", *(f"{key}={value}" for key, value in changes.items())]
            wanted += [] if e.protocol.order_seed is None else [f"protocol.order_seed={e.protocol.order_seed}"]
            finished(overrides=dict.fromkeys(wanted), folder=Path(job.run_folder))
    return matrix


def test_the_page_is_made_of_finished_runs(home, capsys):
    made_up(home / "study")
    shutil.copytree(DOCS, home / "docs", ignore=shutil.ignore_patterns("images", "results"))
    study.main(["study_sessions", "study_labels", "--folder", str(home / "study"), "--docs", str(home / "docs")])
    told = capsys.readouterr().out
    assert "study_sessions: written" in told and "study_labels: nothing to compare yet" in told
    assert (home / "study/study_sessions.pdf").is_file() and (home / "docs/images/study_sessions.png").is_file()
    page = (home / "docs/study.md").read_text()
    block = re.search(r"<!-- study_sessions -->\n(.*?)<!-- /study_sessions -->", page, re.DOTALL)[1]
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert [row.split("|")[1:3] for row in rows[2:]] == [[" 2 ", " 3 "], [" 5 ", " 2 "]]  # level, pairs
    assert all(name in rows[0] for name in (" krt ", " joint ", "krt − masked", "krt − joint")) and "nan" not in block
    again = study.fill(page, "study_sessions", "x")
    assert "<!-- study_sessions -->\n\nx\n\n<!-- /study_sessions -->" in again
    with pytest.raises(ValueError, match="no place for study_x"):
        study.fill(page, "study_x", "x")


def test_the_page_has_a_place_for_every_factor_and_names_every_matrix():
    page = (DOCS / "study.md").read_text()
    for name in study.FACTORS:
        assert study.fill(page, name, "x") and f"krt bench {name}" in page
    assert all(name in (DOCS / "benchmark.md").read_text() for name in ("study_labels", "study.md"))


def test_a_backbone_from_letters_is_known_for_what_it_is(home, monkeypatch):
    monkeypatch.setattr(digits, "SCENES", {"train": 160, "test": 100})
    path = letters.main(epochs=1)
    assert not {*letters.LETTERS} & {*digits.NAMES} and not {*letters.LETTERS} & {*letters.LIKE_DIGITS}
    letters.main(epochs=1)
    table = path.with_name("checkpoints.csv").read_text().splitlines()
    assert len(table) == 2 and table[1].startswith("letters.safetensors,")  # once, however often it is made
    changes = {key: value for key, value in TINY.items() if key.startswith(("train", "protocol"))}
    changes |= {"model.weights": "data/pretrained/letters.safetensors", "model.mean": 0.0, "data.cardinality": 2.0}
    run = train(load_experiment("digits_demo", {**changes, "method": "masked", "train.epochs": 1}), show="none")
    assert run.done and not run.leak and "printed letters" in run.session_state(0)["weights"]["trained_on"]
    assert "may know" not in (run.folder / "log.txt").read_text()


def test_letters_are_digits_in_all_but_what_they_are():
    seen, kept = letters.printed("train"), letters.printed("test")
    assert list(seen) == list(kept) == letters.LETTERS and len(letters.LETTERS) == 18
    for glyphs in (*seen.values(), *kept.values()):
        assert glyphs.shape[1:] == (8, 8) and glyphs.min() >= 0 and glyphs.max() <= 1
        assert (glyphs.max(axis=2) > 0.1).all()  # ink in every row, as the digits have it
    everything = [glyph.tobytes() for glyphs in (*seen.values(), *kept.values()) for glyph in glyphs]
    assert len(set(everything)) > 0.95 * len(everything)
