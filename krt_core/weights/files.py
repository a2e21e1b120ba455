"""Weights files as they lie on the disk: read without executing anything in them, or named as what they are."""

from __future__ import annotations

import pickle
import pickletools
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save's magic number
AGAIN = "Get it again."
UNPACK = "Unpack it and name the weights file in it."
CONVERT = "Load it with the program that wrote it and save its tensors with torch.save or as safetensors."

MAGIC = (  # (first bytes, what such a file is, the way out)
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights themselves",
        "Run `git lfs pull` where it is from.",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the weights themselves", "Run `git annex get` where it is from."),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes them", CONVERT),
    (b"GGUF", "a GGUF file", CONVERT),
    (b"\x80", "a pickle that torch.save did not write, which could run code when read, so it is refused", CONVERT),
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"%PDF", "a PDF document", "Name a weights file."),
    (b"\x89PNG", "a PNG image", "Name a weights file."),
    (b"\xff\xd8\xff", "a JPEG image", "Name a weights file."),
)
# What trainers keep beside their weights. Nothing of these is imported or called: an empty stand-in takes their place.
HARMLESS = (
    "argparse.Namespace", "types.SimpleNamespace",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath", "numpy.dtype", "numpy.ndarray",
    *(f"{room}.multiarray.{name}" for room in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
)  # fmt: skip


class StandIn:
    """In the place of an object that is no tensor; keeps what was said of its attributes and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """Content of a weights file (for safetensors: tensors by name) and its metadata.

    Told apart by their first bytes, not by their suffix. CheckpointError, with what the file is, if it is none.
    """
    start, size = _look(path)
    if size == 0:
        raise CheckpointError(f"{path} is an empty file: it was never written or downloaded. {AGAIN}")
    if size < 16:
        raise CheckpointError(f"{path} is cut short: it has {size} bytes. {AGAIN}")
    if start[8:9] == b"{" and b"\0" in start[:8]:  # eight bytes hold the length of the JSON text that follows
        return _read_safetensors(path)
    if start.startswith(b"PK\x03\x04"):
        _check_zip(path)
    elif LEGACY not in start[:32]:  # what torch.save wrote before it wrote zip archives
        what, way_out = _what_it_is(path, start)
        raise CheckpointError(f"{path} is {what}. {way_out}")
    return _read_torch(path), {}


def _look(path: Path) -> tuple[bytes, int]:
    """First bytes and size of a file; CheckpointError if there is none that can be read."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise CheckpointError(_about_folder(path))
        if not stat.S_ISREG(kind):
            raise CheckpointError(f"{path} is no regular file. Name a weights file.")
        with path.open("rb") as file:
            return file.read(4096), path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        link = f" It is a link to {path.readlink()}, which is not there." if path.is_symlink() else ""
        raise CheckpointError(f"There is no weights file {path}.{link}") from None
    except PermissionError:
        raise CheckpointError(f"{path} must not be read by you: ask its owner, or change its mode (chmod).") from None
    except (OSError, ValueError) as error:  # a name that is too long, a disk that fails
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}).") from None


def _about_folder(folder: Path) -> str:
    if (folder / "data.pkl").is_file() or any(folder.glob("*/data.pkl")):
        return f"{folder} is a PyTorch file that was unpacked. {AGAIN[:-1]} without unpacking it."
    if (folder / ".metadata").is_file():
        return (
            f"{folder} is a distributed checkpoint. Make one file of it with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`."
        )
    found = sorted(f for pattern in ("*", "*/*") for f in folder.glob(pattern) if f.suffix in SUFFIXES and f.is_file())
    names = ", ".join(str(f.relative_to(folder)) for f in found[:4]) + (", ..." if len(found) > 4 else "")
    return f"{folder} is a folder; name a weights file in it" + (f": {names}." if found else ", though it has none.")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({_first_line(error)}). {AGAIN}") from None
    except Exception as error:  # a type of numbers that this PyTorch does not have, memory
        raise CheckpointError(f"{path} cannot be read as safetensors ({_first_line(error)}).") from None


def _check_zip(path: Path) -> None:
    """CheckpointError unless it is a zip archive as torch.save writes it, whole and without a damaged member."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception:  # BadZipFile, and what else a damaged table of contents leads to
        raise CheckpointError(
            f"{path} is cut short: it begins as torch.save writes it, its end is missing. {AGAIN}"
        ) from None
    names = archive.namelist()
    top = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in top or any(name.startswith("code/") for name in top):
        what, way_out = (
            "a TorchScript program, which would have to be run",
            "Save its state_dict() alone and name that file.",
        )
    elif "data.pkl" in top:
        return _check_members(path, archive)
    elif (
        any(name.startswith(("models/", "archive_format")) or name == "version" for name in top) and "byteorder" in top
    ):
        what, way_out = "a program of torch.export", "Save its state_dict alone and name that file."
    elif names and all(name.endswith(".npy") for name in names):
        what, way_out = "a NumPy archive (.npz)", CONVERT
    else:
        inside = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        what, way_out = f"a zip archive of other files ({inside or 'empty'})", UNPACK
    raise CheckpointError(f"{path} is {what}. {way_out}")


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """CheckpointError if a member does not have its checksum, at which torch.load does not look."""
    for member in archive.infolist():
        try:
            with archive.open(member) as file:
                while member.CRC and file.read(1 << 20):  # 0: saved without checksums
                    pass
        except Exception:  # BadZipFile, and what else damaged bytes lead to
            raise CheckpointError(
                f"{path} is damaged: {member.filename} in it does not have its checksum. {AGAIN}"
            ) from None


def _what_it_is(path: Path, start: bytes) -> tuple[str, str]:
    """What a file is that is no weights file, by its first bytes, and the way out."""
    for magic, what, way_out in MAGIC:
        if start.startswith(magic):
            return what, way_out
    if start[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and re.search(rb"pytorch|onnx|tf2onnx", start[:200])):
        return "an ONNX program", CONVERT
    if path.suffix == ".safetensors":
        return "not a complete safetensors file: its header is missing or damaged", AGAIN
    text = _as_text(start)
    if text is None:
        if not start.strip(b"\0"):
            return "filled with zeros, as a broken download leaves it", AGAIN
        return f"no file of weights that is known here (it begins with {start[:8].hex(' ')})", "Name a weights file."
    text = text.lstrip("\ufeff \t\r\n")
    if re.match(r"<(!doctype|html|head|\?xml)", text, re.IGNORECASE):
        return "a web page, as a server sends it in place of a file (to log in, to confirm, an error)", AGAIN
    if '"weight_map"' in text:
        return "a list of several safetensors files", "Save the tensors of all of them as one file and name that."
    return f"a text file, which begins with '{' '.join(text.split())[:40]}'", "Name a weights file."


def _as_text(start: bytes) -> str | None:
    for encoding in ("utf-16",) if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
        text = start.decode(encoding, errors="ignore")
        lost = len(start) - len(text.encode(encoding, errors="ignore"))
        if text and lost < 4 and all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text):
            return text
    return None


def _read_torch(path: Path) -> Any:
    """What torch.save wrote: tensors, numbers, texts and collections of them; CheckpointError for anything else."""
    harmless: list[Any] = [(StandIn, name) for name in HARMLESS]
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(harmless):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _ends_well(path):
            raise CheckpointError(f"{path} is cut short or damaged. {AGAIN}") from None
        found = re.search(r"(?:unsupported |Unsupported global: )GLOBAL (\S+)", str(error))
        what = found[1] if found else _first_line(error).removeprefix("Weights only load failed. ").split(". ")[0]
        raise CheckpointError(
            f"{path} holds Python objects, which could run code when read, so it is refused ({what}). "
            "Save its state_dict alone, in a sandbox you trust, and use that file."
        ) from None
    except Exception as error:  # whatever a broken pickle leads to: RuntimeError, EOFError, KeyError, IndexError, ...
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise CheckpointError(
            f"{path} is not a readable PyTorch file, it may be cut short ({reason}). {AGAIN}"
        ) from None


def _ends_well(path: Path) -> bool:
    """Are the instructions of a file whole? They are looked at, not followed; those in zip archives have a checksum."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                file.seek(0)
                for _ in range(4):  # magic number, version, machine, content
                    for _ in pickletools.genops(file):
                        pass
        return True
    except Exception:  # ValueError, and what else damaged bytes lead to
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
