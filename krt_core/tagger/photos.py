"""Photos that no data set names: found by file, folder or pattern, and decoded as those of a training were."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.finder import EXTENSIONS
from ..data.images import load_image, pixels
from ..errors import DataError, shown
from ..machine.cluster import cores
from ..machine.home import home

SHOWN = (*EXTENSIONS, "heic", "heif")  # the last two cannot be read, which is said of each


class Found(NamedTuple):
    """What some names on a command line stand for."""

    photos: list[Path]  # each once, as first named
    lacking: list[str]  # names that stand for nothing, with the reason
    others: int  # files in folders that are no images by their names
    again: int  # photos that were named more than once


def find(names: Sequence[str | Path]) -> Found:
    """Photos by file, by folder (all below it, by their endings) and by pattern, as ``holiday/**/*.jpg``; relative ones
    are meant from `home`, and stay relative. DataError where there is none at all."""
    photos: dict[str, Path] = {}
    lacking, others, again = [], 0, 0
    for name in names:
        places = _places(str(name))
        if not places:
            pattern = ", and no file is named by this pattern" if glob.has_magic(str(name)) else ""
            lacking.append(f"{name}: there is no such file or folder{pattern}{_elsewhere(str(name))}")
        for place in places:
            folder = (home() / place).is_dir()
            files = list(_below(place)) if folder else [place]
            images = [file for file in files if _is_image(file)] if folder else files
            others += len(files) - len(images)
            if not images:
                lacking.append(f"{place}: the folder holds no image (looked for .{', .'.join(SHOWN)})")
            for image in images:
                again += (key := os.path.realpath(home() / image)) in photos
                photos.setdefault(key, image)
    if not photos:
        raise DataError(f"There are no photos to tag. {'; '.join(lacking)}.")
    return Found(list(photos.values()), lacking, others, again)


def _places(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if "\0" in name or os.path.lexists(home() / path):  # a pattern's letters may stand in a file's name
        return [] if "\0" in name else [path]
    return [Path(found) for found in sorted(glob.glob(str(path), root_dir=home(), recursive=True))]


def _elsewhere(name: str) -> str:
    """Where a relative name was looked for, if that is not where the user is: a shell completes names from there."""
    if os.path.isabs(os.path.expanduser(name)) or home() == Path.cwd().resolve():
        return ""
    return f" in {home()}, from where relative names are meant"


def _below(folder: Path) -> Iterator[Path]:
    """Files in a folder and all folders below it, links too, each folder once."""
    seen, base = set(), home() / folder
    for place, folders, files in os.walk(base, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (folder / Path(place).relative_to(base) / file for file in sorted(files))


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in SHOWN


class Photos:
    """Images by row, as `krt_core.data.store.ImageStore` has those of a data set, from paths, PIL images, arrays and
    tensors. ``faults`` holds the error of each row that could not be read, whose pixels are black."""

    def __init__(self, images: Sequence[Any], size: int):
        self.images, self.size, self.workers = images, size, len(cores())
        self.faults: dict[int, DataError] = {}

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8."""
        out = np.zeros((len(rows), self.size, self.size, 3), np.uint8)
        for place, row in enumerate(rows):
            try:
                out[place] = pixels_of(self.images[row], self.size)
            except DataError as error:
                self.faults[int(row)] = error
        return out


def pixels_of(image: Any, size: int) -> np.ndarray:
    """(S, S, 3) uint8 of a path, a PIL image, an array (h, w, 3) uint8 or a tensor (3, h, w), uint8 or float in [0, 1]
    which is rounded to 8 bits. Decoded, turned and resized as in a training. DataError for what is none of these."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(home() / Path(image).expanduser(), size, listed=False)
    if isinstance(image, Tensor):
        image = _of_tensor(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise DataError(
                f"An array must be an image (h, w, 3) of uint8, RGB from 0 to 255; found {image.shape} {image.dtype}."
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        raise DataError(f"An image is a path, a PIL image, an array or a tensor; found {shown(image)}.")
    try:
        return pixels(image, size)
    except Exception as error:  # each format's reader has errors of its own for broken files
        name = getattr(image, "filename", "") or "the PIL image"
        raise DataError(f"Image {name} cannot be read ({error or type(error).__name__}).") from None


def _of_tensor(image: Tensor) -> np.ndarray:
    image = image.detach().cpu()
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        kind = str(image.dtype).removeprefix("torch.")
        raise DataError(
            f"A tensor must be an image (3, h, w), uint8 or float in [0, 1]; found {tuple(image.shape)} {kind}."
        )
    if image.is_floating_point():
        if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError("A float tensor must hold values in [0, 1], without mean and std taken off.")
        image = (image.double() * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()
