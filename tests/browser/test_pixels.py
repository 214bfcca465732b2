"""Class ids reach the page as the server has them, whatever a browser makes of pixels."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.browser.conftest import Opened, choose

# As browsers do that hide who somebody is.
NOISE = """CanvasRenderingContext2D.prototype.getImageData = (x, y, width, height) => {
  const image = new ImageData(width, height);
  image.data.forEach((_, index) => { image.data[index] = 256 * Math.random(); });
  return image;
}"""
IDS_OF = """async (encoded) => {
  const { readGray } = await import('/web/png.js');
  const { width, height, data } = await readGray(Uint8Array.from(atob(encoded), character => character.charCodeAt(0)));
  return [width, height, [...data]];
}"""
PREDICTORS = [  # of a PNG's filters, from what is to the left, above, and in the corner of both
    lambda left, above, corner: 0,
    lambda left, above, corner: left,
    lambda left, above, corner: above,
    lambda left, above, corner: (left + above) // 2,
    lambda left, above, corner: min((left, above, corner), key=lambda one: abs(left + above - corner - one)),
]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(ids: NDArray[np.uint8]) -> bytes:
    """With each filter in turn, and its data in three chunks."""
    height, width = ids.shape
    around = np.pad(ids.astype(int), ((1, 0), (1, 0)))
    lines = bytearray()
    for y in range(height):
        predict = PREDICTORS[y % len(PREDICTORS)]
        lines.append(y % len(PREDICTORS))
        for x in range(width):
            expected = predict(int(around[y + 1, x]), int(around[y, x + 1]), int(around[y, x]))
            lines.append((int(ids[y, x]) - expected) % 256)
    packed = zlib.compress(bytes(lines))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [packed[:50], packed[50:51], packed[51:]]
    body = b"".join(chunk(b"IDAT", part) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_all_filters_of_png(opened: Opened) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (23, 17), np.uint8)
    ids[8:16] = 3  # where predictors tie
    encoded = base64.b64encode(png_of(ids)).decode()
    assert opened().evaluate(IDS_OF, encoded) == [17, 23, ids.ravel().tolist()]


def test_a_browser_that_gives_noise_for_pixels(opened: Opened, api: httpx.Client) -> None:
    page = opened()
    page.add_init_script(NOISE)
    page.reload()
    result = choose(page)
    mask = api.get(f"/results/{result}", params={"format": "json"}).json()["segmentation_mask"]
    read = "async ([mask, size]) => [...(await (await import('/web/picture.js')).readMask(mask, size)).ids]"
    ids = page.evaluate(read, [mask, {"width": 480, "height": 360}])
    areas = api.get(f"/results/{result}", params={"format": "json"}).json()["predictions"]
    assert {one["class_id"]: one["area"] for one in areas} == {id: ids.count(id) for id in set(ids)}
    assert page.locator("#reads-class").inner_text() in {one["class"] for one in areas}


def test_masks_larger_than_what_is_shown(opened: Opened) -> None:
    ids = np.random.default_rng(1).integers(0, 11, (1500, 3000), np.uint8)
    page = opened()
    encoded = base64.b64encode(png_of(ids)).decode()
    read = """async ([mask, size]) => {
      const { width, height, ids } = await (await import('/web/picture.js')).readMask(mask, size);
      return [width, height, [...ids.subarray(0, width)], [...ids.subarray(-width)]];
    }"""
    width, height, first, last = page.evaluate(read, [encoded, {"width": 3000, "height": 1500}])
    assert (width, height) == (2000, 1000)
    columns = ((np.arange(2000) + 0.5) * 1.5).astype(int)
    assert first == ids[0, columns].tolist()
    assert last == ids[1499, columns].tolist()


def test_cells_smaller_than_pixels_have_their_class(opened: Opened, tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (120, 160, 220)).save(tmp_path / "tiny.png")
    page = opened()
    choose(page, tmp_path / "tiny.png")
    shares = page.locator("#reads-classes b").all_inner_texts()
    assert 99 < sum(float(share.split()[0]) for share in shares) < 101
