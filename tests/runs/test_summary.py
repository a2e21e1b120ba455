"""The numbers of a whole run."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.made_up_runs import finished
from krt_core.errors import RunError
from krt_core.metrics import average_precision, forgetting_per_class
from krt_core.protocol import make_protocol
from krt_core.runs.folder import Run, Scores
from krt_core.runs.summary import ap_of_session, ap_tables, summary_of

STATE = {"metrics": dict.fromkeys(("mAP_seen", "CP", "CR", "CF1", "OP", "OR", "OF1"), 50.0), "seconds": 1.0,
         "exemplar_ids": [], "weights": {}}  # fmt: skip


def test_the_headline_is_the_fall_from_the_best_on_the_whole_test_set():
    lost = {f"{kind}_{of}_{pool}": float(n) for n, (kind, of, pool) in enumerate(
        (kind, of, pool) for kind in ("max", "first") for of in ("class", "task") for pool in ("fixed", "seen", "own")
    )}  # fmt: skip
    lost["max_class_fixed"] = 77.0
    assert summary_of([STATE, STATE], lost)["forgetting"] == 77.0


def test_forgetting_of_a_run_by_hand():
    run = finished()
    summary, protocol = run.summary, run.protocol
    tables = ap_tables(protocol, [(s.scores, s.labels) for s in map(run.scores, range(5))])
    by_hand = np.nanmean(forgetting_per_class(tables["fixed"], run.first_session, "max"))
    assert summary["forgetting"] == pytest.approx(by_hand, abs=1e-4)
    assert summary["forgetting"] != pytest.approx(summary["forgetting_definitions"]["max_class_seen"], abs=1e-3)


def test_ap_of_a_session_against_a_plain_restatement():
    rng = np.random.default_rng(0)
    protocol = make_protocol(tuple("abcdef"), 2, 2)
    labels, scores = rng.random((60, 6)) < 0.3, rng.random((60, 4)).astype(np.float32)
    found = ap_of_session(protocol, 1, scores, labels)
    for c in range(4):
        own = protocol.sessions[c // 2].columns
        pools = {"fixed": np.ones(60, bool), "seen": labels[:, :4].any(1), "own": labels[:, own].any(1)}
        for pool, rows in pools.items():
            order = np.argsort(-scores[rows, c], kind="stable")
            hits = labels[rows, c][order]
            precision = [hits[: k + 1].mean() for k in range(len(hits)) if hits[k]]
            assert found[pool][c] == pytest.approx(100 * np.mean(precision))


def test_finishing_holds_the_scores_of_no_session(monkeypatch):
    run = finished()
    monkeypatch.setattr(Run, "scores", lambda self, session: pytest.fail("AP is stored with each session"))
    assert Run(run.folder).final_summary()["forgetting"] == run.summary["forgetting"]


SIZE = """
import resource, sys
import numpy as np
from krt_core.runs.folder import Run
run = Run(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run.final_summary()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_old_folders_hold_the_scores_of_one_session_at_a_time(tmp_path):
    """Five sessions of ten classes on 200,000 images: 8 MB of scores at the end, 24 MB in all, beside labels."""
    run = finished(images=200_000, folder=tmp_path / "run")
    for session in range(5):
        (run.session_folder(session) / "ap.npz").unlink()
    out = subprocess.run([sys.executable, "-c", SIZE, str(run.folder)], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 45, out.stdout  # MiB


def test_unknown_labels_are_kept_and_left_out_of_every_pool(tmp_path):
    rng = np.random.default_rng(0)
    protocol = make_protocol(tuple("abcdef"), 2, 2)
    labels, scores = rng.integers(-1, 2, (60, 6)).astype(np.int8), rng.random((60, 4)).astype(np.float32)
    found = ap_of_session(protocol, 1, scores, labels)
    for c in range(4):
        known = labels[:, c] >= 0
        shown = {"fixed": np.ones(60, bool), "seen": (labels[:, :4] > 0).any(1),
                 "own": (labels[:, protocol.sessions[c // 2].columns] > 0).any(1)}  # fmt: skip
        for pool, rows in shown.items():
            rows = rows & known
            alone = average_precision(scores[rows][:, [c]], labels[rows][:, [c]] > 0)
            assert found[pool][c] == alone[0]
    kept = Scores(np.arange(60).astype(str), scores, labels)
    kept.write(tmp_path / "scores.npz")
    again = Scores.read(tmp_path / "scores.npz", 6, "")
    assert again.labels.dtype == np.int8 and (again.labels == labels).all()
    for classes, worth in ((7, 1), (6, 2)):
        Scores(kept.ids, scores, worth * labels).write(tmp_path / "scores.npz")
        with pytest.raises(RunError, match="it is of another run than one of"):
            Scores.read(tmp_path / "scores.npz", classes, "")
    Scores(kept.ids, scores, labels > 0).write(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as stored:
        assert stored["labels"].dtype == np.uint8
    assert Scores.read(tmp_path / "scores.npz", 6, "").labels.dtype == bool
