"""Pixels as a viewer shows them, whatever a file says beside them; and what has more than these pixels is refused."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from experiment.common.errors import UserError
from experiment.data.image_decoding import Recipe, Unreadable, decode_image

RNG = np.random.default_rng(0)
# Blocks of 8 pixels, so that JPEG and WebP lose little.
PIXELS = np.kron(RNG.integers(0, 256, (3, 2, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
IMAGE = Image.fromarray(PIXELS)
GREY = Image.fromarray(PIXELS[..., 0])


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes, shape: tuple[int, ...] = PIXELS.shape) -> np.ndarray:
    found = decode_image("a file", content, Recipe(), shape)  # type: ignore[arg-type]
    assert isinstance(found, np.ndarray), found
    return found


def refusal(content: bytes, shape: tuple[int, ...] = PIXELS.shape) -> str:
    with pytest.raises(UserError) as caught:
        decode_image("a file", content, Recipe(), shape)  # type: ignore[arg-type]
    return str(caught.value)


# --- orientation ------------------------------------------------------------------------------------------------------

# TIFF 6.0, tag 274: where the stored row 0 and column 0 are.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
TURNED_FILES: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 100, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tiff": {},
    "tiff compressed": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", TURNED_FILES)
def test_an_image_is_turned_as_its_exif_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = saved(IMAGE, kind.split()[0], exif=exif, **TURNED_FILES[kind])
    expected = SHOWN[orientation](PIXELS)
    found = decoded(content, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= (3 if kind == "jpeg" else 0)


@pytest.mark.parametrize("orientation", SHOWN)
def test_an_image_is_turned_as_its_xmp_says(orientation: int) -> None:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="{orientation}"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    expected = SHOWN[orientation](PIXELS)
    np.testing.assert_array_equal(decoded(saved(IMAGE, "png", pnginfo=text), expected.shape), expected)


def test_exif_behind_the_pixels_counts_and_damaged_exif_does_not() -> None:
    exif = Image.Exif()
    exif[274] = 6
    whole, plain = saved(IMAGE, "png", exif=exif), saved(IMAGE, "png")
    start = whole.index(b"eXIf") - 4
    chunk = whole[start : start + 12 + struct.unpack(">I", whole[start : start + 4])[0]]
    behind = plain.replace(plain[-12:], chunk + plain[-12:])
    np.testing.assert_array_equal(decoded(behind, SHOWN[6](PIXELS).shape), SHOWN[6](PIXELS))
    damaged = saved(IMAGE, "jpeg", quality=100, subsampling=0, exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert np.abs(decoded(damaged).astype(int) - PIXELS).max() <= 3
    assert isinstance(decode_image("a file", whole[:-60], Recipe(), SHOWN[6](PIXELS).shape), Unreadable)


# --- colour -----------------------------------------------------------------------------------------------------------


def profile(space: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def gamma_profile(gamma: float) -> bytes:
    """A greyscale profile of the power law, version 2: header, tags, and the three that it needs."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(79)
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    table, data, offset = b"", b"", 128 + 4 + 3 * 12
    for tag, content in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", offset + len(data), len(content))
        data += content
    size = offset + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x02100000, b"mntr", b"GRAY", b"XYZ ") + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 3) + table + data


def in_srgb(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def gamma_png(gamma: float, *more: tuple[bytes, bytes], image: Image.Image = GREY) -> bytes:
    whole = saved(image, "png")
    chunks = b""
    for name, content in ((b"gAMA", struct.pack(">I", round(gamma * 1e5))), *more):
        chunks += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return whole[:33] + chunks + whole[33:]


@pytest.mark.parametrize("power", [1.0, 1.8])
@pytest.mark.parametrize("colour", [False, True])
def test_gamma_and_profiles_are_undone(power: float, colour: bool) -> None:
    image, pixels = (IMAGE, PIXELS) if colour else (GREY, PIXELS[..., :1])
    expected = in_srgb((pixels / 255) ** power)
    found = decoded(gamma_png(1 / power, image=image), pixels.shape)
    np.testing.assert_allclose(found, expected, atol=0.51)
    if not colour:
        for kind, options in (("png", {}), ("tiff", {}), ("jpeg", {"quality": 100})):
            content = saved(GREY, kind, icc_profile=gamma_profile(power), **options)
            np.testing.assert_allclose(decoded(content, pixels.shape), expected, atol=3 if kind == "jpeg" else 1)


@pytest.mark.parametrize("kind", ["gamma", "sRGB over gamma", "sRGB profile", "damaged profile", "profile of others"])
def test_what_is_srgb_or_says_nothing_keeps_its_numbers(kind: str) -> None:
    lab = profile("LAB")
    content = {
        "gamma": lambda: gamma_png(0.45455, image=IMAGE),
        "sRGB over gamma": lambda: gamma_png(1.0, (b"sRGB", b"\0"), image=IMAGE),
        "sRGB profile": lambda: saved(IMAGE, "png", icc_profile=profile("sRGB")),
        "damaged profile": lambda: saved(IMAGE, "png", icc_profile=profile("sRGB")[:100]),
        "profile of others": lambda: saved(IMAGE, "png", icc_profile=lab),
    }[kind]()
    np.testing.assert_array_equal(decoded(content), PIXELS)


def test_cmyk_of_a_profile_and_without_one() -> None:
    plain = IMAGE.convert("CMYK")
    np.testing.assert_array_equal(decoded(saved(plain, "tiff")), np.asarray(plain.convert("RGB")))


# --- transparency -----------------------------------------------------------------------------------------------------

PALETTE = IMAGE.quantize(8)
ALPHA = np.full(PIXELS.shape[:2], 255, np.uint8)
GLASS = ALPHA.copy()
GLASS[3, 4] = 254


def with_alpha(alpha: np.ndarray, mode: str = "RGBA") -> Image.Image:
    image = IMAGE.convert(mode[:-1])
    image.putalpha(Image.fromarray(alpha))
    return image


def partial_gif() -> bytes:
    """A GIF on a larger canvas than what it draws."""
    content = bytearray(saved(PALETTE, "gif"))
    content[6:10] = struct.pack("<HH", 20, 30)
    return bytes(content)


def bitmap(alpha: np.ndarray) -> bytes:
    """A BMP of version 4, which has masks of its channels, alpha among them."""
    height, width = alpha.shape
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, 4 * alpha.size, 0, 0, 0, 0) + masks
    pixels = np.dstack([PIXELS[..., ::-1], alpha]).tobytes()
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + header.ljust(108, b"\0") + pixels


# Each with one pixel that is not opaque, and the same with none.
TRANSPARENT: dict[str, Any] = {
    "RGBA png": lambda a: saved(with_alpha(a), "png"),
    "LA png": lambda a: saved(with_alpha(a, "LA"), "png"),
    "RGBA webp": lambda a: saved(with_alpha(a), "webp", lossless=True),
    "RGBA lossy webp": lambda a: saved(with_alpha(a), "webp", quality=100),
    "RGBA tiff": lambda a: saved(with_alpha(a), "tiff"),
    "LA tiff": lambda a: saved(with_alpha(a, "LA"), "tiff"),
    "RGBA bmp": lambda a: bitmap(a),
    "palette png, a colour": lambda a: saved(PALETTE, "png", transparency=0 if a is GLASS else 200),
    "palette png, a table": lambda a: saved(PALETTE, "png", transparency=bytes([255, 128 if a is GLASS else 255])),
    "palette gif": lambda a: saved(PALETTE, "gif", transparency=0 if a is GLASS else 200),
    "RGB png, a colour": lambda a: saved(
        IMAGE, "png", transparency=tuple(PIXELS[0, 0].tolist()) if a is GLASS else (1, 2, 3)
    ),
    "L png, a grey": lambda a: saved(GREY, "png", transparency=int(PIXELS[0, 0, 0]) if a is GLASS else 1),
    "1 png, white": lambda a: saved(
        Image.fromarray(np.where(GLASS > 254 if a is ALPHA else GLASS > 0, 0, 255).astype("u1")).convert("1"),
        "png",
        transparency=255 if a is GLASS else 0,
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_every_kind_of_transparency_is_refused(kind: str) -> None:
    shape = PIXELS.shape if kind.startswith(("RGB", "pal")) else (*PIXELS.shape[:2], 1)
    if kind != "1 png, white":
        assert "has transparent pixels; flatten it" in refusal(TRANSPARENT[kind](GLASS), shape)
        decoded(TRANSPARENT[kind](ALPHA), shape)
    else:
        black = Image.new("1", (16, 24))
        assert "has transparent pixels" in refusal(saved(black, "png", transparency=0), shape)
        decoded(saved(black, "png", transparency=255), shape)


def test_what_a_gif_does_not_draw_is_transparent() -> None:
    assert "has transparent pixels" in refusal(partial_gif(), (30, 20, 3))
    decoded(saved(PALETTE, "gif"))


# --- more than a file shows -------------------------------------------------------------------------------------------

OTHER = Image.fromarray(255 - PIXELS)


@pytest.mark.parametrize("kind, many", [("gif", "frames"), ("png", "frames"), ("webp", "frames"), ("tiff", "pages")])
def test_several_frames_or_pages_are_refused(kind: str, many: str) -> None:
    content = saved(IMAGE, kind, save_all=True, append_images=[OTHER])
    assert f"has several {many}; save each as a file of its own" in refusal(content)
    one = saved(IMAGE, kind, save_all=True)
    assert decoded(one).shape == PIXELS.shape


def test_of_a_phone_s_mpo_the_picture_is_taken() -> None:
    content = saved(IMAGE, "mpo", save_all=True, append_images=[OTHER], quality=100, subsampling=0)
    assert np.abs(decoded(content).astype(int) - PIXELS).max() <= 3


def tiff(samples: int, bits: int, kind: int = 1, photometric: int = 2, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed TIFF of 4 x 3 pixels."""
    data = bytes(12 * samples * bits // 8)
    entries: dict[int, tuple[int, list[int]]] = {
        256: (3, [4]),
        257: (3, [3]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8]),
        277: (3, [samples]),
        278: (3, [3]),
        279: (4, [len(data)]),
        **({338: (3, list(extra))} if extra else {}),
        339: (3, [kind] * samples),
    }
    end = 8 + len(data)
    after = end + 2 + 12 * len(entries) + 4
    table, more = struct.pack("<H", len(entries)), b""
    for tag, (code, values) in entries.items():
        packed = struct.pack(f"<{len(values)}{'H' if code == 3 else 'I'}", *values)
        if len(packed) > 4:
            where, more = struct.pack("<I", after + len(more)), more + packed
        else:
            where = packed.ljust(4, b"\0")
        table += struct.pack("<HHI", tag, code, len(values)) + where
    return b"II*\0" + struct.pack("<I", end) + data + table + bytes(4) + more


def deep_png(colour: int, samples: int) -> bytes:
    rows = zlib.compress(b"".join(b"\0" + bytes(range(1, 2 * 4 * samples + 1)) for _ in range(3)))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, colour, 0, 0, 0)),
        (b"IDAT", rows),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


DEEP = {
    "16-bit RGB png": deep_png(2, 3),
    "16-bit RGBA png": deep_png(6, 4),
    "16-bit grey png": deep_png(0, 1),
    "16-bit grey and alpha png": deep_png(4, 2),
    "16-bit RGB tiff": tiff(3, 16),
    "16-bit RGBA tiff": tiff(4, 16, extra=(2,)),
    "16-bit CMYK tiff": tiff(4, 16, photometric=5),
    "16-bit grey tiff": tiff(1, 16, photometric=1),
    "float tiff": tiff(1, 32, kind=3, photometric=1),
    "float RGB tiff": tiff(3, 32, kind=3),
    "32-bit grey tiff": tiff(1, 32, photometric=1),
    "signed tiff": tiff(1, 8, kind=2, photometric=1),
    "16-bit RGB ppm": b"P6 4 3 65535\n" + bytes(72),
    "16-bit grey pgm": b"P5 4 3 65535\n" + bytes(24),
    "plain ppm of 1000 levels": b"P3 4 3 1000\n" + b"999 " * 36,
    "four channels in a tiff": tiff(4, 8, extra=(0,)),
    "five channels in a tiff": tiff(5, 8, extra=(0, 0)),
    "two channels in a tiff": tiff(2, 8, photometric=1, extra=(0,)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_what_does_not_fit_into_8_bits_and_three_channels_is_refused(kind: str) -> None:
    content = DEEP[kind]
    for shape in ((3, 4, 3), (3, 4, 1)):
        found: Any
        try:
            found = decode_image("a file", content, Recipe(), shape)  # type: ignore[arg-type]
        except UserError as error:
            found = error
        assert isinstance(found, UserError | Unreadable), found
        if isinstance(found, UserError):
            assert "convert it" in str(found)


@pytest.mark.parametrize(
    "content, channels, value",
    [
        (tiff(3, 8), 3, 0),
        (tiff(1, 8, photometric=1), 1, 0),
        (tiff(4, 8, photometric=5), 3, 255),
        (b"P6 4 3 100\n" + bytes([100]) * 36, 3, 255),
        (b"P5 4 3 255\n" + bytes([7]) * 12, 1, 7),
        (saved(Image.new("RGB", (4, 3), (7, 7, 7)), "bmp"), 3, 7),
        (saved(Image.new("1", (4, 3), 1), "png"), 1, 255),
    ],
)
def test_eight_bits_and_less_are_read(content: bytes, channels: int, value: int) -> None:
    assert (decoded(content, (3, 4, channels)) == value).all()


@pytest.mark.parametrize("kind", ["eps", "ico", "pcx", "tga", "jpeg2000"])
def test_formats_beyond_those_of_the_names_are_no_images(kind: str) -> None:
    """Of an EPS Pillow would have Ghostscript make a picture."""
    content = saved(IMAGE, kind)
    assert isinstance(decode_image("a file.png", content, Recipe(), PIXELS.shape), Unreadable)
