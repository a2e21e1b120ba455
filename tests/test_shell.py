"""``krt`` in the shells people have: no UTF-8 locale, no file locks, arguments in any order."""

import json
import os
import subprocess
import sys

import pytest

from krt_core.cli import main

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def krt(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "krt_core.cli", *arguments], env={**os.environ, **variables}, capture_output=True,
        check=False,
    )  # fmt: skip


def test_a_training_without_a_utf8_locale(tiny, coco_root, tmp_path):
    """Names of folders and classes that the locale has no letters for, too."""
    there = tmp_path / "Bilder 猫"
    os.rename(coco_root, there)
    file = there / "annotations" / "instances_train2014.json"
    for path in (file, file.with_name("instances_val2014.json")):
        path.write_text(path.read_text().replace('"ant"', '"Käfer"'), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(tiny(method="finetune", train__epochs=1).to_yaml())
    done = krt("train", str(tmp_path / "mine.yaml"), f"data.root={there}", "--folder", str(tmp_path / "ü"), **PLAIN)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "Käfer" in (tmp_path / "ü" / "log.txt").read_text(encoding="utf-8")
    listed = krt("report", str(tmp_path / "ü"), "--html", str(tmp_path / "r.html"), **PLAIN)
    assert listed.returncode == 0 and "Käfer" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_terminal_of_few_letters_ends_nothing():
    script = "import sys; from krt_core.cli import main; sys.exit(main(['presets', 'nö\\u2212\\ud800']))"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert said.returncode == 2 and b"There is no preset" in said.stderr and b"\\xf6" in said.stderr


NO_LOCKS = """
import errno, fcntl, os
before = fcntl.flock
def flock(file, operation):
    place = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
    if "/lustre/" in place:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    return before(file, operation)
fcntl.flock = flock
"""


def test_a_file_system_without_locks_is_named(tiny, tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(NO_LOCKS)
    (tmp_path / "mine.yaml").write_text(tiny(method="finetune", train__epochs=1).to_yaml())
    path = os.pathsep.join([str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")])
    folder = str(tmp_path / "lustre" / "run")
    done = krt("train", str(tmp_path / "mine.yaml"), "--folder", folder, PYTHONPATH=path)
    assert done.returncode == 2 and b"cannot be locked (No locks available)" in done.stderr
    assert b"Traceback" not in done.stderr and b"--folder or KRT_HOME" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["PRESET", "--folder", "F", "seed=1"], ["PRESET", "seed=1", "--folder", "F"],
        ["--folder", "F", "PRESET", "seed=1"], ["--folder", "F", "seed=1", "PRESET"],
        ["seed=1", "PRESET", "--folder", "F"],
        ["PRESET", "--folder", "F", "seed=1", "--device", "cpu", "train.lr=0.002"],
    ],
)  # fmt: skip
def test_overrides_may_stand_anywhere(arguments, tiny, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(tiny().to_yaml())
    seen = []

    class Done:
        folder = "x"

    def launch(*given):
        seen.append(given)
        return Done

    monkeypatch.setattr("krt_core.launch.launch", launch)
    places = {"PRESET": str(tmp_path / "mine.yaml"), "F": str(tmp_path / "f")}
    assert main(["train", *(places.get(word, word) for word in arguments)]) == 0
    assert seen[0][0].seed == 1 and seen[0][1] == str(tmp_path / "f")
    assert seen[0][0].train.lr == (0.002 if "train.lr=0.002" in arguments else 0.003)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits_demo", "-x"], "unrecognized arguments: -x"),
        (["train", "digits_demo", "--foldr=x", "seed=1"], "unrecognized arguments"),
        (["inspect", "a", "b"], "unrecognized arguments: b"),
        (["train", "digits_demo", "--max-steps", "0"], "--max-steps: must be a whole number of at least 1"),
        (["train", "digits_demo", "--processes", "x"], "--processes: must be a whole number"),
        (["export", "r", "f", "--session", "0"], "--session: must be a whole number of at least 1"),
        (["bench", "digits", "--max-failures", "-1"], "--max-failures"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits_demo", "foo"], "must have the form key=value"),
        (["train", "digits_demo", "--nnodes", "2", "--rendezvous", "h:99999"], "--rendezvous HOST:PORT"),
        (["train", "digits_demo", "--device", "gpu:9"], "There is no device 'gpu:9' here"),
        (["train", "digits_demo", "model.weights=%SCRATCH%/w.pth"], "model.weights=%SCRATCH%/w.pth: there is no file"),
        (["report", "a\x1b[31m"], "a\\x1b[31m"),
        (["report", "a\0b"], "must be text"),
        (["train", "digits_demo", "data.root=\ud800"], "data.root holds bytes that are no text"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1 and "\x1b" not in error


def test_names_of_files_that_are_no_utf8(coco_root, tmp_path, tiny, capsys):
    """As a disk of another machine has them; Python reads such bytes as halves of letters."""
    path = coco_root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    old, new = content["images"][0]["file_name"], os.fsdecode(b"\xe9t\xe9.png")
    content["images"][0] |= {"file_name": new, "id": "\ud800"}
    for annotation in content["annotations"]:
        annotation["image_id"] = "\ud800" if annotation["image_id"] == 100 else annotation["image_id"]
    path.write_text(json.dumps(content))
    (tmp_path / "e.yaml").write_text(tiny(train__epochs=1, replay__per_class=1).to_yaml())
    train = ["train", str(tmp_path / "e.yaml"), "--device", "cpu", "--folder", str(tmp_path / "run")]
    assert main(train) == 2  # the log has said that it is not there
    assert r"\udce9t\udce9.png is missing" in capsys.readouterr().err
    (coco_root / "train2014" / old).rename(coco_root / "train2014" / new)
    assert main(train) == 0 and main(["report", str(tmp_path / "run"), "--html", str(tmp_path / "r.html")]) == 0
