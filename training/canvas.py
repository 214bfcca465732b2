"""A camera in the world and the canvas behind it, where a picture and its labels are drawn together.

World coordinates are metres seen from a car's windscreen: x to the right, y up from the road, z ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
Flat = tuple[float, float]
Point = tuple[float, float, float]
Floats = NDArray[np.float32]

# The picture is drawn this much larger and averaged down, which smooths its edges.
SUPERSAMPLING = 2
HAZE_DISTANCE, NEAREST = 170.0, 1.0


def shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


@dataclass(frozen=True)
class Camera:
    """Pinhole camera; vanishing point and focal length in pixels of the enlarged picture, height in metres."""

    vanish_x: float
    horizon: float
    focal: float
    height: float

    def project(self, point: Point) -> Flat:
        """World point (metres) to picture coordinates (pixels)."""
        scale = self.focal / max(point[2], NEAREST)
        return self.vanish_x + point[0] * scale, self.horizon + (self.height - point[1]) * scale


class Canvas:
    """The enlarged picture and its labels, drawn together; colours fade into haze with distance."""

    def __init__(self, sky: Image.Image, label: int, camera: Camera, haze: Colour) -> None:
        """
        Args:
            sky: RGB picture to draw on
            label: of every pixel that nothing is drawn on
            haze: what colours fade into
        """
        self.image, self.labels = sky, Image.new("L", sky.size, label)
        self.camera, self.haze = camera, haze
        self._paint, self._label = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.labels)

    def _faded(self, colour: Colour, z: float, alpha: int = 255) -> tuple[int, ...]:
        keep = math.exp(-z / HAZE_DISTANCE)
        return *(min(int(c * keep + h * (1 - keep)), 255) for c, h in zip(colour, self.haze, strict=True)), alpha

    def fill(self, points: Sequence[Point], colour: Colour, label: int, alpha: int = 255) -> None:
        """Fill a polygon of world points; alpha 0 leaves the picture as it is and writes labels only."""
        outline = [self.camera.project(point) for point in points]
        self._paint.polygon(outline, fill=self._faded(colour, points[0][2], alpha))
        self._label.polygon(outline, fill=label)

    def face(self, origin: Point, outline: Sequence[Flat], colour: Colour, label: int) -> None:
        """Fill a polygon that faces the camera; its outline is in metres from the origin."""
        self.fill([(origin[0] + dx, origin[1] + dy, origin[2]) for dx, dy in outline], colour, label)

    def box(self, origin: Point, xs: Flat, ys: Flat, colour: Colour, label: int) -> None:
        """Fill a rectangle that faces the camera, in metres from the origin."""
        self.face(origin, [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])], colour, label)

    def floor(self, xs: Flat, zs: Flat, colour: Colour, label: int, alpha: int = 255) -> None:
        """Fill a rectangle on the ground."""
        self.fill([(xs[0], 0, zs[1]), (xs[1], 0, zs[1]), (xs[1], 0, zs[0]), (xs[0], 0, zs[0])], colour, label, alpha)

    def wall(self, x: float, zs: Flat, ys: Flat, colour: Colour, label: int) -> None:
        """Fill an upright rectangle along the street."""
        points = [(x, ys[0], zs[0]), (x, ys[0], zs[1]), (x, ys[1], zs[1]), (x, ys[1], zs[0])]
        self.fill(points, colour, label)

    def disc(self, centre: Point, radii: Flat, colour: Colour, label: int) -> None:
        """Fill an ellipse that faces the camera; centre and radii in metres."""
        x, y = self.camera.project(centre)
        scale = self.camera.focal / max(centre[2], NEAREST)
        box = (x - radii[0] * scale, y - radii[1] * scale, x + radii[0] * scale, y + radii[1] * scale)
        self._paint.ellipse(box, fill=self._faded(colour, centre[2]))
        self._label.ellipse(box, fill=label)

    def line(self, points: Sequence[Point], thickness: float, colour: Colour, label: int) -> None:
        """Draw a line through world points, its thickness in metres at the first point."""
        path = [self.camera.project(point) for point in points]
        width = max(round(thickness * self.camera.focal / max(points[0][2], NEAREST)), SUPERSAMPLING)
        self._paint.line(path, fill=self._faded(colour, points[0][2]), width=width, joint="curve")
        self._label.line(path, fill=label, width=width, joint="curve")


def noise(rng: np.random.Generator, width: int, height: int, cell: float) -> Floats:
    """Smooth noise around 0 as float32 [height, width], with features about `cell` pixels large."""
    coarse = rng.standard_normal((max(int(height / cell), 2), max(int(width / cell), 2)), np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def develop(rng: np.random.Generator, image: Image.Image, texture: Floats) -> NDArray[np.uint8]:
    """What a camcorder does: RGB picture to uint8 [H, W, 3] with blur, vignette, exposure and noise.

    Args:
        texture: [H, W], by how much of itself each pixel is lighter (above 0) or darker (below)
    """
    width, height = image.size
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = 1 - np.float32(rng.uniform(0.05, 0.2)) * (across**2 + down**2) / 2
    light = (1 + texture) * vignette * np.float32(rng.uniform(0.75, 1.12))
    textured = (np.asarray(image, np.float32) * light[..., None]).clip(0, 255).astype(np.uint8)
    soft = Image.fromarray(textured).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8) * width / 480))
    contrast = np.float32(rng.uniform(0.85, 1.2)) * rng.uniform(0.97, 1.03, 3).astype(np.float32)
    pixels = (np.asarray(soft, np.float32) - 110) * contrast + 110
    pixels += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1.5, 4.0))
    developed: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return developed
