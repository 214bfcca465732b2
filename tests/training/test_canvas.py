"""Projection, and a picture and labels that agree about where a shape is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.canvas import NEAREST, Camera, Canvas, Colour, Flat, Point, develop, noise

CAMERA = Camera(vanish_x=50, horizon=40, focal=80, height=1.5)
BACKGROUND, LABEL = 7, 3
RED: Colour = (200.0, 0.0, 0.0)
HAZE: Colour = (0.0, 0.0, 250.0)


def new_canvas() -> Canvas:
    return Canvas(Image.new("RGB", (100, 80)), BACKGROUND, CAMERA, HAZE)


@pytest.mark.parametrize(
    ("point", "pixel"),
    [
        ((0.0, 1.5, 9.0), (50.0, 40.0)),  # straight ahead, at the camera's height
        ((1.0, 0.5, 4.0), (70.0, 60.0)),
        ((1.0, 0.5, 8.0), (60.0, 50.0)),  # twice as far, half as far from the vanishing point
        ((0.1, 1.5, -3.0), (58.0, 40.0)),  # what is behind the camera counts as just before it
    ],
)
def test_camera_projects_towards_its_vanishing_point(point: Point, pixel: Flat) -> None:
    assert NEAREST == 1
    assert CAMERA.project(point) == pytest.approx(pixel)


def test_shape_covers_the_same_pixels_in_picture_and_labels() -> None:
    canvas = new_canvas()
    canvas.box((0, 1, 4), (-0.5, 0.5), (-0.5, 0.5), RED, LABEL)
    canvas.disc((1, 1, 5), (0.4, 0.6), RED, LABEL)
    canvas.line([(-1, 0, 4), (-1, 2, 4)], 0.2, RED, LABEL)
    labels = np.asarray(canvas.labels)
    assert set(np.unique(labels)) == {LABEL, BACKGROUND}
    assert np.array_equal(np.asarray(canvas.image).any(2), labels == LABEL)


def test_transparent_shape_is_labelled_but_not_painted() -> None:
    canvas = new_canvas()
    canvas.floor((-1, 1), (3, 6), RED, LABEL, alpha=0)
    assert not np.asarray(canvas.image).any()
    assert (np.asarray(canvas.labels) == LABEL).any()


def test_colours_fade_into_haze_with_distance() -> None:
    pixels = []
    for z in (2.0, 50.0, 500.0):
        canvas = new_canvas()
        canvas.box((0, 1.5, z), (-9, 9), (-9, 9), RED, LABEL)
        pixels.append(np.asarray(canvas.image)[40, 50])
    reds, blues = [int(pixel[0]) for pixel in pixels], [int(pixel[2]) for pixel in pixels]
    assert reds == sorted(reds, reverse=True)
    assert blues == sorted(blues)
    assert reds[0] > 190
    assert blues[-1] > 220


def test_texture_lightens_and_darkens_the_developed_picture() -> None:
    grey = Image.new("RGB", (64, 48), (120, 120, 120))
    texture = np.zeros((48, 64), np.float32)
    texture[:, :32], texture[:, 32:] = -0.3, 0.3
    developed = develop(np.random.default_rng(0), grey, texture)
    assert developed.shape == (48, 64, 3)
    assert developed.dtype == np.uint8
    assert developed[:, :28].mean() + 30 < developed[:, 36:].mean()


@pytest.mark.parametrize("cell", [1.0, 5.0, 1000.0])
def test_noise_has_the_size_asked_for(cell: float) -> None:
    field = noise(np.random.default_rng(0), 40, 30, cell)
    assert field.shape == (30, 40)
    assert field.dtype == np.float32
