"""The decoding of one image: the bytes of a file to uint8 pixels (h, w, c), cropped and resized as configured."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiment.errors import UserError, one_line

MAX_PIXELS = 2**26  # of one image, 8192 x 8192: a header of a few bytes may promise gigabytes

# Channels after conversion by Pillow's mode; modes of 16 or 32 bits are absent, for they do not have 256 levels.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3}
_KIND = {1: "greyscale", 3: "colour"}

Size = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class Recipe:
    """The steps that every image goes through on the way in.

    Args:
        crop: pixels per side of a central crop, before anything else; 0 is none.
        size: pixels per side of the squares that come out: the shorter side is resized to it, then the centre is
            cropped; 0 is none.
        skip_unreadable: damaged images are left out instead of being a mistake.
    """

    crop: int = 0
    size: int = 0
    skip_unreadable: bool = False

    def shape(self, size: Size) -> Size:
        """The size that an image of this size comes out with."""
        side = self.size or self.crop
        return (side, side, size[2]) if side else size


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image or is damaged: the name shown to the user, and what is wrong."""

    name: str
    reason: str

    @classmethod
    def because(cls, name: str, error: Exception) -> "Unreadable":
        return cls(name, "not an image" if isinstance(error, UnidentifiedImageError) else one_line(error, 100))


def read_header(name: str, data: bytes) -> tuple[Image.Image, Size]:
    """Read an image's header.

    Returns:
        image: with its pixels still unread.
        size: its height, width and channels.

    Raises UserError for an image that is too large or has no 256 levels. What Pillow raises for a file that is no image
    comes through.
    """
    try:
        image = Image.open(io.BytesIO(data))
        too_large = image.width * image.height > MAX_PIXELS
    except Image.DecompressionBombError:
        too_large = True
    if too_large:
        raise UserError(f"{name} has more than {MAX_PIXELS} pixels; make it smaller or remove it")
    channels = _CHANNELS.get(image.mode)
    if channels is None:
        raise UserError(f"{name} has pixels of mode {image.mode}; convert it to 8-bit greyscale or colour")
    return image, (image.height, image.width, channels)


def decode_image(name: str, data: bytes, recipe: Recipe, expected: Size) -> np.ndarray | Unreadable:
    """Decode a file to its pixels after the recipe, uint8 of shape `expected`, which is one that the recipe gives.

    Raises UserError, naming the image, for one that is of another size, greyscale among colour, transparent, too large,
    or smaller than the crop.
    """
    try:
        image, found = read_header(name, data)
        size = recipe.shape(found)
        if size[2] != expected[2]:
            raise UserError(f"{name} is {_KIND[size[2]]} among {_KIND[expected[2]]} images; convert it or remove it")
        if size != expected:
            raise UserError(
                f"{name} is {found[0]}x{found[1]} (height x width), expected {expected[0]}x{expected[1]} "
                "like the others; resize it, or all of them with --config.data.size="
            )
        if image.mode in ("RGBA", "LA", "PA") and np.asarray(image.getchannel("A")).min() < 255:
            raise UserError(f"{name} has transparent pixels; flatten it on a background")
        image = image.convert("L" if expected[2] == 1 else "RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow, and zlib below it, raise a dozen kinds for what is damaged
        return Unreadable.because(name, error)
    return np.asarray(fit(name, image, recipe)).reshape(expected)


def fit(name: str, image: Image.Image, recipe: Recipe) -> Image.Image:
    """Crop and resize the image after the recipe.

    Resizing is that of guided-diffusion (Dhariwal and Nichol 2021, arXiv:2105.05233, center_crop_arr), usual for
    ImageNet: the image is halved by 2x2 means while its shorter side stays at least `size`, the rest is done by
    Pillow's antialiased bicubic filter, then the centre is taken.

    Raises UserError, naming the image, where the crop is larger than it.
    """
    width, height = image.size
    if recipe.crop:
        if recipe.crop > min(width, height):
            raise UserError(
                f"{name} is {height}x{width} (height x width), smaller than the crop; "
                f"set --config.data.crop to at most {min(width, height)}, or remove it"
            )
        image = _centre(image, recipe.crop)
    if recipe.size:
        while min(image.size) >= 2 * recipe.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = recipe.size / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        if width * height > MAX_PIXELS:  # a line of pixels, made `size` wide
            raise UserError(f"{name} is too elongated to be resized; crop it or remove it")
        image = _centre(image.resize((width, height), Image.Resampling.BICUBIC), recipe.size)
    return image


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
