"""The augmentation of `krt_core.data.augment` on whole batches, on the device the images are on.

Same draws, same operations; single grey levels differ where PIL rounds otherwise (the tests say how many). Images are
(B, S, S, 3) uint8 throughout: the layout of the cache, and what becomes channels_last without a copy.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .augment import CUTOUT_GREY, GREY, OPERATIONS, Draws

CHUNK = 16  # images at a time on a CPU


def augment_batch(images: Tensor, kind: str, draws: Draws) -> Tensor:
    """Images (B, S, S, 3) uint8 with B rows of `draw`; kind as in `augment`. The images given are left alone."""
    if kind == "none":
        return images
    work = _published if kind == "published" else _light
    if images.device.type != "cpu" or len(images) <= CHUNK:
        return work(images, draws)
    out = torch.empty_like(images)  # a CPU is faster on pieces that stay in its caches
    for i in range(0, len(images), CHUNK):
        part = slice(i, i + CHUNK)
        out[part] = work(images[part], {name: values[part] for name, values in draws.items()})
    return out


def _published(images: Tensor, draws: Draws) -> Tensor:
    size = images.shape[1]
    side = np.full(len(images), size // 2)
    images = _cutout(images, side, draws["cutout"], torch.from_numpy(draws["colour"]).to(images.device))
    for k in range(2):
        for code in np.unique(draws["operation"][draws["applied"][:, k], k]):
            rows = np.flatnonzero(draws["applied"][:, k] & (draws["operation"][:, k] == code))
            share = draws["strength"][rows, k] / 9
            where = torch.from_numpy(rows).to(images.device)
            made = apply_batch(
                images.index_select(0, where), OPERATIONS[code], share, draws["sign"][rows, k], draws["place"][rows, k]
            )
            images.index_copy_(0, where, made)
    return images


def apply_batch(images: Tensor, name: str, share: np.ndarray, sign: np.ndarray, place: np.ndarray) -> Tensor:
    """One RandAugment operation on (B, S, S, 3) uint8 at shares (B,) of its full strength."""
    size, signed = images.shape[1], share * sign
    level = torch.arange(256, device=images.device)  # tables (B or 1, 1 or 3, 256): what becomes of each grey level
    match name:
        case "invert":
            return 255 - images
        case "autocontrast":
            low, high = (ends.double() for ends in _extremes(images))
            scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1.0)
            offset = torch.where(high > low, -low * scale, 0.0)
            return _look_up(images, level * scale + offset)
        case "equalize":
            return _equalize(images)
        case "posterize":
            bits = np.array([256 - (1 << (8 - round(8 - 4 * s))) for s in share])
            return _look_up(images, level & _each(bits, images))
        case "solarize":
            return _look_up(images, torch.where(level < _each(256 - 256 * share, images), level, 255 - level))
        case "brightness":
            return _look_up(images, level * _each(1 + 0.9 * signed, images))
        case "contrast":
            mean = _grey(images).double().mean(dim=(1, 2)).add(0.5).floor().float()[:, None, None]
            return _look_up(images, mean + _each(1 + 0.9 * signed, images) * (level - mean))
        case "color":
            grey = _grey(images).unsqueeze(-1).expand(images.shape).contiguous()
            return _blend(grey, images, 1 + 0.9 * signed)
        case "sharpness":
            return _blend(_smooth(images), images, 1 + 0.9 * signed)
        case "shear_x":
            return _shear(images, 0.3 * signed)
        case "shear_y":
            return _shear(images.transpose(1, 2), 0.3 * signed).transpose(1, 2)
        case "translate_x":
            return _translate(images, 150 / 331 * signed * size)
        case "translate_y":  # whole rows of the image are the pixels of one long row
            return _translate(images.flatten(2).unsqueeze(1), 150 / 331 * signed * size).view(images.shape)
        case "rotate":
            return _rotate(images, 30 * share)
        case "cutout":
            grey = torch.tensor(CUTOUT_GREY, dtype=torch.uint8, device=images.device)
            return _cutout(images, np.array([round(20 * s) for s in share]), place, grey.expand(len(images), 3))
    raise ValueError(f"unknown operation {name!r}")


def _each(values: np.ndarray, images: Tensor) -> Tensor:
    """One number per image (B,) as (B, 1, 1) on the images' device; float64 becomes float32."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.from_numpy(values).to(images.device)[:, None, None]


def _levels(images: Tensor) -> Tensor:
    """(B, S · S · 3) int32: image, channel and grey level of every value as one number."""
    batch, size = images.shape[:2]
    channel = torch.arange(3, dtype=torch.int32, device=images.device).repeat(size) * 256
    image = torch.arange(batch, dtype=torch.int32, device=images.device)[:, None, None] * 768
    return images.flatten(2).int().add_(channel).add_(image)


def _look_up(images: Tensor, table: Tensor, levels: Tensor | None = None) -> Tensor:
    """Each value by its table (B or 1, 1 or 3, 256), cut to [0, 255] and rounded down."""
    table = table.clamp(0, 255).byte().expand(len(images), 3, 256).flatten()
    levels = _levels(images) if levels is None else levels
    return table.index_select(0, levels.flatten()).view(images.shape)


def _extremes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every channel, (B, 3, 1)."""
    low, high = images.flatten(2).amin(dim=1), images.flatten(2).amax(dim=1)  # (B, 3S): along the rows first
    return low.unflatten(1, (-1, 3)).amin(dim=1).unsqueeze(-1), high.unflatten(1, (-1, 3)).amax(dim=1).unsqueeze(-1)


def _equalize(images: Tensor) -> Tensor:
    """Make the cumulative histogram of each channel straight, by PIL's integer rule."""
    levels = _levels(images)
    counts = torch.bincount(levels.flatten(), minlength=768 * len(images)).view(-1, 3, 256)
    highest = torch.where(counts > 0, torch.arange(256, device=images.device), 0).amax(dim=-1, keepdim=True)
    step = (counts.sum(dim=-1, keepdim=True) - counts.gather(-1, highest)) // 255  # of all but the brightest
    before = counts.cumsum(dim=-1) - counts
    table = (step // 2 + before) // step.clamp(min=1)
    return _look_up(images, torch.where(step > 0, table, torch.arange(256, device=images.device)), levels)


def _blend(other: Tensor, images: Tensor, factor: np.ndarray) -> Tensor:
    """other + factor · (images − other), cut to [0, 255] and rounded down, as PIL's enhancers do."""
    mixed = torch.lerp(other, images.float(), _each(factor, images).unsqueeze(-1))
    return mixed.clamp_(0, 255).short().byte()


def _grey(images: Tensor) -> Tensor:
    """(B, S, S) luma of ITU-R 601-2 in PIL's integer form; float32 holds all of it exactly."""
    x = images.float()
    return (x[..., 0] * 19595 + x[..., 1] * 38470 + x[..., 2] * 7471).add_(0x8000).div_(65536).floor_()


def _smooth(images: Tensor) -> Tensor:
    """Mean over 3 × 3 pixels with a weight of 5 in the middle; the border stays. float32."""
    x = images.flatten(2).float()  # (B, S, 3S): a neighbouring pixel is three steps away
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    inner = x[:, 1:-1, 3:-3]
    inner.mul_(4).add_(rows[:, :, :-6]).add_(rows[:, :, 3:-3]).add_(rows[:, :, 6:]).div_(13).add_(0.5).floor_()
    return x.view(images.shape)


def _cutout(images: Tensor, side: np.ndarray, place: np.ndarray, colour: Tensor) -> Tensor:
    """A square of ``side`` (B,) pixels at ``place`` (B, 2) as shares of the size, filled with colour (B, 3)."""
    size, device = images.shape[1], images.device
    centre = torch.from_numpy((place * size).astype(np.int64)).to(device)
    half = torch.from_numpy(side // 2).to(device)[:, None]
    line = torch.arange(size, device=device)

    def within(middle: Tensor, line: Tensor) -> Tensor:
        return (line >= middle[:, None] - half) & (line < middle[:, None] + half)

    inside = within(centre[:, 0], line)[:, :, None], within(centre[:, 1], line.repeat_interleave(3))[:, None, :]
    return _paint(images, _ones(inside[0]) & _ones(inside[1]), colour.repeat(1, size)[:, None, :])


def _ones(mask: Tensor) -> Tensor:
    """True → 255, False → 0."""
    return mask.view(torch.uint8).neg()


def _paint(images: Tensor, mask: Tensor, colour: Tensor | int) -> Tensor:
    """Colour where mask (B, S, 3S) is 255: bit by bit, ten times as fast as `torch.where` on bytes."""
    flat = images.flatten(2)  # (B, S, 3S)
    return (flat ^ ((flat ^ colour) & mask)).view(images.shape)


def _pieces(padded: Tensor, start: Tensor, width: int) -> Tensor:
    """(B, R, P, 3) and the first column for each row (B, R) → (B, R, width, 3): of each row a piece of its own."""
    padded = padded.contiguous()
    batch, rows, columns, channels = padded.shape
    windows = padded.as_strided(
        (batch, rows, columns - width + 1, width * channels),
        (rows * columns * channels, columns * channels, channels, 1),
    )
    first = torch.arange(batch, device=padded.device)[:, None]
    return windows[first, torch.arange(rows, device=padded.device), start].unflatten(-1, (width, channels))


def _shear(images: Tensor, slope: np.ndarray) -> Tensor:
    """Row y takes its pixels from slope · (y + ½) to the right: one-dimensional, by PIL's cubic kernel (a = −1)."""
    size, device = images.shape[1], images.device
    line = torch.arange(size, device=device)
    offset = _each(slope, images)[:, :, 0] * (line + 0.5)  # (B, S)
    whole = offset.floor()
    reach = math.ceil(0.3 * size) + 3
    ends = images[:, :, :1], images[:, :, -1:]
    padded = torch.cat([ends[0].expand(-1, -1, reach, -1), images, ends[1].expand(-1, -1, reach, -1)], dim=2)
    source = _pieces(padded, whole.long() + reach - 1, size + 3).float()
    d = (offset - whole)[:, :, None, None]
    kernel = (-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3)
    out = kernel[0] * source[:, :, :size]
    for tap in range(1, 4):
        out.addcmul_(kernel[tap], source[:, :, tap : tap + size])
    x = line.repeat_interleave(3) + 0.5 + offset[:, :, None]  # (B, S, 3S)
    return _paint(out.clamp_(0, 255).short().byte(), _ones((x < 0) | (x >= size)), GREY[0])


def _translate(images: Tensor, pixels: np.ndarray) -> Tensor:
    """Every row takes its pixels from so many (B,) pixels to the right."""
    batch, rows, size, channels = images.shape
    reach = math.ceil(150 / 331 * size) + 1
    grey = images.new_full((1, 1, 1, 1), GREY[0]).expand(batch, rows, reach, channels)
    start = torch.from_numpy(np.floor(pixels + 0.5).astype(np.int64)).to(images.device) + reach
    return _pieces(torch.cat([grey, images, grey], dim=2), start[:, None].expand(-1, rows), size)


def _rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """About the middle, anticlockwise, by the nearest pixel."""
    batch, size, device = len(images), images.shape[1], images.device
    angle = torch.from_numpy(np.radians(degrees).astype(np.float32)).to(device)[:, None, None]
    line = torch.arange(size, device=device) + 0.5 - size / 2
    y, x = line[:, None], line[None, :]
    from_x = (torch.cos(angle) * x - torch.sin(angle) * y + size / 2).floor_().long()  # (B, S, S)
    from_y = (torch.sin(angle) * x + torch.cos(angle) * y + size / 2).floor_().long()
    inside = (from_x >= 0) & (from_x < size) & (from_y >= 0) & (from_y < size)
    image = torch.arange(batch, device=device)[:, None, None]
    flat = ((image * size + from_y) * size + from_x).masked_fill_(~inside, batch * size * size)
    pixels = torch.cat([images.reshape(-1, 3), images.new_full((1, 3), GREY[0])])  # the last one is the outside
    return pixels.index_select(0, flat.flatten()).view(images.shape)


def _light(images: Tensor, draws: Draws) -> Tensor:
    size = images.shape[1]
    reach = max(1, size // 8)
    start = torch.from_numpy((draws["shift"] * (2 * reach + 1)).astype(np.int64)).to(images.device)
    line = torch.arange(size, device=images.device)
    rows = (line + start[:, :1] - reach).clamp_(0, size - 1)  # (B, S)
    moved = images[torch.arange(len(images), device=images.device)[:, None], rows]
    ends = moved[:, :, :1].expand(-1, -1, reach, -1), moved[:, :, -1:].expand(-1, -1, reach, -1)
    moved = _pieces(torch.cat([ends[0], moved, ends[1]], dim=2), start[:, 1:].expand(-1, size), size)
    contrast, brightness = _each(draws["contrast"], images), _each(draws["brightness"] + 128, images)
    return _look_up(moved, (torch.arange(256, device=images.device) - 128) * contrast + brightness)
