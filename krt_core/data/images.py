"""One image from disk, as people see it, for the network."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from .text import instead

DECODER = 2  # raise it when `load_image` gives other pixels: decoded images are cached
TURNS = {  # EXIF orientation → what brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey value
OVER = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}  # modes that reach RGB in two steps


def load_image(path: Path, size: int, listed: bool = True) -> np.ndarray:
    """Decode and resize (bilinear) to (size, size, 3) uint8, as `pixels`; raises DataError naming a missing or broken
    file. listed: do annotations name it, which the error then says?"""
    check_file(path, listed)
    try:
        with Image.open(path) as image:
            return pixels(image, size)
    except MemoryError:
        raise DataError(
            f"Image {path} takes more memory than there is. Make it smaller, free memory, or have fewer images read at "
            "a time (data.workers=1)."
        ) from None
    except Exception as error:  # each format's reader has errors of its own for broken files
        way_out = " Replace it or remove it from the annotations." if listed else ""
        raise DataError(f"Image {path} cannot be read ({_reason(path, error)}).{way_out}") from None


def pixels(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of an image of any mode; what its reader raises where it is broken.

    The image is turned as its EXIF orientation says, which is how cameras mean it and labelling tools show it. Of
    several frames it is the first; transparency is left out. Grey values of more than 8 bits are scaled, as `_shallow`.
    """
    if image.format == "EPS":  # Pillow would have another program run what the file says
        raise ValueError("EPS is a program, not an image")
    deep = ";16" in str([tile[3] for tile in getattr(image, "tile", ())])  # taken out by loading
    image.load()
    if deep and image.mode in ("RGB", "RGBA", "LA"):
        _check_depth(image)
    return resize(_upright(_rgb(image), image), size)


def check_file(path: Path, listed: bool = True) -> None:
    """DataError unless an image is there: a file, not a folder or pipe. listed: see `load_image`."""
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise DataError(f"Image {path} cannot be read ({error.strerror}). Change its permissions.") from None
    except (OSError, ValueError):
        raise DataError(f"Image {path} is missing{', though the annotations list it' if listed else ''}.") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"Image {path} is {'a folder' if stat.S_ISDIR(mode) else 'a device'}, not a file.")


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Bilinear, with antialiasing, to (size, size, 3) uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # I;16, I;16B, I (32 bits), F (float32)
        return Image.fromarray(_shallow(np.asarray(image))).convert("RGB")
    if image.mode in OVER:
        image = image.convert(OVER[image.mode])
    return image.convert("RGB")


def _check_depth(image: Image.Image) -> None:
    """Of 16 bits a channel Pillow keeps the upper 8. ValueError where those hold next to nothing, as in files of
    cameras with 12 bits."""
    brightest = int(np.asarray(image)[..., : 1 if image.mode == "LA" else 3].max())
    if brightest < 16:
        raise ValueError("it has 16 bits a channel and uses 12 of them or less: save it with 8")


def _shallow(grey: np.ndarray) -> np.ndarray:
    """Deep grey values (h, w) → uint8: whole numbers by the least depth that holds the brightest of them (12-bit
    cameras save files of 16), others from the darkest to the brightest, shares of 1 as they are."""
    values = grey.astype(np.float64)
    values[~np.isfinite(values)] = 0
    low, high = values.min(), values.max()
    if low >= 0 and high < 2 ** DEPTHS[-1] and grey.dtype.kind in "iu":
        low, high = 0.0, next(2.0**bits - 1 for bits in DEPTHS if high < 2**bits)
    elif low >= 0 and 0.5 < high <= 1:  # shares of full brightness
        low, high = 0.0, 1.0
    return ((values - low) * (255 / (high - low or 1.0))).round().astype(np.uint8)


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(int(source.getexif().get(0x0112) or 1))  # after the pixels: some formats carry it behind them
    except Exception:  # broken notes on an image that could be read
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _reason(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        return "the file is empty"
    if what := instead(head):
        return f"it is {what}"
    if re.match(rb"....ftyp(hei|hev|mif|msf)", head, re.DOTALL):
        return "it is a HEIC photo: save it as JPEG"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a format that is known"
    return getattr(error, "strerror", None) or str(error).replace(str(path), "it") or type(error).__name__
