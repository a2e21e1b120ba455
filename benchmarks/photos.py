"""Generated photos: a COCO folder with JPEG files of the size and weight of COCO's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
WIDTH, HEIGHT, QUALITY = 640, 480, 95  # COCO train2014: mostly 640 × 480, 160 kB on average


def photo(rng: np.random.Generator, present: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Noise with the 1/f spectrum of natural images, and a tinted rectangle for every class that is present."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = 1 / np.maximum(np.hypot(fy, fx), 1 / width)
    noise = np.fft.irfft2(spectrum * np.exp(2j * np.pi * rng.random((3, *spectrum.shape))), s=(height, width))
    image = 120 + 50 * noise / noise.std()
    for c in present:
        colour = (37 * c + 80) % 256, (91 * c + 30) % 256, (53 * c + 150) % 256
        y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
        part = image[:, y : y + height // 3, x : x + width // 3]
        part += 0.6 * (np.array(colour)[:, None, None] - part)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write_photos(root: Path, train: int, test: int, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Path:
    """A folder for ``data.dataset=coco``; one to three of the eight classes in each image."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(CLASSES)]
    for split, count in (("train", train), ("test", test)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            present = np.sort(rng.choice(len(CLASSES), rng.integers(1, 4), replace=False))
            file = f"{i:06d}.jpg"
            photo(rng, present, width, height).save(root / split / file, quality=QUALITY)
            images.append({"id": i + 1, "file_name": file, "width": width, "height": height})
            annotations += [{"id": len(annotations) + k + 1, "image_id": i + 1, "category_id": int(c) + 1, "iscrowd": 0}
                            for k, c in enumerate(present)]  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return root
