"""A backbone for the digits that has seen none of them: ``python -m benchmarks.letters``.

Printed capitals in the scenes of the digits, all of them learned at once: same ground, size and clutter, but no digit,
no image and no label of what is to be learned. Letters that read as a digit are left out. The backbone alone, without
the head, goes to ``data/pretrained/letters.safetensors``, and what it was trained on to ``checkpoints.csv`` beside it:
every run that takes it (``model.weights``) has it in its record.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save

from krt_core.config import load_experiment
from krt_core.data import coco, digits
from krt_core.data.dataset import MultiLabelDataset, Split
from krt_core.machine.home import atomic_write, data_dir, file_digest
from krt_core.reference import COLUMNS
from krt_core.session import train
from krt_core.weights.checkpoint import BACKBONE

LIKE_DIGITS = "BDGIOQSZ"  # 8 0 6 1 0 0 5 2
LETTERS = sorted(set(string.ascii_uppercase) - set(LIKE_DIGITS))
FACES = tuple(
    f"{family}{style}"
    for family, styles in {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"), "DejaVuSansMono": ("", "-Bold", "-Oblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic"), "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
        "cm": ("r10", "ss10", "tt10", "b10", "ti10"),
    }.items()
    for style in styles
)  # fmt: skip  # typefaces that come with matplotlib
FILE, EPOCHS = "letters.safetensors", 15


def printed(split: str) -> dict[str, np.ndarray]:
    """Letter → (m, 8, 8) in [0, 1], of the size and coarseness of the digits; some typefaces are kept for the test."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [face for i, face in enumerate(FACES) if (i % 4 == 3) == (split == "test")]
    sizes = [ImageFont.truetype(str(fonts / f"{face}.ttf"), 48) for face in faces]
    return {letter: np.stack([_glyph(letter, font) for font in sizes]) for letter in LETTERS}


def _glyph(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    image = Image.new("L", (96, 96))
    ImageDraw.Draw(image).text((16, 16), letter, fill=255, font=font)
    ink = image.crop(image.getbbox())
    width = max(1, min(8, round(8 * ink.width / ink.height)))
    glyph = Image.new("L", (8, 8))
    glyph.paste(ink.resize((width, 8), Image.Resampling.BOX), ((8 - width) // 2, 0))
    return np.asarray(glyph) / 255


def read(root: Path, split: Split) -> MultiLabelDataset:
    """The reader that ``data.dataset: benchmarks.letters:read`` names."""
    made = digits.make(root / "letters", glyphs=printed)
    return coco.read(coco.locate(made, split, "coco"), "letters", split)


def main(epochs: int = EPOCHS) -> Path:
    changes = {
        "name": "letters", "method": "joint", "data.dataset": "benchmarks.letters:read", "train.epochs": epochs,
        "protocol.increment": len(LETTERS),
    }  # fmt: skip
    run = train(load_experiment("digits_demo", changes))
    body = {name.removeprefix(BACKBONE): t for name, t in run.model_state(0).items() if name.startswith(BACKBONE)}
    path = atomic_write(data_dir() / "pretrained" / FILE, save(body))
    what = f"{len(LETTERS)} printed letters in the scenes of the digits, {epochs} epochs"
    table = path.with_name("checkpoints.csv")  # see `krt_core.reference.known_checkpoint`
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else [",".join(COLUMNS)]
    lines = [line for line in lines if not line.startswith(f"{FILE},")]
    lines.append(f'{FILE},{file_digest(path)},"{what}",no,python -m benchmarks.letters')
    atomic_write(table, "\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    print(main())
