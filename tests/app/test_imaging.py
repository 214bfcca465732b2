from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from app.errors import MalformedBody, ServiceError, TooLarge, UnsupportedImage
from app.imaging import (
    MAX_SIDE,
    ImageFormat,
    blend,
    colored,
    decode,
    encode_ids,
    encode_palette,
    encode_rgb,
    mark,
    resize_map,
)
from models.attention_maps import cell_of

Array = NDArray[np.uint8]

PLENTY = 1_000_000
ORIENTATION = 0x0112
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photograph(width: int = 32, height: int = 24) -> Array:
    """Smooth, so that lossy formats keep it; no two corners alike, so that no turn goes unseen."""
    y, x = np.mgrid[0:height, 0:width]
    planes = x * 200 // width + 20, y * 200 // height + 20, (x + y) * 100 // (width + height) + 20
    return np.stack(planes, axis=-1).astype(np.uint8)


def noise(width: int = 32, height: int = 24) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def difference(one: Array, other: Array) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# --- formats


@pytest.mark.parametrize("image_format", list(LOSSLESS))
def test_lossless_formats_are_read_exactly(image_format: str) -> None:
    decoded = decode(saved(Image.fromarray(noise()), image_format, **LOSSLESS[image_format]), PLENTY)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, noise())


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiffs_are_read_exactly(compression: str) -> None:
    assert np.array_equal(decode(saved(Image.fromarray(noise()), "TIFF", compression=compression), PLENTY), noise())


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_are_read_closely(options: dict[str, Any]) -> None:
    data = saved(Image.fromarray(photograph()), "JPEG", quality=95, **options)
    assert difference(decode(data, PLENTY), photograph()) <= 12


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    colors = Image.new("RGB", (32, 16), "red")
    colors.paste("white", (16, 0, 32, 16))
    decoded = decode(saved(colors.convert("CMYK"), "JPEG", quality=95), PLENTY)
    assert difference(decoded, np.array(colors)) <= 12


def test_a_gray_image_becomes_three_equal_channels() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode(saved(Image.fromarray(gray), "PNG"), PLENTY)
    assert np.array_equal(decoded, np.repeat(gray[..., None], 3, axis=2))


def test_a_one_bit_image_is_black_and_white() -> None:
    bits = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    assert np.array_equal(decode(saved(bits, "PNG"), PLENTY)[..., 0], np.eye(8) * 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_not_blended(mode: str) -> None:
    alpha = Image.fromarray(noise()[..., 0])
    image = Image.fromarray(noise()).convert(mode)
    image.putalpha(alpha)
    without = np.array(image.convert(mode.removesuffix("A")).convert("RGB"))
    assert np.array_equal(decode(saved(image, "PNG"), PLENTY), without)


def test_a_palette_with_transparency_gives_its_colours() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1] * 4)
    decoded = decode(saved(image, "PNG", transparency=0), PLENTY)
    assert decoded[0].tolist() == [[255, 0, 0], [0, 255, 0]] * 2


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_lose_the_lower_eight(image_format: str) -> None:
    values = np.array([[0, 255, 256, 511], [0x1234, 0x7FFF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    decoded = decode(saved(Image.fromarray(values), image_format), PLENTY)
    assert np.array_equal(decoded[..., 0], values >> 8)
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_big_endian_sixteen_bits_are_read_too() -> None:
    values = np.array([[0x1234, 0xFFFF]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 1), values.tobytes())
    assert decode(saved(image, "TIFF"), PLENTY)[..., 0].tolist() == [[0x12, 0xFF]]


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(UnsupportedImage, match="floating-point"):
        decode(saved(Image.new("F", (4, 4), 0.5), "TIFF"), PLENTY)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_of_tiff_are_converted(mode: str) -> None:
    image = Image.new("RGB", (4, 4), (200, 40, 40))
    if mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", mode)
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
    else:
        converted = image.convert(mode)
    assert difference(decode(saved(converted, "TIFF"), PLENTY), np.array(image)) <= 8


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(image_format: str) -> None:
    first, second = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    options = LOSSLESS.get(image_format, {})
    decoded = decode(saved(first, image_format, save_all=True, append_images=[second], **options), PLENTY)
    assert np.array_equal(decoded, np.array(first))


def test_the_first_picture_of_an_mpo_counts() -> None:
    first, second = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    decoded = decode(saved(first, "MPO", save_all=True, append_images=[second]), PLENTY)
    assert difference(decoded, np.array(first)) <= 2


@pytest.mark.parametrize("image_format", [*LOSSLESS, "JPEG", "GIF"])
def test_a_single_pixel_is_an_image(image_format: str) -> None:
    decoded = decode(saved(Image.new("RGB", (1, 1), "white"), image_format), PLENTY)
    assert decoded.tolist() == [[[255, 255, 255]]]


# --- orientation


def held(image: Image.Image, orientation: int) -> Image.Image:
    """What a camera held in this way stores of an upright image (Exif 2.3, table 6)."""
    undo = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_270),
        8: (Image.Transpose.ROTATE_270,),
    }
    for step in undo[orientation]:
        image = image.transpose(step)
    return image


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_however_the_camera_was_held_the_picture_is_upright(image_format: str, orientation: int) -> None:
    stored = held(Image.fromarray(photograph()), orientation)
    data = saved(stored, image_format, exif=exif(orientation), **LOSSLESS.get(image_format, {"quality": 95}))
    assert difference(decode(data, PLENTY), photograph()) <= 12


def test_sixteen_bits_are_turned_too() -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) << 8
    data = saved(held(Image.fromarray(values), 6), "PNG", exif=exif(6))
    assert np.array_equal(decode(data, PLENTY)[..., 0], values >> 8)


def jpeg_with_exif(tiff: bytes) -> bytes:
    """photograph(), 32x24, as a JPEG with these bytes for its EXIF."""
    data = saved(Image.fromarray(photograph()), "JPEG", quality=95)
    segment = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def directory(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Big-endian TIFF directory of (tag, type, count, value)."""
    packed = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + packed + bytes(4)


SIDEWAYS = ORIENTATION, 3, 1, b"\0\x06\0\0"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"garbage",
        b"MM\0*\xff\xff\xff\xff",
        directory(SIDEWAYS)[:12],
        directory((ORIENTATION, 3, 1, b"\0\x09\0\0")),
        directory((ORIENTATION, 2, 4, b"up!\0")),
        directory((ORIENTATION, 3, 0, bytes(4))),
        directory((ORIENTATION, 3, 9999, b"\0\0\0\x08")),
    ],
)
def test_a_broken_orientation_is_ignored(tiff: bytes) -> None:
    assert difference(decode(jpeg_with_exif(tiff), PLENTY), photograph()) <= 12


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_an_exif_that_is_none_is_ignored(image_format: str) -> None:
    """Pillow looks into a JPEG's as it opens it, into these only when it is asked."""
    data = saved(Image.fromarray(noise()), image_format, exif=b"Exif\0\0garbage", **LOSSLESS[image_format])
    assert np.array_equal(decode(data, PLENTY), noise())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(
            (0x010E, 11, 1, b"\x3f\x80\0\0"),
            id="description-is-a-float",
        ),
        pytest.param(
            (0x8825, 9, 1, b"\xff\xff\xff\xff"),
            id="gps-offset-negative",
        ),
        pytest.param(
            (0x011A, 1, 1, b"\xff\0\0\0"),
            id="resolution-is-a-byte",
        ),
        pytest.param((0x011A, 5, 1, b"\0\0\0\x08"), id="sound"),
    ],
)
def test_another_tag_that_is_broken_does_not_matter(other: tuple[int, int, int, bytes]) -> None:
    decoded = decode(jpeg_with_exif(directory(SIDEWAYS, other)), PLENTY)
    assert difference(decoded, np.rot90(photograph(), -1)) <= 12


# --- what is no image, or no longer one


@pytest.mark.parametrize(
    "data",
    [b"", b"a", b"not an image at all", b"ein Bild? nein, Text " * 100, b"%PDF-1.7\n", b"<svg/>", bytes(1000)],
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match=f"the {len(data)} bytes are no image"):
        decode(data, PLENTY)


@pytest.mark.parametrize("image_format", ["ICO", "PPM", "TGA", "PCX"])
def test_formats_that_are_not_listed_are_unsupported(image_format: str) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG, WEBP, BMP, TIFF, GIF"):
        decode(saved(Image.fromarray(noise()), image_format), PLENTY)


FILES = {
    "JPEG": saved(Image.fromarray(noise()), "JPEG", exif=exif(6)),
    "PNG": saved(Image.fromarray(noise()), "PNG", exif=exif(6)),
    "WEBP": saved(Image.fromarray(noise()), "WEBP", exif=exif(6)),
    "WEBP lossless": saved(Image.fromarray(noise()), "WEBP", lossless=True),
    "BMP": saved(Image.fromarray(noise()), "BMP"),
    "TIFF": saved(Image.fromarray(noise()), "TIFF", exif=exif(6)),
    "TIFF lzw": saved(Image.fromarray(noise()), "TIFF", compression="tiff_lzw"),
    "GIF": saved(Image.fromarray(noise()), "GIF"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kept", [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("name", list(FILES))
def test_a_truncated_file_is_never_taken_for_whole(name: str, kept: float) -> None:
    data = FILES[name]
    with pytest.raises((MalformedBody, UnsupportedImage)):
        decode(data[: int(len(data) * kept)], PLENTY)


def test_a_file_cut_within_its_pixels_is_malformed() -> None:
    with pytest.raises(MalformedBody, match="JPEG image is broken or truncated"):
        decode(FILES["JPEG"][:-100], PLENTY)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", list(FILES))
def test_flipped_bytes_end_in_an_image_or_an_error_of_ours(name: str) -> None:
    dice = random.Random(name)
    for _ in range(150):
        data = bytearray(FILES[name])
        # Headers are short; half of the hits go there.
        reach = dice.choice([len(data), 100])
        for _ in range(dice.choice([1, 1, 2, 8])):
            data[dice.randrange(reach)] = dice.choice([0, 255, dice.randrange(256)])
        try:
            decoded = decode(bytes(data), PLENTY)
        except ServiceError:
            continue
        assert decoded.dtype == np.uint8
        assert decoded.ndim == 3


def test_an_offset_beyond_all_files_is_malformed() -> None:
    assert decode(bigtiff_with_offset(0), PLENTY).tolist() == [[[ord("I")] * 3]]
    with pytest.raises(MalformedBody):
        decode(bigtiff_with_offset(1 << 63), PLENTY)


def bigtiff_with_offset(offset: int) -> bytes:
    """A 1x1 gray BigTIFF whose one strip starts there."""
    short, long8 = 3, 16
    tags = [
        (256, short, 1),
        (257, short, 1),
        (258, short, 8),
        (259, short, 1),
        (262, short, 1),
        (273, long8, offset),
        (277, short, 1),
        (278, short, 1),
        (279, short, 1),
    ]
    packed = b"".join(
        struct.pack("<HHQ", tag, kind, 1) + struct.pack("<Q" if kind == long8 else "<H6x", value)
        for tag, kind, value in tags
    )
    return b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, len(tags)) + packed + bytes(8)


# --- limits


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces this size and holds not one pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def test_too_large_is_told_by_the_header_alone() -> None:
    with pytest.raises(TooLarge, match="10000x10000, 100000000 pixels; the limit is 40000000") as caught:
        decode(png_header(10_000, 10_000), 40_000_000)
    assert (caught.value.limit, caught.value.actual) == (40_000_000, 100_000_000)
    with pytest.raises(MalformedBody):
        decode(png_header(10, 10), 40_000_000)


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000)])
def test_a_side_has_a_limit_of_its_own(size: tuple[int, int]) -> None:
    with pytest.raises(TooLarge, match=f"{size[0]}x{size[1]}; the limit of a side is {MAX_SIDE}") as caught:
        decode(png_header(*size), PLENTY)
    assert (caught.value.limit, caught.value.actual) == (MAX_SIDE, 70_000)
    assert decode(saved(Image.new("1", (MAX_SIDE, 1)), "PNG"), PLENTY).shape == (1, MAX_SIDE, 3)


def test_a_jpeg_s_side_ends_where_its_decoder_does() -> None:
    data = bytearray(saved(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")  # then come its length, its precision, and the height in two bytes
    for height in (65_501, 65_535):
        data[frame + 5 : frame + 7] = height.to_bytes(2, "big")
        with pytest.raises(TooLarge, match=f"8x{height}; the limit of a side is 65500"):
            decode(bytes(data), PLENTY)
    data[frame + 5 : frame + 7] = (65_500).to_bytes(2, "big")
    assert decode(bytes(data), PLENTY).shape == (65_500, 8, 3), "libjpeg makes up the rows that are not there"


def test_the_limit_itself_is_allowed() -> None:
    data = saved(Image.new("RGB", (20, 10)), "PNG")
    assert decode(data, 200).shape == (10, 20, 3)
    with pytest.raises(TooLarge):
        decode(data, 199)


def test_a_file_of_many_pixels_is_large_whatever_its_bytes() -> None:
    bomb = saved(Image.new("1", (7000, 7000)), "PNG")
    assert len(bomb) < 10_000
    with pytest.raises(TooLarge):
        decode(bomb, 40_000_000)


# --- encoding


def test_ids_come_back_from_a_gray_png() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    image = Image.open(io.BytesIO(encode_ids(mask)))
    assert (image.format, image.mode) == ("PNG", "L")
    assert np.array_equal(np.array(image), mask)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 11, 16, 17, 150, 255])
def test_a_palette_png_keeps_ids_and_shows_colours(classes: int) -> None:
    mask = (np.arange(20 * 30) % classes).astype(np.uint8).reshape(20, 30)
    palette = np.random.default_rng(classes).integers(0, 256, (classes, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_palette(mask, palette)))
    assert (image.format, image.mode) == ("PNG", "P")
    assert np.array_equal(np.array(image), mask)
    assert np.array_equal(np.array(image.convert("RGB")), palette[mask])


def test_a_class_without_pixels_keeps_its_place_in_the_palette() -> None:
    mask = np.full((4, 4), 2, dtype=np.uint8)
    palette = np.array([[9, 9, 9], [9, 9, 9], [1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_palette(mask, palette)))
    assert np.array_equal(np.array(image), mask)
    assert image.convert("RGB").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(("image_format", "tolerance"), [("PNG", 0), ("JPEG", 12), ("WEBP", 24)])
def test_colours_come_back(image_format: ImageFormat, tolerance: int) -> None:
    data = encode_rgb(photograph(), image_format)
    assert Image.open(io.BytesIO(data)).format == image_format
    assert difference(decode(data, PLENTY), photograph()) <= tolerance


# --- drawing


def test_indices_in_colours() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (200, 3), dtype=np.uint8)
    indices = np.arange(200, dtype=np.uint8).reshape(10, 20)
    np.testing.assert_array_equal(colored(indices, palette), palette[indices])


def test_blend_goes_from_the_image_to_the_colours() -> None:
    colors = np.full_like(photograph(), 200)
    assert np.array_equal(blend(photograph(), colors, 0.0), photograph())
    assert np.array_equal(blend(photograph(), colors, 1.0), colors)
    middle = (photograph().astype(float) + colors) / 2
    assert np.abs(blend(photograph(), colors, 0.5) - middle).max() <= 1


@pytest.mark.parametrize("ground", [0, 255])
@pytest.mark.parametrize("point", [(50, 40), (0, 0), (99, 79)])
def test_a_mark_is_a_ring_around_its_point(ground: int, point: tuple[int, int]) -> None:
    image = np.full((80, 100, 3), ground, dtype=np.uint8)
    marked = mark(image, point)
    assert (image == ground).all(), "a copy is drawn on"
    rows, columns = np.nonzero((marked != ground).any(axis=-1))
    assert len(rows) > 0
    assert np.hypot(columns - point[0], rows - point[1]).max() <= 6
    assert (marked[point[1], point[0]] == ground).all(), "the point itself stays visible"


def test_a_map_is_resized_between_its_values() -> None:
    values = np.array([[0.0, 1.0], [2.0, 3.0]], dtype=np.float32)
    resized = resize_map(values, (6, 8))
    assert resized.shape == (6, 8)
    assert resized.dtype == np.float32
    assert (resized[0, 0], resized[-1, -1]) == (0.0, 3.0)
    assert (np.diff(resized, axis=0) >= 0).all()
    assert (np.diff(resized, axis=1) >= 0).all()
    assert resized.mean() == pytest.approx(1.5)
    assert np.array_equal(resize_map(values, (2, 2)), values)


@pytest.mark.parametrize("size", [(300, 200), (7, 5), (45, 60), (101, 3)])
@pytest.mark.parametrize("grid", [(40, 27), (2, 2), (30, 40)])
def test_without_smoothing_each_pixel_is_of_the_cell_it_lies_in(size: tuple[int, int], grid: tuple[int, int]) -> None:
    values = np.arange(grid[0] * grid[1], dtype=np.float32).reshape(grid)
    rows = [cell_of(0, y, size[1], size[0], grid)[0] for y in range(size[0])]
    columns = [cell_of(x, 0, size[1], size[0], grid)[1] for x in range(size[1])]
    assert np.array_equal(resize_map(values, size, is_smooth=False), values[np.ix_(rows, columns)])
