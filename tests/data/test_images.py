"""Images of every kind, as people see them; broken ones are named."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from krt_core.data.pipeline import load_image
from krt_core.errors import DataError

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))
RGB = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "scale", "dtype"),
    [("a.png", 65535, np.uint16), ("a.png", 4095, np.uint16), ("a.tif", 65535, np.uint16), ("a.tif", 65535, ">u2"),
     ("a.tif", 1e9, np.int32), ("a.tif", 1, np.float32), ("a.tif", 255, np.float32), ("a.tif", -1000, np.float32)],
)  # fmt: skip
def test_deep_grey_keeps_its_levels(tmp_path, name, scale, dtype):
    Image.fromarray((RAMP * scale).astype(dtype)).save(tmp_path / name)
    grey = load_image(tmp_path / name, 64)
    assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey[..., 0])) >= 60


def test_deep_grey_has_one_scale(tmp_path):
    """Half as bright stays half as bright, and what is not finite is dark."""
    Image.fromarray((RAMP * 40000).astype(np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 64).max() == round(40000 / 257)
    Image.fromarray(np.where(RAMP > 0.5, np.nan, 0.4 + RAMP).astype(np.float32)).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif", 64)[:, 40:].max() == 0


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_deep_colours_keep_their_levels_or_are_named(tmp_path, kind, channels):
    """Pillow keeps the upper 8 of 16 bits: of 12 bits in 16 nearly nothing would be left."""
    for scale in (65535, 4095):
        pixels = np.full((64, 64, channels), 65535, ">u2")
        pixels[..., : channels - (kind > 2)] = (RAMP * scale)[..., None]
        _png(tmp_path / f"{scale}.png", 64, 16, kind, b"".join(b"\0" + row.tobytes() for row in pixels))
    grey = load_image(tmp_path / "65535.png", 64)
    assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey[..., 0])) >= 60
    with pytest.raises(DataError, match=r"4095.png cannot be read \(it has 16 bits a channel and uses 12"):
        load_image(tmp_path / "4095.png", 64)


def _png(path, size, depth, kind, rows):
    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", size, size, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_camera_says(tmp_path, extension, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    RGB.save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert (load_image(path, 32) == np.asarray(upright)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.jpg"), ("1", "a.png"), ("LA", "a.png"), ("RGBA", "a.png"),
                                            ("P", "a.gif"), ("YCbCr", "a.tif"), ("LAB", "a.tif")])  # fmt: skip
def test_colours_of_every_mode(tmp_path, mode, name):
    source = Image.new("LAB", (20, 20), (50, 20, 30)) if mode == "LAB" else RGB.convert(mode)
    source.save(tmp_path / name)
    assert load_image(tmp_path / name, 32).shape == (32, 32, 3)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency(tmp_path):
    RGB.convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert np.abs(load_image(tmp_path / "a.png", 32).astype(int) - load_image_of(RGB.convert("P"))).max() <= 1


def load_image_of(picture):
    return np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).astype(int)


FORMATS = "jpg png gif bmp tif webp avif jp2 ppm ico dds tga qoi sgi pcx icns"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("extension", FORMATS.split())
def test_broken_files_of_every_format_are_named(tmp_path, extension):
    path, rng = tmp_path / f"a.{extension}", np.random.default_rng(1)
    try:
        RGB.save(path)
    except (OSError, KeyError, ValueError):
        pytest.skip("this Pillow does not write the format")
    data = path.read_bytes()
    for _ in range(40):
        broken = np.frombuffer(data, np.uint8)[: rng.integers(1, len(data))].copy()
        broken[rng.integers(len(broken), size=8)] = rng.integers(256, size=8)
        path.write_bytes(broken.tobytes())
        try:
            assert load_image(path, 16).shape == (16, 16, 3)  # some damage cannot be told from a picture
        except DataError as error:
            assert str(path) in str(error)


def fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda p: p.write_bytes(b""), "the file is empty"), (lambda p: p.mkdir(), "is a folder"), (fifo, "not a file"),
     (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
     (lambda p: p.write_text("<html>"), "a web page"), (lambda p: p.write_bytes(b"\0" * 999), "filled with zeros"),
     (lambda p: p.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99), "a HEIC photo: save it as JPEG"),
     (lambda p: p.write_text("hello"), "no image of a format that is known"), (lambda p: None, "is missing"),
     (lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "EPS is a program")],
)  # fmt: skip
def test_what_is_no_image_is_named(tmp_path, make, words):
    make(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=rf"a.jpg.*{words}"):
        load_image(tmp_path / "a.jpg", 16)
