"""Training augmentation: what is drawn at random, and what it does to one image, by PIL.

"published" is what the authors train with: a cutout of half the side, then RandAugment as in the package randaugment
1.0.2 (Cubuk et al., 2020): two operations, each drawn from fifteen (the same may come twice) at a random strength and
applied with probability 0.5. PIL lets go of Python's lock in nearly all of it, so `krt_core.data.pipeline` runs it in
threads beside the training.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

OPERATIONS = (
    "invert", "cutout", "sharpness", "autocontrast", "posterize", "shear_x", "shear_y", "translate_x", "translate_y",
    "rotate", "equalize", "contrast", "color", "solarize", "brightness",
)  # fmt: skip
GREY = (128, 128, 128)  # what moves in from outside the image
CUTOUT_GREY = (125, 122, 113)  # what RandAugment's own cutout leaves; the large one before it has a random colour

Draws = dict[str, np.ndarray]  # name → (B, ...): everything random about B images; row i belongs to image i


def draw(kind: str, count: int, rng: np.random.Generator) -> Draws:
    """What is random in the augmentation of ``count`` images; places are shares of the side in [0, 1)."""
    if kind == "published":
        return {
            "cutout": rng.random((count, 2)),
            "colour": rng.integers(0, 256, (count, 3), dtype=np.uint8),
            "operation": rng.integers(0, len(OPERATIONS), (count, 2)),
            "strength": rng.integers(1, 10, (count, 2)),  # index 1–9 of a scale of ten
            "applied": rng.random((count, 2)) < 0.5,
            "sign": rng.choice((-1, 1), (count, 2)),
            "place": rng.random((count, 2, 2)),
        }
    if kind == "light":
        return {
            "shift": rng.random((count, 2)),
            "contrast": rng.uniform(0.8, 1.2, count),
            "brightness": rng.uniform(-25, 25, count),
        }
    return {}


def augment(image: np.ndarray, kind: str, draws: Draws) -> np.ndarray:
    """One image (S, S, 3) uint8 with its row of `draw`. kind "published", "light" (shift by up to an eighth, brightness
    and contrast by up to 20 %) or "none"."""
    if kind == "none":
        return image
    if kind == "light":
        return _light(image, draws)
    size = image.shape[0]
    picture = Image.fromarray(cutout(image, size // 2, draws["cutout"], draws["colour"]))
    for k in range(2):
        if draws["applied"][k]:
            name, strength = OPERATIONS[draws["operation"][k]], draws["strength"][k]
            picture = apply(picture, name, int(strength), int(draws["sign"][k]), draws["place"][k])
    return np.asarray(picture)


def cutout(image: np.ndarray, side: int, place: np.ndarray, colour: tuple | np.ndarray) -> np.ndarray:
    """Fill a square of ``side`` pixels centred at ``place`` (y, x) and clipped at the border."""
    size = image.shape[0]
    y, x = (place * size).astype(int)
    out = image.copy()
    out[max(0, y - side // 2) : min(size, y + side // 2), max(0, x - side // 2) : min(size, x + side // 2)] = colour
    return out


def apply(picture: Image.Image, name: str, strength: int, sign: int, place: np.ndarray) -> Image.Image:
    """One RandAugment operation at strength 0–9, in the direction ``sign``. Rotation has one direction only."""
    share = strength / 9
    signed = share * sign
    match name:
        case "invert":
            return ImageOps.invert(picture)
        case "autocontrast":
            return ImageOps.autocontrast(picture)
        case "equalize":
            return ImageOps.equalize(picture)
        case "posterize":
            return ImageOps.posterize(picture, round(8 - 4 * share))
        case "solarize":
            return ImageOps.solarize(picture, 256 - 256 * share)  # type: ignore[arg-type]  # PIL compares with any number
        case "color":
            return ImageEnhance.Color(picture).enhance(1 + 0.9 * signed)
        case "contrast":
            return ImageEnhance.Contrast(picture).enhance(1 + 0.9 * signed)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(1 + 0.9 * signed)
        case "sharpness":
            return ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * signed)
        case "shear_x":
            return _affine(picture, (1, 0.3 * signed, 0, 0, 1, 0), Image.Resampling.BICUBIC)
        case "shear_y":
            return _affine(picture, (1, 0, 0, 0.3 * signed, 1, 0), Image.Resampling.BICUBIC)
        case "translate_x":
            return _affine(picture, (1, 0, 150 / 331 * signed * picture.width, 0, 1, 0))
        case "translate_y":
            return _affine(picture, (1, 0, 0, 0, 1, 150 / 331 * signed * picture.height))
        case "rotate":
            return picture.rotate(30 * share, fillcolor=GREY)
        case "cutout":
            return Image.fromarray(cutout(np.asarray(picture), round(20 * share), place, CUTOUT_GREY))
    raise ValueError(f"unknown operation {name!r}")


def _affine(picture: Image.Image, matrix: tuple, resample: int = Image.Resampling.NEAREST) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


def _light(image: np.ndarray, draws: Draws) -> np.ndarray:
    size = image.shape[0]
    reach = max(1, size // 8)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    y, x = (draws["shift"] * (2 * reach + 1)).astype(int)
    out = padded[y : y + size, x : x + size].astype(np.float32)
    out = (out - 128) * np.float32(draws["contrast"]) + np.float32(128 + draws["brightness"])
    return out.clip(0, 255).astype(np.uint8)
