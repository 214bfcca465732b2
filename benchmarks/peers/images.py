"""The images that are sent, and the masks that must come back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from app.imaging import Array, decode, encode_rgb
from benchmarks.peers.pipeline import MAX_PIXELS, Pipeline

SAMPLE = Path(__file__).parents[2] / "app/web/sample.jpg"
SHIFTS = range(0, 480, 60)  # pixels
# All of them as large as `benchmarks.emulated` lets them be.
TINY_SIZES = ((8, 8), (8, 16), (16, 8), (8, 12))  # height, width


@dataclass(frozen=True)
class Bodies:
    """Files to send in turn, and the file that answers each."""

    media_type: str
    images: list[str]
    masks: list[str]


def streets(folder: Path, pipeline: Pipeline) -> Bodies:
    """JPEGs of 480x360: the sample picture, shifted around."""
    sample = decode(SAMPLE.read_bytes(), MAX_PIXELS)
    pictures = [encode_rgb(np.roll(sample, shift, axis=1), "JPEG") for shift in SHIFTS]
    return _written(folder, "street", "image/jpeg", pictures, pipeline)


def tiny(folder: Path, sizes: int, pipeline: Pipeline) -> Bodies:
    """PNGs of so many sizes, too small to cost anything to decode."""
    pictures = [encode_rgb(np.zeros((*size, 3), np.uint8)) for size in TINY_SIZES[:sizes]]
    return _written(folder, f"tiny-{sizes}", "image/png", pictures, pipeline)


def many_sizes(folder: Path, count: int, draws: int, seed: int) -> Bodies:
    """JPEGs of so many sizes up to 640x480, drawn at random; what comes back is anyone's guess."""
    generator, sample = random.Random(seed), Image.open(SAMPLE)
    sizes: set[tuple[int, int]] = set()
    while len(sizes) < count:
        sizes.add((generator.randint(160, 640), generator.randint(120, 480)))
    files = [folder / f"size-{width}x{height}.jpg" for width, height in sorted(sizes)]
    for size, file in zip(sorted(sizes), files, strict=True):
        sample.resize(size).save(file, quality=80)
    images = [str(generator.choice(files)) for _ in range(draws)]
    return Bodies("image/jpeg", images, images)


def mask_of(body: bytes, pipeline: Pipeline) -> bytes:
    [mask] = pipeline.predict([pipeline.decode(body)])
    return pipeline.encode(mask)


def differing_pixels(one: bytes, other: bytes) -> int:
    """Pixels in which two masks differ; all of them if their sizes do."""
    masks: list[Array] = [decode(png, MAX_PIXELS)[:, :, 0] for png in (one, other)]
    return masks[0].size if masks[0].shape != masks[1].shape else int((masks[0] != masks[1]).sum())


def _written(folder: Path, name: str, media_type: str, pictures: Sequence[bytes], pipeline: Pipeline) -> Bodies:
    images, masks = [], []
    for index, picture in enumerate(pictures):
        image, mask = folder / f"{name}-{index}", folder / f"{name}-{index}-mask"
        image.write_bytes(picture)
        mask.write_bytes(mask_of(picture, pipeline))
        images.append(str(image))
        masks.append(str(mask))
    return Bodies(media_type, images, masks)
