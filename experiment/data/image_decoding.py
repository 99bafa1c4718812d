"""The decoding of one image: the bytes of a file to uint8 pixels (h, w, c), cropped and resized as configured.

Pixels are those that a viewer shows: turned as EXIF says, in sRGB whatever colour profile or gamma the file names. What
has more than these pixels is refused: transparency, 16 bits, further frames or pages.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from experiment.common.errors import UserError, one_line

MAX_PIXELS = 2**26  # of one image, 8192 x 8192: a header of a few bytes may promise gigabytes

# Read whatever the file's name says. Pillow has others, one of which starts a program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

# Channels after conversion by Pillow's mode; modes of 16 or 32 bits are absent, for they do not have 256 levels.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
_KIND = {1: "greyscale", 3: "colour"}

_GAMMA = 1 / 2.2  # of sRGB, as PNG files state it

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
        if isinstance(error, UnidentifiedImageError):
            return cls(name, "not an image")
        return cls(name, one_line(getattr(error, "strerror", None) or error, 100))


def read_header(name: str, data: bytes) -> tuple[Image.Image, Size]:
    """Read an image's header.

    Returns:
        image: as a viewer turns it, its pixels still unread where it is not turned.
        size: its height, width and channels.

    Raises UserError for an image that is too large, has no 256 levels, or several frames. What Pillow raises for a file
    that is no image comes through.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        too_large = image.width * image.height > MAX_PIXELS
    except Image.DecompressionBombError:
        too_large = True
    if too_large:
        raise UserError(f"{name} has more than {MAX_PIXELS} pixels; make it smaller or remove it")
    channels = _CHANNELS.get(image.mode)
    if channels is None:
        raise UserError(f"{name} has pixels of mode {image.mode}; convert it to 8-bit greyscale or colour")
    more = _more_than_pillow_gives(image)
    if more:
        raise UserError(f"{name} has {more}; convert it to 8-bit greyscale or colour, or save arrays as an .npz")
    # Of an MPO, which phones write, every viewer shows the first picture alone: the others are previews and the like.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        kind = "pages" if image.format == "TIFF" else "frames"
        raise UserError(f"{name} has several {kind}; save each as a file of its own, or remove it")
    image = _upright(image)
    return image, (image.height, image.width, channels)


def _more_than_pillow_gives(image: Image.Image) -> str:
    """Name what the file has and Pillow would leave out unsaid: bits beyond the eighth, signs, further channels."""
    if image.format == "TIFF":
        bits, kinds, samples = (image.tag_v2.get(tag, (1,)) for tag in (258, 339, 277))  # type: ignore[attr-defined]
        if max(bits) > 8:
            return "more than 8 bits per channel"
        if set(kinds) != {1}:
            return "signed numbers for pixels"
        count = samples[0] if isinstance(samples, tuple) else samples
        return f"{count} channels" if count > len(image.getbands()) else ""
    for *_, arguments in getattr(image, "tile", ()):
        deep = image.format == "PNG" and str(arguments).endswith(";16B")
        deep |= image.format == "PPM" and isinstance(arguments, tuple) and arguments[1] > 255  # the largest number
        if deep:
            return "more than 8 bits per channel"
    return ""


def _upright(image: Image.Image) -> Image.Image:
    """Turn and mirror the image as its EXIF or XMP says, of which there are eight ways."""
    if image.format == "PNG":
        image.load()  # its EXIF may follow the pixels
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # damaged EXIF, of which Pillow says so in many ways: viewers leave it out
        return image
    return ImageOps.exif_transpose(image) if turned else image


def decode_image(name: str, data: bytes, recipe: Recipe, expected: Size) -> np.ndarray | Unreadable:
    """Decode a file to its pixels after the recipe, uint8 of shape `expected`, which is one that the recipe gives.

    Raises UserError, naming the image, for one that is of another size, greyscale among colour, transparent, too large,
    too deep, or smaller than the crop.
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
        if _is_transparent(image):
            raise UserError(f"{name} has transparent pixels; flatten it on a background")
        image.load()
        image = _in_srgb(image, "L" if expected[2] == 1 else "RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow, and zlib below it, raise a dozen kinds for what is damaged
        return Unreadable.because(name, error)
    return np.asarray(fit(name, image, recipe)).reshape(expected)


def _is_transparent(image: Image.Image) -> bool:
    """Tell whether a pixel is not opaque: by an alpha channel, a transparent colour, or where a GIF draws nothing."""
    if image.format == "GIF" and any(tile[1] != (0, 0, *image.size) for tile in getattr(image, "tile", ())):
        return True
    return image.has_transparency_data and bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def _in_srgb(image: Image.Image, mode: str) -> Image.Image:
    """Convert to greyscale or RGB, by the file's colour profile or gamma where it names another than sRGB's."""
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # one that is damaged: viewers leave it out
            theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            title = ImageCms.getProfileDescription(theirs).lower()
            if "srgb" not in title or "linear" in title:
                if image.mode not in ("L", "CMYK"):
                    image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
                srgb = ImageCms.createProfile("sRGB")
                ours: Any = ImageCms.profileToProfile(image, theirs, srgb, outputMode="RGB")
                return ours.getchannel("R") if mode == "L" else ours
    elif gamma and "srgb" not in image.info and abs(gamma - _GAMMA) > 0.02:
        light = (np.arange(256) / 255) ** (1 / gamma)
        encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        return image.convert(mode).point(np.rint(255 * encoded).astype(int).tolist() * len(mode))
    return image.convert(mode)


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
