"""Long and large, in small: what a session or a start costs must not grow with those before it."""

import gc
import json
from collections import Counter

import numpy as np
import pytest

import krt_core as krt
from benchmarks.endurance import sessions as long
from benchmarks.endurance import table as large
from benchmarks.endurance.diary import diary, read
from benchmarks.endurance.world import SMALL, write_rows, write_world
from benchmarks.made_up_runs import finished
from krt_core.config import Replay, load_experiment
from krt_core.data.dataset import MultiLabelDataset
from krt_core.lab.bench.matrix import Job
from krt_core.lab.bench.state import JobFiles
from krt_core.lab.report import collect, html, tables
from krt_core.memory import Ranked
from krt_core.protocol import Protocol, make_protocol
from krt_core.runs.reader import Reader
from krt_core.runs.shown import Tally


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls of a method of a class from here on."""

    def count(owner, name):
        calls, work = Counter(), getattr(owner, name)

        def told(self, *arguments, **options):
            calls[arguments[-1] if arguments else None] += 1
            return work(self, *arguments, **options)

        monkeypatch.setattr(owner, name, told)
        return calls

    return count


def many_sessions(home, method, sessions, **changes):
    """A run of sessions of two classes: its diary, as `benchmarks.endurance.sessions.run` has it."""
    gc.collect()  # what other tests have left would go meanwhile
    data = write_world(home / "world", 2 * sessions, 5, 2)
    what = {**SMALL, "method": method, "data.root": str(data), "protocol.increment": 2, **changes}
    (temporary := home / "temporary").mkdir()
    with diary(home / "lines", home / "run", temporary, (home / "data",)):
        run = krt.train(load_experiment("digits_demo", what), folder=home / "run", show="none")
    return run, {"method": method, "peak_mb": 0, "sessions": read(home / "lines")}


@pytest.mark.parametrize(
    "method, changes",
    [("ridge", {"data.validation": 0.2}), ("finetune", {}), ("krt", {"replay.per_class": 1, "krt.per_class": True})],
)
@pytest.mark.slow
def test_forty_sessions_leave_nothing_behind(home, counted, method, changes):
    looks = counted(Protocol, "train_images")
    reads = counted(Reader, "session_state")
    run, result = many_sessions(home, method, 40, **changes)
    lines = result["sessions"]
    assert [line["session"] for line in lines] == list(range(40)) and run.complete
    assert max(line["temporary_files"] for line in lines) == 0
    for key in ("handles", "threads", "maps"):
        assert max(line[key] for line in lines[5:]) <= lines[5][key], key
    classes = [line["classes"] for line in lines[1:-1]]  # the last one looks at no images of a session to come
    for name in lines[1]["bytes"]:  # of scores ahead those of an image of the next session, as exemplars become more
        images = [line["images"] if name == "ahead.npz" else 1 for line in lines[2:]]
        each = [line["bytes"][name] / count for line, count in zip(lines[1:], images, strict=False)]
        assert long.beyond(each, classes) < 1.15, name
    assert long.beyond(np.diff([line["log_bytes"] for line in lines])[:-1], classes) < 1.15
    assert max(looks.values()) <= 12 and max(reads.values()) <= 12  # of one session, whatever came after it
    assert set(lines[5]["parts"]) >= {"learn", "test", "forgetting", "write"}


def test_what_grows_faster_than_its_classes_is_said():
    classes = list(range(5, 1005, 5))
    assert long.beyond([3.0] * 200, classes) == pytest.approx(1)
    assert long.beyond([2.0 + 0.1 * c for c in classes], classes) == pytest.approx(1)
    assert long.beyond([1.0 * c * c for c in classes], classes) > 1.6
    line = {"parts": dict.fromkeys(long.LOOKS, 0.0), "images": 100, "threads": 1, "maps": 2, "temporary_files": 0}
    lines = [
        {**line, "classes": c, "handles": 9, "processor": 0.001 * c, "memory_mb": 800, "bytes": {"a": c}}
        for c in classes
    ]
    whole = {"method": "x", "peak_mb": 900, "sessions": lines}
    assert not long.judged(whole)
    for change, word in (
        ({"handles": lambda c: 9 + c // 100}, "handles grow"), ({"processor": lambda c: 1e-6 * c * c}, "processor"),
        ({"memory_mb": lambda c: 100 + 1e-3 * c * c}, "memory_mb"), ({"bytes": lambda c: {"a": c * c}}, "bytes"),
        ({"temporary_files": lambda c: int(c == 500)}, "1 temporary files"),
    ):  # fmt: skip
        changed = [{**one, **{key: value(one["classes"]) for key, value in change.items()}} for one in lines]
        assert [fault for fault in long.judged({**whole, "sessions": changed}) if word in fault]
    assert long.judged({**whole, "peak_mb": 4001}) == ["x: 4001 MB of memory"]


@pytest.mark.parametrize("images", ["shared", "disjoint"])
def test_a_tally_says_what_counting_anew_says(images, counted):
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 12)) < 0.2).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    protocol = make_protocol(tuple("abcdefghijkl"), 0, 3, images=images)
    looks = counted(Protocol, "train_images")
    tally = Tally(protocol, labels)
    tally.shown(3)
    for t in (2, 0, 3, 1):
        rows = [set(protocol.train_images(labels, s).tolist()) for s in range(t + 1)]
        every = sorted(set.union(*rows))
        assert tally.images(t) == len(every) and protocol.shown_images(labels, t).tolist() == every
        counts = []
        for s in protocol.sessions[: t + 1]:
            own = labels[sorted(rows[s.index])][:, s.columns]
            counts += [(y > 0).sum() * (len(y) / max((y >= 0).sum(), 1)) for y in own.T]
        assert tally.shown(t).counts.tolist() == counts and set(tally.shown(t).images) == {len(every)}
        old = counts[: protocol.sessions[t].start]
        assert tally.frequency(t).tolist() == [count / len(every) for count in old]
    looks.clear()
    for _ in range(3):
        tally.shown(3), tally.frequency(2)
    assert not looks


def test_what_is_lacking_is_told_once():
    memory = Ranked(Replay(per_class=2), [[5, 6], [7]], [0, 0])
    names = ("ant", "bee", "cat", "dog")
    assert memory.remark(names) == "fewer images than exemplars asked for: bee (1)"
    memory.ranked, memory.sessions = [*memory.ranked, [8, 9], []], [0, 0, 1, 1]
    assert memory.remark(names) == "fewer images than exemplars asked for: dog (0)" and not memory.remark(names)


def test_the_size_of_an_exemplar_is_asked_for_once(tmp_path, counted):
    names = np.array(["a", "b", "c"])
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"x" * 10)
    dataset = MultiLabelDataset("t", "train", tmp_path, names, names, np.ones((3, 1), bool), ("one",))
    paths = counted(MultiLabelDataset, "path")
    assert [dataset.bytes_of(np.array(rows)) for rows in ([0], [0, 0, 1], [1, 2], [0, 1, 2])] == [10, 20, 10, 20]
    assert paths == {0: 1, 1: 1, 2: 1}
    assert dataset.select_images(np.array([False, True, False]), "train").bytes_of(np.array([0])) == 10


def test_five_thousand_rows(home, monkeypatch):
    root = write_rows(home / "table", 5000, large.CLASSES)
    lines = large.steps(root)
    assert [line["start"] for line in lines] == ["first"] * 5 + ["again"] * 5
    assert all(line["memory_mb"] - lines[0]["memory_mb"] < 200 for line in lines)
    monkeypatch.setattr("krt_core.data.table.read_table", lambda path: pytest.fail("read again"))
    monkeypatch.setattr("krt_core.data.store.load_image", lambda *_: pytest.fail("decoded again"))
    assert len(large.steps(root)) == 10  # another start: nothing has changed, and nothing is read
    monkeypatch.undo()


def test_one_bad_row_among_many_is_named(home):
    root = write_rows(home / "table", 5000, large.CLASSES)
    said = large.faults(root, 2501)
    assert len(said) == 6 and not large.judged({"rows": 5000, "peak_mb": 1, "faults": said}, 2)
    assert large.judged({"rows": 5000, "peak_mb": 3, "faults": {"x": "row 7"}}, 2) == [
        "table: 3 MB of memory", "table: of x it is said: row 7"
    ]  # fmt: skip


def test_a_quotation_mark_that_swallows_a_large_table_is_named(home):
    root = write_rows(home / "table", 20, 2)
    text = (root / "tags.csv").read_text().splitlines()
    text[5] = text[5].replace(",", ',"') + "|" + "x" * 200_000
    (root / "tags.csv").write_text("\n".join(text) + "\n")
    with pytest.raises(krt.KRTError, match="row 6: a cell begins with a quotation mark that nothing ends"):
        krt.open_dataset(large.experiment_of(root))


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sixty")
    for number in range(60):
        overrides = [f"method={('krt', 'pod', 'finetune', 'joint')[number % 4]}", f"seed={number // 4}"]
        finished(overrides=overrides, images=12, folder=str(folder / str(number)))
    return folder


def test_a_report_reads_each_state_as_often_for_sixty_runs_as_for_four(sixty, counted):
    reads = counted(Reader, "session_state")

    def report(runs):
        reads.clear()
        html.html_report(runs), tables.runs_table(runs), tables.sessions_table(runs)
        return sum(reads.values()) / len(runs)

    runs, left_out = collect([sixty])
    assert len(runs) == 60 and not left_out
    assert report(runs) <= report(collect([sixty])[0][:4]) <= 16
    reads.clear()
    assert len([run.curve(key) for run in runs for key in ("mAP_seen", "mAP_base", "mAP_new")]) == 180 and not reads


def test_a_job_that_is_as_it_was_is_not_written_again(tmp_path):
    job = Job("a", "g", "02_train_sessions", {"seeds": [0]}, str(tmp_path / "run"))
    path = JobFiles(tmp_path, job).write_job()
    before = path.stat().st_ino
    assert JobFiles(tmp_path, job).write_job() == path and path.stat().st_ino == before
    path.write_text("{")
    assert JobFiles.of(JobFiles(tmp_path, job).write_job().parent).job.parameters == {"seeds": [0]}


def test_a_state_that_was_written_anew_is_read_again(sixty):
    run = krt.open_run(sixty / "0")
    before, path = run.curve(), run.session_folder(1) / "state.json"
    state = json.loads(path.read_text())
    assert "AP_seen" in state["metrics"] and "AP_seen" not in run.in_short(1)["metrics"]
    path.write_text(json.dumps({**state, "metrics": {**state["metrics"], "mAP_seen": 12.5}}))
    assert run.curve()[1] == 12.5 and run.curve()[0] == before[0]
    path.write_text(json.dumps(state))
    assert run.curve().tolist() == before.tolist()


def test_figures_of_a_thousand_classes_stay_of_a_size_that_can_be_seen(tmp_path):
    classes = [f"class {i:04d}" for i in range(400)]
    run = finished(overrides=["protocol.increment=8"], classes=classes, images=30, folder=str(tmp_path / "run"))
    heat, bars = krt.figures.class_session_heatmap([run]), krt.figures.forgetting_bars([run])
    assert max(heat.get_size_inches()) < 30 and max(bars.get_size_inches()) < 30
    assert heat.axes[0].images[0].get_array().shape == (400, 50) and len(heat.axes[0].texts) == 100
    assert len(heat.axes[0].get_xticks()) <= 20 and heat.axes[0].get_xticklabels()[0].get_text() == "1"
    curves = krt.figures.session_curves([run]).axes[0]
    assert [text.get_text() for text in curves.get_xticklabels()][:2] == ["1\n8", "4\n32"]


# ---- slow ones ----


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eighty_sessions_of_five_classes(home):
    """Of two hundred `make endurance` tells; its limit for seconds is for a machine that does nothing else."""
    result = long.measure(home, 80, 5, 10, 2, "finetune")
    assert len(result["sessions"]) == 80 and result["sessions"][-1]["classes"] == 400
    assert not long.judged(result, straight=2.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_thousand_rows(home):
    result = large.measure(home, 50_000, train=False)
    assert not large.judged(result, long.LARGEST_MB)
    first, again = (sum(x["processor"] for x in result["steps"] if x["start"] == start) for start in ("first", "again"))
    assert again < first / 4
