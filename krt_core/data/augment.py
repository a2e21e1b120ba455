"""Training augmentation of one image, (S, S, 3) uint8 → (S, S, 3) uint8.

"published" is what the authors train with: a cutout of half the side, then RandAugment as in the package randaugment
1.0.2 (Cubuk et al., 2020): two operations out of fifteen, each applied with probability 0.5 at a random strength.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

OPERATIONS = (
    "invert", "cutout", "sharpness", "autocontrast", "posterize", "shear_x", "shear_y", "translate_x", "translate_y",
    "rotate", "equalize", "contrast", "color", "solarize", "brightness",
)  # fmt: skip
GREY = (128, 128, 128)  # what moves in from outside the image


def augment(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """kind "published", "light" (shift by up to an eighth, brightness and contrast by up to 20 %) or "none"."""
    if kind == "none":
        return image
    if kind == "light":
        return _light(image, rng)
    picture = Image.fromarray(cutout(image, image.shape[0] // 2, rng))
    for name in rng.choice(OPERATIONS, 2, replace=False):
        strength = int(rng.integers(1, 10))  # index 1–9 of a scale of ten
        if rng.random() < 0.5:
            picture = apply(picture, str(name), strength, rng)
    return np.asarray(picture)


def cutout(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Fill a square of ``side`` pixels, centred anywhere and clipped at the border, with one random colour."""
    size = image.shape[0]
    y, x = rng.integers(0, size, 2)
    out = image.copy()
    rows = slice(max(0, y - side // 2), min(size, y + side // 2))
    out[rows, max(0, x - side // 2) : min(size, x + side // 2)] = rng.integers(0, 256, 3)
    return out


def apply(picture: Image.Image, name: str, strength: int, rng: np.random.Generator) -> Image.Image:
    """One RandAugment operation at strength 0–9."""
    share = strength / 9
    signed = share * rng.choice((-1, 1))
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
            return ImageOps.solarize(picture, 256 - 256 * share)
        case "color":
            return ImageEnhance.Color(picture).enhance(1 + 0.9 * signed)
        case "contrast":
            return ImageEnhance.Contrast(picture).enhance(1 + 0.9 * signed)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(1 + 0.9 * signed)
        case "sharpness":
            return ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * signed)
        case "shear_x":
            return _affine(picture, (1, 0.3 * signed, 0, 0, 1, 0))
        case "shear_y":
            return _affine(picture, (1, 0, 0, 0.3 * signed, 1, 0))
        case "translate_x":
            return _affine(picture, (1, 0, 150 / 331 * signed * picture.width, 0, 1, 0))
        case "translate_y":
            return _affine(picture, (1, 0, 0, 0, 1, 150 / 331 * signed * picture.height))
        case "rotate":
            return picture.rotate(30 * signed, Image.Resampling.BICUBIC, fillcolor=GREY)
        case "cutout":
            side = max(2, round(20 * share))
            return Image.fromarray(cutout(np.asarray(picture), side, rng))
    raise ValueError(f"unknown operation {name!r}")


def _affine(picture: Image.Image, matrix: tuple) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def _light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    reach = max(1, image.shape[0] // 8)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    y, x = rng.integers(0, 2 * reach + 1, 2)
    out = padded[y : y + image.shape[0], x : x + image.shape[1]].astype(np.float32)
    contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(-25, 25)
    return ((out - 128) * contrast + 128 + brightness).clip(0, 255).astype(np.uint8)
