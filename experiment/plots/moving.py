"""Paths from noise to samples as moving pictures: GIFs that loop, drawn by Pillow alone.

A picture has at most SIDE pixels on a side beside its margins, and MOST_BYTES: one that would be larger has fewer
frames, but always both ends. The last frame is held.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiment.plots.images import Array, evenly, tile
from experiment.plots.limits import Limits

SIDE, MOST_BYTES = 480, 4_000_000
MOST_IMAGES, MOST_POINTS = 64, 2000
FRAME_MS, HOLD_MS = 90, 2500
GROUND, INK, POINT = (255, 255, 255), (34, 38, 43), (0, 114, 178)
_SHADES = 16  # of the points and of the ink, each from the ground to its full colour
_FINE = 3  # the points are drawn on pixels so many times finer
_OPACITY = 0.55  # of a point, so that many on one place are darker
_BAND, _MARGIN = 30, 60  # pixels: of the caption, and of the numbers at an axis


@dataclass(frozen=True)
class Moving:
    """A GIF, which of the frames that were given it has, and how many samples it shows."""

    gif: bytes
    frames: list[int]
    shown: int


def moving_grid(frames: Array, captions: Sequence[str]) -> Moving:
    """Draw images uint8 (k, n, h, w, 1 or 3) as k grids, each with its caption below.

    The first that have room are shown, pixels magnified by a whole number. Of an image that alone has no room, every
    second, third, .. pixel is shown. Grey values are exact; of colours each frame has its own 240.
    """
    every = max(1, math.ceil(max(frames.shape[2:4]) / SIDE))
    shown, columns = _arrangement(*frames[:, :, ::every, ::every].shape[1:4])
    frames = frames[:, :shown, ::every, ::every]

    def draw(i: int) -> Image.Image:
        board, palette, greys = _indexed(tile(frames[i], columns))
        scale = max(1, SIDE // max(board.shape))
        board = board.repeat(scale, axis=0).repeat(scale, axis=1)
        height, width = board.shape
        under = Image.new("L", (max(width, SIDE // 2), height + _BAND), INK[0])
        place = (under.width // 2, height + _BAND // 2)
        ImageDraw.Draw(under).text(place, captions[i], fill=235, font=_font(), anchor="mm")
        whole = greys[np.asarray(under)]
        left = (under.width - width) // 2
        whole[:height, left : left + width] = board
        image = Image.fromarray(whole, mode="P")
        image.putpalette(palette)
        return image

    return _within_bounds(draw, len(frames), shown)


def _indexed(board: Array) -> tuple[Array, list[int], Array]:
    """A picture uint8 (h, w, 1 or 3) as places (h, w) in a palette, and the place of each of the 256 greys."""
    if board.shape[-1] == 1:
        return board[..., 0], [value for grey in range(256) for value in (grey,) * 3], np.arange(256, dtype=np.uint8)
    few = 256 - _SHADES
    quantised = Image.fromarray(board).quantize(few, dither=Image.Dither.NONE)  # before it is magnified: less work
    colours = (quantised.getpalette() or [])[: 3 * few]
    colours += [0] * (3 * few - len(colours))
    ramp = np.linspace(0, 255, _SHADES)
    greys = few + np.rint(np.arange(256) / 255 * (_SHADES - 1)).astype(np.uint8)
    return np.asarray(quantised), colours + [int(grey) for grey in ramp for _ in range(3)], greys


def _arrangement(n: int, h: int, w: int) -> tuple[int, int]:
    """How many of n images of h x w are shown, and in how many columns, about as wide as high."""
    for shown in range(min(n, MOST_IMAGES), 0, -1):
        columns = min(shown, max(1, math.ceil(math.sqrt(shown * h / w))))
        if columns * (w + 1) < SIDE and math.ceil(shown / columns) * (h + 1) < SIDE:
            return shown, columns
    return 1, 1


def moving_points(frames: Array, captions: Sequence[str], limits: Limits) -> Moving:
    """Draw points (k, n, 2) in k frames with the same axes, which go to ± limits or over the ranges (x₁, x₂).

    Of many points the first are shown.
    """
    frames = np.asarray(frames, float)[:, :MOST_POINTS]
    ranges = limits if isinstance(limits, tuple) else ((-limits, limits),) * 2
    axes = _axes(ranges)

    def draw(i: int) -> Image.Image:
        ink = axes.copy()
        ImageDraw.Draw(ink).text((_MARGIN + SIDE // 2, _BAND // 2), captions[i], fill=255, font=_font(), anchor="mm")
        shade = np.zeros((ink.height, ink.width), int)
        shade[_BAND : _BAND + SIDE, _MARGIN : _MARGIN + SIDE] = _shades(_places(frames[i], ranges))
        inked = np.rint(np.asarray(ink) / 255 * (_SHADES - 1)).astype(int)
        image = Image.fromarray(np.where(shade > 0, shade, inked + _SHADES * (inked > 0)).astype(np.uint8), mode="P")
        image.putpalette(_palette())
        return image

    return _within_bounds(draw, len(frames), frames.shape[1])


def _places(points: Array, ranges: tuple[tuple[float, float], tuple[float, float]]) -> Array:
    """The points (n, 2) in pixels of the square between the axes, from its upper left corner."""
    (left, right), (low, high) = ranges
    across, up = (points[:, 0] - left) / (right - left), (points[:, 1] - low) / (high - low)
    return np.stack([across, 1 - up], axis=1) * SIDE


def _shades(places: Array) -> Array:
    """How dark each pixel of the square is, 0.._SHADES - 1, under discs at these places."""
    side = SIDE * _FINE
    radius = _FINE * min(4.0, max(1.6, 60 / math.sqrt(len(places))))
    reach = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    disc = np.argwhere(np.add.outer(reach**2, reach**2) <= radius**2) - math.ceil(radius)
    inside = np.all(np.abs(places) < 2 * SIDE, axis=1)  # what is far outside may have no pixel's number
    column, row = (np.floor(places[inside].T[:, :, None] * _FINE).astype(int) + disc.T[:, None]).reshape(2, -1)
    seen = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    counts = np.bincount(row[seen] * side + column[seen], minlength=side * side)
    dark = (1 - (1 - _OPACITY) ** counts).reshape(SIDE, _FINE, SIDE, _FINE).mean(axis=(1, 3))
    return np.rint(dark * (_SHADES - 1)).astype(int)


def _axes(ranges: tuple[tuple[float, float], tuple[float, float]]) -> Image.Image:
    """The square with its ticks, white on black: 0 is no ink."""
    image = Image.new("L", (_MARGIN + SIDE + 22, _BAND + SIDE + 44))
    pen, font = ImageDraw.Draw(image), _font(12)
    bottom = _BAND + SIDE
    pen.rectangle((_MARGIN, _BAND, _MARGIN + SIDE - 1, bottom - 1), outline=120)
    for value in _ticks(*ranges[0]):
        x = _MARGIN + (value - ranges[0][0]) / (ranges[0][1] - ranges[0][0]) * SIDE
        pen.line((x, bottom, x, bottom + 4), fill=120)
        pen.text((x, bottom + 6), f"{value:g}", fill=255, font=font, anchor="ma")
    for value in _ticks(*ranges[1]):
        y = bottom - (value - ranges[1][0]) / (ranges[1][1] - ranges[1][0]) * SIDE
        pen.line((_MARGIN - 5, y, _MARGIN - 1, y), fill=120)
        pen.text((_MARGIN - 8, y), f"{value:g}", fill=255, font=font, anchor="rm")
    pen.text((_MARGIN + SIDE // 2, image.height - 3), "x1", fill=255, font=font, anchor="md")
    pen.text((4, _BAND), "x2", fill=255, font=font, anchor="la")
    return image


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers between the two."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(s * power for s in (5, 2, 1) if s * power <= (high - low) / 3)
    return [float(f"{k * step:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _palette() -> list[int]:
    part = np.linspace(0, 1, _SHADES)[:, None]
    shades = [(1 - part) * GROUND + part * np.array(colour) for colour in (POINT, INK)]
    return [int(value) for value in np.rint(np.concatenate(shades)).ravel()]


def _font(size: int = 15) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _within_bounds(draw: Callable[[int], Image.Image], count: int, shown: int) -> Moving:
    """The GIF of the frames 0..count-1, or of as many of them, ends included, as MOST_BYTES have room for."""
    images, kept = [draw(i) for i in range(count)], np.arange(count)
    while len(content := _gif([images[i] for i in kept])) > MOST_BYTES and len(kept) > 2:
        kept = evenly(count, max(2, len(kept) // 2))
    return Moving(content, kept.tolist(), shown)


def _gif(images: Sequence[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    durations = [FRAME_MS] * (len(images) - 1) + [HOLD_MS]
    images[0].save(buffer, format="gif", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()
