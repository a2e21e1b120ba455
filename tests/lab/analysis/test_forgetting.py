"""What was forgotten in detail, on cases small enough to count by hand."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.made_up_runs import coco, finished
from krt_core.errors import RunError
from krt_core.evaluate import session_metrics
from krt_core.lab import figures
from krt_core.lab.analysis.forgetting import confusions, falls, lost_images
from krt_core.runs.folder import Run, Scores


def replace_scores(run, session, scores, labels):
    """Put scores (n, C seen) and labels (n, C) in the place of a session's."""
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels)
    labels = labels if labels.dtype == np.int8 else labels.astype(bool)
    state = run.session_state(session)
    state["metrics"] = session_metrics(run.protocol, session, scores, labels, full=True)
    ids = np.arange(len(scores)).astype(str)
    run.write_session(session, {}, Scores(ids, scores, labels), state)


@pytest.fixture
def counted():
    """Two sessions of two classes, a b | c d, five images."""
    run = finished(classes=("a", "b", "c", "d"))
    labels = [[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    before = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.1], [0.7, 0.3]]
    after = [
        [0.3, 0.1, 0.8, 0.1], [0.7, 0.2, 0.9, 0.2], [0.5, 0.9, 0.9, 0.1], [0.6, 0.1, 0.3, 0.9], [0.65, 0.3, 0.5, 0.1],
    ]  # fmt: skip
    replace_scores(run, 0, before, labels)
    replace_scores(run, 1, after, labels)
    return Run(run.folder)


def test_falls(counted):
    table = falls([counted], 1)
    assert table["class"].tolist() == ["a", "b"] and table.learned.tolist() == [1, 1]
    # a after: ranks of its images are 1 (0.7), 2 (0.65), 5 (0.3): AP (1 + 1 + 3/5) / 3.
    np.testing.assert_allclose(table.before, [100, 100])
    np.testing.assert_allclose(table.after, [100 * (1 + 1 + 3 / 5) / 3, 100])
    np.testing.assert_allclose(table.change, table.after - table.before)
    assert np.isnan(table["std"]).all()
    with pytest.raises(RunError, match="in the first session"):
        falls([counted], 0)


def test_falls_average_over_seeds():
    runs = [finished(overrides=[f"seed={seed}"]) for seed in (0, 1, 2)]
    table, each = falls(runs, 3), [falls([run], 3).set_index("class").change for run in runs]
    changes = np.stack([change[table["class"]] for change in each])
    np.testing.assert_allclose(table.change, changes.mean(axis=0))
    np.testing.assert_allclose(table["std"], changes.std(axis=0, ddof=1))
    assert (np.diff(table.change) >= 0).all()
    shuffled = finished(overrides=["protocol.order_seed=1"])
    with pytest.raises(RunError, match="different orders"):
        falls([runs[0], shuffled], 3)


def test_confusions(counted):
    table = confusions(counted, 0, 1).set_index("new class")
    # c on images with a but not c (0.8, 0.5), above c on the only image with neither (0.3)
    assert table.loc["c", "said instead"] == pytest.approx(100 * (0.65 - 0.3))
    assert table.loc["d", "said instead"] == pytest.approx(100 * ((0.1 + 0.2 + 0.1) / 3 - 0.1))
    assert table.loc["c", "together"] == pytest.approx(100 / 3) and table.loc["d", "together"] == 0
    assert table.loc["c", "change with it"] == pytest.approx(100 * (0.7 - 0.8))
    assert table.loc["c", "change without it"] == pytest.approx(100 * ((0.3 - 0.9) + (0.65 - 0.7)) / 2)
    assert np.isnan(table.loc["d", "change with it"])
    assert table.loc["c", "change on it alone"] == pytest.approx(100 * (0.5 - 0.1), abs=1e-3)
    assert table.loc["d", "change on it alone"] == pytest.approx(100 * (0.6 - 0.2), abs=1e-3)
    assert table.index[0] == "c"
    with pytest.raises(RunError, match="c was not learned before session 2"):
        confusions(counted, 2, 1)


def test_lost_images(counted):
    table = lost_images(counted, 0, threshold=0.65)
    assert table.image.tolist() == ["0", "4"]  # image 1 is still above
    np.testing.assert_allclose(table.fall, [0.6, 0.05], atol=1e-6)
    assert lost_images(counted, 0, threshold=0.95).empty


def test_pictures_of_every_size():
    small, large = finished(), coco()
    for run in (small, large):
        table = falls([run], 3)
        drawn = [
            figures.class_session_heatmap([run]),
            figures.class_session_heatmap([run], change=True, classes=[0, 3]),
            figures.class_curves([run]),
            figures.class_curves([run], classes=[1]),
            figures.forgetting_bars([run], classes=[0, 1]),
            figures.forgetting_bars([run]),
            figures.falls_in_session(table, 3),
            figures.falls_in_session(table[table.change > 0], 3),
            figures.said_instead({"first": confusions(run, 0, 3)}, 3),
        ]
        for figure in drawn:
            FigureCanvasAgg(figure).draw()
    assert len(figures.class_curves([large]).axes[0].places) == 80


def test_the_authors_ap_is_laid_over():
    from krt_core.lab.report.published import author_ap, author_curves

    run = coco()
    tables = author_ap("coco2014", 10, 10, run.protocol.classes)
    assert tables.keys() == author_curves("coco2014", 10, 10).keys() and tables
    for name, table in tables.items():
        assert table.shape == (8, 80) and np.isnan(table[0, 10:]).all() and np.isfinite(table[-1]).all()
        seen = author_curves("coco2014", 10, 10)[name]
        assert np.nanmean(table[-1]) == pytest.approx(seen[-1], abs=0.1)
    assert not author_ap("coco2014", 10, 10, ("ant", "bee"))
    FigureCanvasAgg(figures.class_curves([run], reference=tables)).draw()


def test_lost_images_without_a_data_set(counted):
    figure = figures.lost_images(counted, None, lost_images(counted, 0, threshold=0.65), 0, 0, 1, 0.65)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "then 0.90" in texts and "now 0.30" in texts and any("no data set" in text for text in texts)


def test_images_of_which_a_class_is_unknown_are_left_out(counted):
    labels = counted.scores(1).labels.astype(np.int8)
    labels[1, 2] = labels[3, 0] = -1  # of the only image with a and c, whether it shows c; of that with d, whether a
    then, now = counted.scores(0), counted.scores(1)
    replace_scores(counted, 0, then.scores, labels)
    replace_scores(counted, 1, now.scores, labels)
    run = Run(counted.folder)
    table = confusions(run, 0, 1).set_index("new class")
    assert table.loc["c", "together"] == 0 and np.isnan(table.loc["c", "change with it"])
    assert table.loc["c", "change without it"] == pytest.approx(100 * ((0.3 - 0.9) + (0.65 - 0.7)) / 2)
    assert np.isnan(table.loc["d", "change on it alone"])
    assert table.loc["c", "change on it alone"] == pytest.approx(100 * (0.5 - 0.1))
    assert lost_images(run, 0, threshold=0.6).row.tolist() == [0]
    labels[0, 0] = -1
    replace_scores(counted, 1, now.scores, labels)
    assert not len(lost_images(Run(counted.folder), 0, threshold=0.6))
