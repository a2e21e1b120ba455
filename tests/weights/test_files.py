"""Files that are no weights are named as what they are, in one line with the way out, and nothing in them is run."""

import argparse
import io
import os
import pathlib
import pickle
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from krt_core.cli import main
from krt_core.errors import CheckpointError, ConfigError
from krt_core.weights.checkpoint import inspect
from krt_core.weights.files import read

WEIGHTS = {"conv1.weight": torch.ones(8, 3, 3, 3)}


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return buffer.getvalue()


def with_numpy(function, **arrays):
    buffer = io.BytesIO()
    function(buffer, **arrays)
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 102979767\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body></body></html>"
LEGACY = saved(WEIGHTS, _use_new_zipfile_serialization=False)
WHOLE, TENSORS = saved(WEIGHTS), save(WEIGHTS)
DAMAGED = WHOLE.replace(struct.pack("<f", 1.0) * 4, struct.pack("<f", 2.0) * 4, 1)

NAMED = {
    "pointer.pth": (POINTER, "Git LFS pointer.*git lfs pull"),
    "pointer.safetensors": (POINTER, "Git LFS pointer.*git lfs pull"),
    "annex.pth": (b"/annex/objects/SHA256E-s1024--0123456789", "git-annex pointer.*git annex get"),
    "empty.pth": (b"", "empty file.*Get it again"),
    "empty.safetensors": (b"", "empty file.*Get it again"),
    "page.pth": (PAGE, "web page.*Get it again"),
    "page.pt": (b"\xef\xbb\xbf\n  <HTML><body>Please confirm the download</body></HTML>", "web page"),
    "denied.pth": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "answer.pth": (b'{"message": "Not Found", "status": "404"}', "text file, which begins with '{\"message\""),
    "wide.pth": ("Das Kontingent für heute ist verbraucht".encode("utf-16"), "text file, .*'Das Kontingent für"),
    "index.json": (b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "list of several safetensors"),
    "other.zip": (zipped(weights__model="x"), "zip archive of other files .weights/model.*Unpack"),
    "script.pt": (zipped(**{"m__constants.pkl": "", "m__data.pkl": ""}), "TorchScript.*state_dict"),
    "all.tar": (tarred(), "tar archive.*Unpack"),
    "all.tar.gz": (b"\x1f\x8b\x08" + bytes(40), "compressed by gzip.*Unpack"),
    "arrays.npz": (with_numpy(np.savez, a=np.zeros(2)), r"NumPy archive.*torch\.save"),
    "array.npy": (with_numpy(np.save, arr=np.zeros(2)), r"NumPy array.*torch\.save"),
    "net.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(9), "ONNX"),
    "net.pth": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(9), "ONNX"),
    "net.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "photo.pth": (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG image"),
    "zeros.pth": (bytes(9000), "filled with zeros.*Get it again"),
    "noise.pth": (b"\xff\x13\x88\x07" * 20, "begins with ff 13 88 07"),
    "plain.pkl": (pickle.dumps({"w": [1.0] * 9}), "pickle that torch.save did not write"),
    "cut.pth": (WHOLE[:900], "cut short.*Get it again"),
    "cut4.pth": (WHOLE[:4], "cut short: it has 4 bytes"),
    "legacy.pth": (LEGACY[:300], "cut short.*Get it again"),
    "cut.safetensors": (TENSORS[:-5], "not a complete safetensors file.*Get it again"),
    "header.safetensors": (TENSORS[:40], "not a complete safetensors file"),
    "nothing.safetensors": (b"\xfe" * 40, "not a complete safetensors file"),
    "damaged.pth": (DAMAGED, "damaged.*checksum.*Get it again"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_file_that_is_no_weights_file_is_named(tmp_path, capsys, name):
    content, what = NAMED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as caught:
        inspect(tmp_path / name)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / name)) and "\n" not in said
    assert not any(word in said for word in ("weights_only", "add_safe_globals", "Weights only load failed"))
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == f"krt: {said}\n"


def test_the_place_of_a_file_can_be_wrong_too(tmp_path, monkeypatch):
    (tmp_path / "run" / "session_00").mkdir(parents=True)
    (tmp_path / "run" / "session_00" / "model.safetensors").write_bytes(TENSORS)
    (tmp_path / "unpacked" / "archive").mkdir(parents=True)
    (tmp_path / "unpacked" / "archive" / "data.pkl").touch()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".metadata").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    (tmp_path / "round.pth").symlink_to(tmp_path / "round.pth")
    os.mkfifo(tmp_path / "pipe")
    for name, what in {
        "run": r"folder; name a weights file in it: session_00/model\.safetensors",
        "unpacked": "without unpacking", "shards": "distributed checkpoint", "none.pth": "There is no weights file",
        "file/none.pth": "There is no weights file", "link.pth": r"a link to .*gone\.pth, which is not there",
        "round.pth": "weights file|cannot be read", "pipe": "no regular file",
        "x" * 300: "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(CheckpointError, match=what):
            inspect(tmp_path / name)
    with pytest.raises(ConfigError, match="A folder or file must be text"):
        inspect(tmp_path / "a\0b")
    (tmp_path / "secret.pth").write_bytes(WHOLE)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)  # whoever runs the tests may be allowed to read everything
    with pytest.raises(CheckpointError, match=r"secret\.pth must not be read by you"):
        inspect(tmp_path / "secret.pth")


@pytest.mark.parametrize("name", ["as.pth", "as.safetensors", "as", "as.ckpt"])
@pytest.mark.parametrize("content", [WHOLE, LEGACY, TENSORS], ids=["zip", "legacy", "safetensors"])
def test_the_suffix_does_not_matter(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert torch.equal(inspect(tmp_path / name).tensors["conv1.weight"], WEIGHTS["conv1.weight"])


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_what_trainers_keep_beside_weights_is_passed_over_and_the_rest_is_refused(tmp_path, capsys):
    beside = {
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("out")),
        "best": np.float64(81.5),
        "seen": np.arange(3),
    }
    torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "w.pth")
    content, _ = read(tmp_path / "w.pth")
    assert type(content["args"]).__name__ == "StandIn" and content["args"].lr == 1e-3  # no Namespace was made
    assert inspect(tmp_path / "w.pth").tensors.keys() == WEIGHTS.keys()
    for hidden in (Evil(), argparse.Namespace(inner=Evil()), torch.nn.Linear(2, 2)):
        torch.save({"state_dict": WEIGHTS, "args": hidden}, tmp_path / "evil.pth")
        with pytest.raises(
            CheckpointError, match="holds Python objects, .*refused .(print|torch.nn.modules.linear.Linear)"
        ):
            inspect(tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out


def test_any_cut_and_any_changed_byte_ends_in_weights_or_in_an_error_of_ours(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "w.pth"
    for whole in (WHOLE, LEGACY, TENSORS):
        for _ in range(60):
            content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for place in rng.integers(0, len(content), rng.integers(0, 4)):
                content[place] = rng.integers(256)
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert inspect(path).tensors
                except CheckpointError as error:
                    assert str(path) in str(error) and "\n" not in str(error)
