"""The augmentation against its description, and what is drawn against the published distribution."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from krt_core.data.augment import CUTOUT_GREY, GREY, OPERATIONS, apply, augment, cutout, draw

SIZE = 64


def pictures(count=24, seed=0):
    """Smooth shapes with edges, the stuff of photos, (count, SIZE, SIZE, 3) uint8."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        picture = Image.new("RGB", (SIZE, SIZE), tuple(rng.integers(20, 200, 3).tolist()))
        for _ in range(5):
            corner, extent = rng.integers(-10, SIZE, 2), rng.integers(5, 40, 2)
            colour = tuple(rng.integers(10, 246, 3).tolist())
            ImageDraw.Draw(picture).ellipse([*corner.tolist(), *(corner + extent).tolist()], fill=colour)
        grain = rng.normal(0, 4, (SIZE, SIZE, 3))
        made.append(np.clip(np.asarray(picture.filter(ImageFilter.GaussianBlur(1))) + grain, 0, 255).astype(np.uint8))
    return np.stack(made)


def smooth(x):
    """Mean over 3 × 3 pixels with a weight of 5 in the middle; the border stays."""
    size, out = len(x), x.copy()
    around = sum(x[1 + i : size - 1 + i, 1 + j : size - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    out[1:-1, 1:-1] = np.floor((around + 4 * x[1:-1, 1:-1]) / 13 + 0.5)
    return out


def equalized(channel):
    """The cumulative histogram straightened, by PIL's integer rule."""
    counts = np.bincount(channel.flatten(), minlength=256)
    step = (counts.sum() - counts[channel.max()]) // 255
    return channel if not step else ((step // 2 + counts.cumsum() - counts) // step).clip(0, 255)[channel]


def plainly(image, name, strength, sign, place):
    """Every operation once more, from its description, on an array (S, S, 3) uint8."""
    x, size, share = image.astype(float), len(image), strength / 9
    factor, grey = 1 + 0.9 * share * sign, (image @ np.array([19595, 38470, 7471]) + 0x8000 >> 16)[..., None]
    y, column = np.mgrid[:size, :size]
    match name:
        case "invert":
            return 255 - x
        case "autocontrast":
            low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
            return np.where(high > low, (x - low) * 255 / np.maximum(high - low, 1), x)
        case "equalize":
            return np.stack([equalized(image[..., c]) for c in range(3)], axis=2)
        case "posterize":
            kept = 1 << (8 - round(8 - 4 * share))
            return image // kept * kept
        case "solarize":
            return np.where(x < 256 - 256 * share, x, 255 - x)
        case "brightness" | "color" | "contrast" | "sharpness":
            mean = np.floor(grey.mean() + 0.5)
            other = {"brightness": 0, "color": grey, "contrast": mean, "sharpness": smooth(x)}[name]
            return (other + factor * (x - other)).clip(0, 255)
        case "cutout":
            half, (cy, cx) = round(20 * share) // 2, (place * size).astype(int)
            inside = (y >= cy - half) & (y < cy + half) & (column >= cx - half) & (column < cx + half)
            return np.where(inside[..., None], CUTOUT_GREY, x)
        case "rotate":  # anticlockwise about the middle
            sin, cos, middle = np.sin(np.pi / 6 * share), np.cos(np.pi / 6 * share), size / 2
            from_y = sin * (column + 0.5 - middle) + cos * (y + 0.5 - middle) + middle
            from_x = cos * (column + 0.5 - middle) - sin * (y + 0.5 - middle) + middle
        case "shear_x":
            from_y, from_x = y + 0.5, column + 0.5 + 0.3 * share * sign * (y + 0.5)
        case "shear_y":
            from_y, from_x = y + 0.5 + 0.3 * share * sign * (column + 0.5), column + 0.5
        case "translate_x":
            from_y, from_x = y + 0.5, column + 0.5 + 150 / 331 * share * sign * size
        case "translate_y":
            from_y, from_x = y + 0.5 + 150 / 331 * share * sign * size, column + 0.5
    within = (from_y >= 0) & (from_y < size) & (from_x >= 0) & (from_x < size)
    nearest = x[from_y.astype(int).clip(0, size - 1), from_x.astype(int).clip(0, size - 1)]
    return np.where(within[..., None], nearest, GREY[0])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_what_its_description_says(name):
    images, rng = pictures(), np.random.default_rng(1)
    strength, sign, place = rng.integers(1, 10, 24), rng.choice((-1, 1), 24), rng.random((24, 2))
    each = list(zip(images, strength.tolist(), sign.tolist(), place, strict=True))
    ours = np.stack([np.asarray(apply(Image.fromarray(image), name, *how)) for image, *how in each])
    difference = np.abs(ours - np.stack([plainly(image, name, *how) for image, *how in each]))
    assert ours.dtype == np.uint8 and ours.shape == images.shape and (ours != images).any()
    if name in ("sharpness", "autocontrast", "color", "contrast", "brightness"):
        assert difference.max() <= 1.01  # rounded down
    elif name in ("shear_x", "shear_y"):
        assert difference.mean() < 2.5  # between pixels by a cubic there, the nearest pixel here
        assert ((ours == GREY[0]).all(axis=3).mean(axis=(1, 2)) > 0.01).all()
    else:
        assert (difference > 0).mean() < 0.005  # at a pixel's edge the neighbour may be the nearest


def test_light_moves_by_up_to_an_eighth_and_changes_brightness_and_contrast():
    images = pictures(40)
    draws = draw("light", 40, np.random.default_rng(2))
    reach, line = SIZE // 8, np.arange(SIZE)
    moved = set()
    for i, image in enumerate(images):
        row = {name: values[i] for name, values in draws.items()}
        dy, dx = np.floor(row["shift"] * (2 * reach + 1)).astype(int) - reach
        moved |= {dy, dx}
        there = image[(line + dy).clip(0, SIZE - 1)][:, (line + dx).clip(0, SIZE - 1)].astype(float)
        wanted = ((there - 128) * row["contrast"] + 128 + row["brightness"]).clip(0, 255)
        assert np.abs(augment(image, "light", row) - wanted).max() <= 1.01
    assert moved == set(range(-reach, reach + 1))


def test_what_was_given_is_left_alone():
    images = pictures()
    for kind in ("published", "light", "none"):
        draws = draw(kind, len(images), np.random.default_rng(3))
        made = [augment(image, kind, {n: values[i] for n, values in draws.items()}) for i, image in enumerate(images)]
        assert (np.stack(made) == images).all() == (kind == "none")
    assert (images == pictures()).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_uniform_image_and_one_pixel_wide_ranges_survive(name):
    flat = np.full((3, SIZE, SIZE, 3), 77, dtype=np.uint8)
    flat[1, 0, 0] = 255, 0, 9
    for image, sign in zip(flat, (-1, 1, 1), strict=True):
        made = np.asarray(apply(Image.fromarray(image), name, 9, sign, np.full(2, 0.5)))
        assert (np.abs(made - plainly(image, name, 9, sign, np.full(2, 0.5))) > 1.01).mean() < 0.03


def test_cutout_covers_up_to_a_quarter():
    """A square of half the side, clipped at the border: (7/16)² of the image on average."""
    black = np.zeros((2000, SIZE, SIZE, 3), dtype=np.uint8)
    draws = draw("published", 2000, np.random.default_rng(0))
    shares = [
        cutout(image, SIZE // 2, place, (1, 1, 1))[..., 0].mean()
        for image, place in zip(black, draws["cutout"], strict=True)
    ]
    assert max(shares) <= 0.25 and np.mean(shares) == pytest.approx(49 / 256, abs=0.004)
    assert np.abs(draws["colour"].mean(axis=0) - 127.5).max() < 6


def published_plainly(image, random):
    """The published distribution, stated once more from the description alone, by Python's own generator."""
    size = image.width
    y, x, half = random.randrange(size), random.randrange(size), size // 4
    box = [max(0, x - half), max(0, y - half), min(size, x + half), min(size, y + half)]
    image = image.copy()
    image.paste(tuple(random.randrange(256) for _ in range(3)), box)
    for _ in range(2):
        name, index = random.choice(OPERATIONS), random.randint(1, 9)
        if random.random() < 0.5:
            place = np.array([random.random(), random.random()])
            image = apply(image, name, index, random.choice((-1, 1)), place)
    return np.asarray(image)


def test_images_have_the_published_distribution():
    """Statistics of augmented images, drawn by two generators: means within four standard errors, spreads alike, and
    the Kolmogorov-Smirnov distance below its 0.1 % point."""
    import random

    count, image = 3000, pictures(1, seed=5)[0]
    plain = random.Random(0)
    draws = draw("published", count, np.random.default_rng(9))
    ours = np.stack([augment(image, "published", {n: v[i] for n, v in draws.items()}) for i in range(count)])
    theirs = np.stack([published_plainly(Image.fromarray(image), plain) for _ in range(count)])

    def statistics(images):
        x = images.astype(np.float64)
        edges = np.abs(np.diff(x, axis=2)).mean(axis=(1, 2, 3))
        grey = (images == GREY[0]).all(axis=3).mean(axis=(1, 2))
        patch = (images == np.array(CUTOUT_GREY, np.uint8)).all(axis=3).mean(axis=(1, 2))
        same = (images == image).all(axis=3).mean(axis=(1, 2))
        colour = x.std(axis=3).mean(axis=(1, 2))
        return {"mean": x.mean(axis=(1, 2, 3)), "spread": x.std(axis=(1, 2, 3)), "edges": edges, "grey": grey,
                "patch": patch, "unchanged": same, "colour": colour}  # fmt: skip

    critical = 1.95 * np.sqrt(2 / count)
    a, b = statistics(ours), statistics(theirs)
    for name in a:
        error = np.sqrt((a[name].var() + b[name].var()) / count)
        assert abs(a[name].mean() - b[name].mean()) < 4 * error, name
        points = np.sort(np.concatenate([a[name], b[name]]))
        cdfs = [np.searchsorted(np.sort(s[name]), points + 1e-6, side="right") / count for s in (a, b)]
        assert np.abs(cdfs[0] - cdfs[1]).max() < critical, name
