"""TIFFs of whole numbers wider than a byte, as cameras and microscopes write them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from app.errors import UnsupportedImage
from app.imaging import decode

UNSIGNED, SIGNED = 1, 2


def tiff(
    values: list[int],
    bits: int,
    sample_format: int | None = UNSIGNED,
    order: str = "<",
    orientation: int = 1,
    black_is_zero: int = 1,
) -> bytes:
    """One row of gray values in one strip behind its directory; `bits` a sample, packed."""
    high_first = order == ">" or bits == 12  # odd widths are packed so in either order
    packed = "".join(f"{value & ((1 << bits) - 1):0{bits}b}" for value in values)
    strip = int(packed, 2).to_bytes(len(packed) // 8, "big")
    if not high_first:
        each = bits // 8
        strip = b"".join(strip[at : at + each][::-1] for at in range(0, len(strip), each))
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: black_is_zero, 273: 0, 274: orientation, 277: 1, 278: 1}
    tags |= {279: len(strip)} if sample_format is None else {279: len(strip), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + strip


def row(data: bytes) -> list[int]:
    decoded = decode(data, 100)
    assert (decoded == decoded[..., :1]).all()
    values: list[int] = decoded[0, :, 0].tolist()
    return values


@pytest.mark.parametrize("sample_format", [None, UNSIGNED])
def test_twelve_bits(sample_format: int | None) -> None:
    assert row(tiff([0, 15, 16, 2048, 4095, 4080], 12, sample_format)) == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits(order: str) -> None:
    assert row(tiff([0, 255, 256, 0x7FFF, 0x8000, 0xFFFF], 16, UNSIGNED, order)) == [0, 0, 1, 127, 128, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_with_a_sign_are_as_bright_and_below_zero_black(order: str) -> None:
    assert row(tiff([-32768, -1, 0, 128, 0x4000, 0x7FFF], 16, SIGNED, order)) == [0, 0, 0, 1, 128, 255]


@pytest.mark.parametrize(("sample_format", "order"), [(UNSIGNED, "<"), (SIGNED, "<"), (SIGNED, ">")])
def test_thirty_two_bits_are_refused(sample_format: int, order: str) -> None:
    for values in ([0, 255], [0, (1 << 32) - 1]):
        with pytest.raises(UnsupportedImage, match="32-bit"):
            decode(tiff(values, 32, sample_format, order), 100)


def test_what_pillow_writes_of_them_is_refused_too() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(6, dtype=np.int32).reshape(2, 3)).save(buffer, "TIFF")
    with pytest.raises(UnsupportedImage, match="32-bit"):
        decode(buffer.getvalue(), 100)


def test_one_that_is_turned_is_read_alike() -> None:
    assert row(tiff([0, 2048, 4095, 16], 12, orientation=3)) == [1, 255, 128, 0]


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (16, 0xFFFF)])
def test_zero_may_be_white(bits: int, white: int) -> None:
    assert row(tiff([0, white], bits, black_is_zero=0)) == [255, 0]
