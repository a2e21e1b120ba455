"""The augmentation of batches against PIL, and what is drawn against the published distribution."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from krt_core.data.augment import CUTOUT_GREY, GREY, OPERATIONS, apply, augment, cutout, draw
from krt_core.data.augment_batch import CHUNK, apply_batch, augment_batch

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


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_on_a_batch_is_pils(name):
    images, rng = pictures(), np.random.default_rng(1)
    strength, sign, place = rng.integers(1, 10, 24), rng.choice((-1, 1), 24), rng.random((24, 2))
    one_by_one = [
        np.asarray(apply(Image.fromarray(image), name, int(m), int(s), p))
        for image, m, s, p in zip(images, strength, sign, place, strict=True)
    ]
    batch = apply_batch(torch.from_numpy(images), name, strength / 9, sign, place)
    assert batch.dtype == torch.uint8 and batch.shape == images.shape
    difference = np.abs(np.stack(one_by_one).astype(int) - batch.numpy())
    if name in ("sharpness", "autocontrast", "color", "contrast", "brightness"):
        assert difference.max() <= 1 and difference.mean() < 0.02  # rounding
    elif name in ("shear_x", "shear_y", "rotate"):
        assert (difference > 1).mean() < 0.005  # at a pixel's edge PIL's fixed point picks the neighbour
    else:
        assert difference.max() == 0
    assert (batch.numpy() != images).any()


@pytest.mark.parametrize("kind", ["published", "light"])
def test_whole_augmentations_agree_whatever_the_piece_of_a_batch(kind):
    images = pictures(CHUNK + 5)
    draws = draw(kind, len(images), np.random.default_rng(2))
    batch = augment_batch(torch.from_numpy(images), kind, draws).numpy()
    for i, image in enumerate(images):
        alone = augment(image, kind, {name: values[i] for name, values in draws.items()})
        assert (np.abs(alone.astype(int) - batch[i]) > 2).mean() < 0.02
    part = slice(7, 12)
    again = augment_batch(torch.from_numpy(images[part]), kind, {name: values[part] for name, values in draws.items()})
    assert (again.numpy() == batch[part]).all()
    assert (images == pictures(CHUNK + 5)).all()  # what was given is left alone
    assert augment_batch(torch.from_numpy(images), "none", {}).numpy() is not None
    assert (augment(images[0], "none", {}) == images[0]).all()


def test_a_uniform_image_and_one_pixel_wide_ranges_survive():
    flat = torch.full((3, SIZE, SIZE, 3), 77, dtype=torch.uint8)
    flat[1, 0, 0] = torch.tensor([255, 0, 9], dtype=torch.uint8)
    for name in OPERATIONS:
        strength, sign, place = np.full(3, 9), np.array([-1, 1, 1]), np.full((3, 2), 0.5)
        expected = [
            np.asarray(apply(Image.fromarray(image), name, 9, int(s), np.full(2, 0.5)))
            for image, s in zip(flat.numpy(), sign, strict=True)
        ]
        batch = apply_batch(flat, name, strength / 9, sign, place).numpy()
        assert (np.abs(np.stack(expected).astype(int) - batch) > 1).mean() < 0.03, name


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


def test_batches_have_the_published_distribution():
    """Statistics of augmented images, drawn by two generators: means within four standard errors, spreads alike, and
    the Kolmogorov-Smirnov distance below its 0.1 % point."""
    import random

    count, image = 3000, pictures(1, seed=5)[0]
    plain = random.Random(0)
    ours = augment_batch(
        torch.from_numpy(np.repeat(image[None], count, 0)),
        "published",
        draw("published", count, np.random.default_rng(9)),
    ).numpy()
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
