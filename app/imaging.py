"""Bytes to RGB arrays, within limits, and arrays back to bytes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, TiffImagePlugin, UnidentifiedImageError

from app.errors import MalformedBody, TooLarge, UnsupportedImage

Array = NDArray[np.uint8]
ImageFormat = Literal["PNG", "JPEG", "WEBP"]

MAX_SIDE = 65_535  # beyond it one row of an image is as much work as a picture
# Listed, so that no exotic parser sees foreign bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
# Of what is written, and of JPEGs that are read. WebP's sides have 14 bits; JPEG's have 16, and libjpeg leaves out the
# last few lengths.
LONGEST_SIDE: dict[ImageFormat, int] = {"PNG": MAX_SIDE, "JPEG": 65_500, "WEBP": 16_383}

# What Pillow's parsers raise on broken data.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(struct.error, zlib.error),
)
# What turns an image upright, by EXIF orientation. Pillow's own `exif_transpose` rewrites all other tags too,
# and gives up on the turn if one of them is broken.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Ours is the limit that counts: it is checked on the header, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow loads the rarer parsers late, and not at all when formats are listed.
Image.init()


def decode(data: bytes, max_pixels: int) -> Array:
    """The first frame of an image file as RGB, turned upright by its EXIF orientation; alpha is dropped.

    Returns:
        [H, W, 3] uint8

    Raises:
        UnsupportedImage: not a format that we read, or values whose range nobody knows
        TooLarge: the header announces more than `max_pixels`, or a side beyond what we, or its format, read
        MalformedBody: the format is right, the data is broken or truncated
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnsupportedImage(
            f"the {len(data)} bytes are no image that we read ({', '.join(FORMATS)})", actual=len(data)
        ) from None
    except BROKEN as exc:
        raise MalformedBody(f"the image's header is broken: {exc}") from exc
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"the image is {width}x{height}, {width * height} pixels; the limit is {max_pixels}",
            limit=max_pixels,
            actual=width * height,
        )
    longest = LONGEST_SIDE["JPEG"] if image.format in ("JPEG", "MPO") else MAX_SIDE  # libjpeg reads no longer ones
    if max(width, height) > longest:
        raise TooLarge(
            f"the image is {width}x{height}; the limit of a side is {longest}",
            limit=longest,
            actual=max(width, height),
        )
    try:
        image.load()
    except BROKEN as exc:
        raise MalformedBody(f"the {image.format} image is broken or truncated: {exc}") from exc
    grays = _grays(image)  # its tags are lost when it is turned
    return np.array(_to_rgb(_upright(image), grays))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except BROKEN:
        # The picture is whole; only the note on how the camera was held can't be read.
        return image
    turn = UPRIGHT.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


class _Grays(NamedTuple):
    """What the values of a picture wider than a byte mean.

    Attributes:
        excess: bits beyond a byte, the sign aside
        inverted: 0 is white; of bytes Pillow has seen to that itself
    """

    excess: int
    inverted: bool = False


def _grays(image: Image.Image) -> _Grays:
    """
    Raises:
        UnsupportedImage: its values say nothing of what is black and what is white
    """
    if image.mode == "F":
        raise UnsupportedImage("the image holds floating-point values, whose range is anyone's guess")
    if not image.mode.startswith("I"):
        return _Grays(0)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits, is_signed = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0], tags.get(TiffImagePlugin.SAMPLEFORMAT) == (2,)
    if bits > 16:
        raise UnsupportedImage(f"the image holds {bits}-bit values, whose range is anyone's guess")
    return _Grays(int(bits) - 8 - is_signed, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)


def _to_rgb(image: Image.Image, grays: _Grays) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip the values at 255, and show all but the darkest pixels white.
        values = np.array(image).astype(np.int64)
        levels = (values >> grays.excess).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(255 - levels if grays.inverted else levels)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy


def encode_ids(mask: Array) -> bytes:
    """A grayscale PNG whose values are the class ids: what every library reads right."""
    return encode(Image.fromarray(mask), "PNG")


def encode_palette(mask: Array, palette: Array) -> bytes:
    """A PNG with the ids as indices and the classes' colours [K, 3] as its palette."""
    image = Image.fromarray(mask).convert("P")
    # `convert` fills the palette with grays and may reorder nothing, since ids are indices already.
    image.putpalette(palette.tobytes())
    return encode(image, "PNG")


def encode_rgb(image: Array, image_format: ImageFormat = "PNG") -> bytes:
    return encode(Image.fromarray(image), image_format)


def encode(image: Image.Image, image_format: ImageFormat) -> bytes:
    # Run lengths and Huffman codes alone: of masks they leave less than a search for repetitions at level 6, of
    # colours, which are filtered, as much, in a fraction of the time.
    png = {"compress_level": 1, "compress_type": zlib.Z_RLE}
    webp = {"quality": 90, "method": 2}  # beyond, files are no smaller and take more than twice as long
    options: dict[str, Any] = {"PNG": png, "JPEG": {"quality": 90}, "WEBP": webp}[image_format]
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def colored(indices: Array, palette: Array) -> Array:
    """`palette[indices]`, many times faster: indices [H, W], colours [K, 3] to [H, W, 3]."""
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    return np.array(image.convert("RGB"))


def blend(image: Array, colors: Array, alpha: float) -> Array:
    """Colours [H, W, 3] over an image [H, W, 3]; alpha 0 shows the image alone, 1 the colours alone."""
    mixed = Image.blend(Image.fromarray(image), Image.fromarray(colors), alpha)
    return np.array(mixed)


def mark(image: Array, point: tuple[int, int]) -> Array:
    """A copy of an image with a ring around a point (x, y), white within black to show on any ground."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    radius = max(3, round(max(picture.size) / 120))
    for size, color, width in ((radius + 1, "black", 4), (radius, "white", 2)):
        draw.circle(point, size, outline=color, width=width)
    return np.array(picture)


def resize_map(values: NDArray[np.float32], size: tuple[int, int], is_smooth: bool = True) -> NDArray[np.float32]:
    """Resize a map of numbers [h, w] to (height, width): bilinearly, or each pixel from the cell it lies in."""
    if is_smooth:
        return np.array(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    # Pillow adds up steps: many a pixel whose middle lies on a border would be in another cell than /attention says.
    rows, columns = (
        ((np.arange(pixels) + 0.5) * cells / pixels).astype(np.int64)
        for cells, pixels in zip(values.shape, size, strict=True)
    )
    resized: NDArray[np.float32] = values[rows][:, columns]
    return resized
