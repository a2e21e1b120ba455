"""Presets and overrides as people write them: encodings, keys that stand twice, what YAML trips over, what papermill
passes. Each ends in what was meant or names the file, the override or the key."""

import dataclasses
import math
import typing

import numpy as np
import pytest

from krt_core.config import (
    Calibrate,
    Data,
    Experiment,
    Model,
    Protocol,
    Replay,
    Train,
    load_experiment,
    load_experiments,
)  # fmt: skip
from krt_core.errors import ConfigError
from krt_core.lab.bench.matrix import load_matrix
from krt_core.options import METHODS
from krt_core.presets.said import listed, truth, whole


def value(override):
    """What an override sets its key to."""
    found = load_experiment("digits_demo", [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    return found


# ---- overrides ----


@pytest.mark.parametrize(
    "text",
    ["@scratch/x", "%SCRATCH%/x", "{x, `a: b: c`", "[x", "*", "*x", "&x", "!tag", "a\tb", "`x`", "a: b: c", "/a/b#c",
     "/a/b #c", "#c", "- a", "? a", "| a", "~", "~/x", "123", "1e3", "null", "true", "2001-99-99", "x=y", "'x", "é"],
)  # fmt: skip
def test_text_is_taken_as_text(text):
    assert value(f"data.root={text}") == text


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("data.root='a # b'", "a # b"), ('data.root="q"', "q"), ("data.root=", ""), ("data.root= /x ", "/x"),
        ("data.classes=[yes, no, 1, 01, 1e3]", ("yes", "no", "1", "01", "1e3")), ("data.classes=[]", ()),
        ("data.classes=['a #b', c#d]", ("a #b", "c#d")), ("train.epochs= 3", 3), ("train.compile=yes", True),
        ("train.lr=1e-4", 1e-4), ("protocol.order_seed=null", None), ("protocol.sizes=[4, 6]", (4, 6)),
        ("name=2024", "2024"), ("model.mean=[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)),
    ],
)  # fmt: skip
def test_what_was_meant_is_read(override, meant):
    assert value(override) == meant


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.classes=[cat, dog", "Override data.classes=[cat, dog: while parsing a flow sequence"),
        ("train.epochs=@x", "Override train.epochs=@x"),
        ("train.epochs=3 # few", "would be a comment"),
        ("data.classes=[a, b] # two", "would be a comment"),
        ("train.epochs=*x", "Override train.epochs=*x: found undefined alias"),
        ("train.epochs=!x", "Override train.epochs=!x"),
        ("train.epochs=2001-99-99", "Override train.epochs=2001-99-99"),
        ("train.epochs=!!bool x", "Override train.epochs=!!bool x"),
        ("train={epochs: 3, epochs: 4}", "epochs stands there twice"),
        ("seed=010", "found '010'"),  # YAML's octal 8
        ("train.epochs=1:30", "found '1:30'"),  # YAML's 90
        ("train.epochs=" + "[" * 5000, "Override train.epochs"),
        ("train.epochs=" + "9" * 5000, "Override train.epochs"),
        ("data.root='a\\0b'", None),
        ("=3", "key=value"),
        ("train=null", "train must be a section"),
    ],
)
def test_what_cannot_be_meant_is_named_in_one_line(override, words):
    if words is None:
        assert value(override) == "a\\0b"  # single quotes: no escape
        return
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits_demo", [override])
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.epochs=3", "train.epochs=4"], ["train.epochs=3", "train=fast", "train.lr=1"],
        ["train=fast", "train.lr=1"], ["train.lr=1", "train={lr: 2}"], {"train": {"lr": 1}, "train.lr": 2},
        ["train.epochs.x=3", "train.epochs=2"],
    ],
)  # fmt: skip
def test_a_key_that_is_set_twice_is_refused(overrides):
    with pytest.raises(ConfigError, match=r"Override train"):
        load_experiment("digits_demo", overrides)
    assert load_experiment("digits_demo", {"train": {"lr": 1}, "train.epochs": 2}).train.epochs == 2


# ---- files ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_a_preset_in_any_unicode_and_any_line_ends(tmp_path, encoding, line):
    path = tmp_path / "mine.YAML"
    path.write_bytes(line.join(["data:", "  classes: [猫, Bär]", "method: pod", ""]).encode(encoding))
    assert load_experiment(path).data.classes == ("猫", "Bär") and load_experiment(path).method == "pod"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: krt\nname: Bär\n".encode("latin-1"), "line 2: byte 0xe4 is not utf-8"),
        ("train: {lr: 1}\ntrain: {epochs: 3}\n", "line 2: train stands there twice"),
        ("train:\n  epochs: 1\n  lr: 1\n  epochs: 2\n", "line 4: epochs stands there twice"),
        ("- a\n", "found a list"), ("3\n", "found a int"), ("false\n", "found a bool"), ("[]\n", "found a list"),
        ("--- {}\n--- {}\n", "not valid YAML"), ("name: &a [*a]\n", "within what it names"),
        ("train: {lr: 1, ? [a] : b}\n", "not valid YAML"), ("method: !!python/object:os.x {}\n", "not valid YAML"),
        ("extends: digit_demo\n", "There is no preset 'digit_demo'"), ("extends: [a]\n", "extends must be"),
        ("extends: 3\n", "extends must be"), ("extends: mine.yaml\n", "extends itself"),
        ("krt: 5\n", "krt must be a section"), ("krt: false\n", "krt must be a section"),
        ("1: x\n", "unknown key 1"), ("? [a]\n: b\n", "not valid YAML"), ("a: " + "[" * 3000 + "\n", "not valid YAML"),
        ("".join(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}']) if i else 'x'}]\n" for i in range(9)), "more than"),
        ("name: \"a\\0b\"\n", "no text"),
    ],
)  # fmt: skip
def test_a_preset_that_cannot_be_read_is_named(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert words in str(caught.value) and "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_what_presets_may_do(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("")
    assert load_experiment(path).name == "mine"
    path.write_text("train:  # nothing yet\nseed:\nextends: digits_demo\n")
    assert load_experiment(path).train == load_experiment("digits_demo").train
    path.write_text("train: &t {epochs: 3}\npod: {<<: {flat_weight: 1}, flat_weight: 2}\n")  # merged, not twice
    assert load_experiment(path, ["method=pod"]).options.flat_weight == 2
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "other.yaml").write_text(
        "extends: ../mine.yaml\n"
    )  # beside the file, not the folder one is in
    assert load_experiment(tmp_path / "below" / "other.yaml").train.epochs == 3
    (tmp_path / "mine.txt").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"a YAML file ends in \.yaml"):
        load_experiment(tmp_path / "mine.txt")


def test_a_matrix_is_read_like_a_preset(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes("presets: [digits_demo]\r\nmethods: [krt]\r\n".encode("utf-16"))
    assert load_matrix(path).methods == ("krt",)
    path.write_text("presets: [digits_demo]\nseeds: [0]\nseeds: [1]\n")
    with pytest.raises(ConfigError, match=r"m\.yaml is not valid YAML: line 3: seeds stands there twice"):
        load_matrix(path)


# ---- every key with values that nobody means ----

ODD = (
    None,
    "",
    -1,
    0,
    1e400,
    "nan",
    [],
    {},
    "x",
    True,
    10**400,
    -0.5,
    [None],
    "a\0b",
    {"x": 1},
    math.nan,
    "[",
    (),
    b"x",
)
SECTIONS = {
    "data": Data,
    "protocol": Protocol,
    "model": Model,
    "replay": Replay,
    "train": Train,
    "calibrate": Calibrate,
} | {name: kind for name, (_, kind) in METHODS.items()}
KEYS = [f"{section}.{f.name}" for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)]


@pytest.mark.parametrize("key", [*KEYS, "name", "method", "seed", *SECTIONS])
def test_a_bad_value_of_any_key_names_the_key(key):
    """Each makes an experiment that can be written, hashed and read again, or a ConfigError that names the key."""
    for odd in ODD:
        method = {"method": key.split(".")[0]} if key.split(".")[0] in METHODS and key != "method" else {}
        try:
            experiment = load_experiment("digits_demo", {**method, key: odd})
        except ConfigError as error:
            assert key in str(error) or key.split(".")[-1] in str(error), (key, odd, str(error))
            continue
        assert load_experiment("digits_demo", {**experiment.to_dict(), **method}).hash() == experiment.hash()
        assert experiment.run_name().isprintable()
    for text in ("", "nan", "1e400", "-1", "null", "[", "{", "@", "#", "9" * 400, "x"):
        try:
            load_experiment("digits_demo", [f"{key}={text}"]).run_name()
        except ConfigError as error:
            assert key.split(".")[-1] in str(error), (key, text, str(error))


def test_every_key_is_tried():
    assert {f.name for f in dataclasses.fields(Experiment)} == {*SECTIONS} - {*METHODS} | {
        "name", "method", "seed", "options", "retired",
    }  # fmt: skip
    assert len(KEYS) > 50 and all(typing.get_type_hints(kind) for kind in SECTIONS.values())


# ---- what papermill passes ----


@pytest.mark.parametrize(
    ("methods", "seeds", "overrides", "names"),
    [
        ("krt", [0], {}, ["krt s0"]), (["krt"], "[0, 1]", None, ["krt s0", "krt s1"]), ("krt", "1", "", ["krt s1"]),
        ("krt", 3, "{}", ["krt s3"]), ('["krt", "pod"]', 0, {}, ["krt s0", "pod s0"]),
        ("krt, pod", "0, 1", {}, ["krt s0", "pod s0", "krt s1", "pod s1"]), ("krt,pod", "2 3", {}, ["krt s2", "pod s2",
         "krt s3", "pod s3"]), ("krt", "(0, 1)", {}, ["krt s0", "krt s1"]), ("krt", "0,", {}, ["krt s0"]),
        ("[krt, pod]", np.arange(1), {}, ["krt s0", "pod s0"]), (("pod",), range(2), {}, ["pod s0", "pod s1"]),
    ],
)  # fmt: skip
def test_parameters_of_papermill_are_read(methods, seeds, overrides, names):
    made = load_experiments("digits_demo", methods, seeds, overrides)
    assert [f"{e.method} s{e.seed}" for e in made] == names


@pytest.mark.parametrize(
    "overrides",
    ['{"train.epochs": 3}', "{train.epochs: 3}", "train.epochs: 3", "train.epochs=3", '["train.epochs=3"]',
     "train: {epochs: 3}", ["train.epochs=3"], "  train.epochs=3 seed=1 "],
)  # fmt: skip
def test_overrides_may_be_text(overrides):
    assert load_experiment("digits_demo", overrides).train.epochs == 3
    assert load_experiments("digits_demo", "krt replay.per_class=2", 0, overrides)[0].train.epochs == 3


def test_values_in_a_text_of_overrides_may_have_blanks():
    made = load_experiment("digits_demo", "data.classes=[ant, bee]  data.root=/my data/coco\ntrain.epochs=3")
    assert (made.data.classes, made.data.root, made.train.epochs) == (("ant", "bee"), "/my data/coco", 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits_demo", "krt", "x"), "seeds"), (("digits_demo", "krt", True), "seeds"),
        (("digits_demo", "krt", "0, x"), "seeds"), (("digits_demo", "krt", {0: 1}), "seeds"),
        (("digits_demo", "krt", b"0"), "seeds"), (("digits_demo", {"krt": 1}, 0), "methods"),
        (("digits_demo", b"krt", 0), "methods"), (("digits_demo", "krt", None), "seeds"),
        (("digits_demo", "krt", 0.5), "seeds"), (("digits_demo", "krt", [0], 5), "overrides"),
        (("digits_demo", "krt", [0], "{x"), "overrides"), (("digits_demo", "krt", [0], "x"), "key=value"),
        (("digits_demo", "k", 0), "no method 'k'"), (("digits_demo", {}.get, 0), "methods"),
        (("digits_demo", [["krt"]], 0), "methods"), ((5, "krt", 0), "preset"), ((None, "krt", 0), "preset"),
        (("digits_demo", "[krt", 0), "methods"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_read_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        load_experiments(*arguments)


def test_single_parameters():
    assert truth("watch", "false") is False and truth("watch", "True") is True and truth("watch", 0) is False
    assert whole("processes", "2", 1) == whole("processes", np.int64(2)) == 2
    assert listed("images", 397133, str) == listed("images", "[397133]", str) == ["397133"]
    assert listed("images", "[000012]", str) == ["000012"] == listed("images", "000012", str)
    for wrong in ("maybe", None, 2, []):
        with pytest.raises(ConfigError, match="watch must be true or false"):
            truth("watch", wrong)
    for wrong in ("x", None, True, 1.5, "1.5", []):
        with pytest.raises(ConfigError, match="processes must be a whole number"):
            whole("processes", wrong)
