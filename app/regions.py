"""The regions of a mask as other tools take them: COCO's run lengths, and polygons."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from app.imaging import Array

Ring = list[list[int]]  # of [x, y], the first again at the end
Polygon = list[Ring]  # its outline, then its holes


def encode_rle(member: NDArray[np.bool_]) -> str:
    """The true pixels of [H, W] as COCO's compressed run lengths, column by column."""
    counts: bytes = coco.encode(np.asfortranarray(member, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def trace_polygons(mask: Array) -> dict[int, list[Polygon]]:
    """Class id to its polygons, one for each region of pixels that touch at an edge; exactly along the pixels' edges.

    A pixel (x, y) covers x to x + 1 and y to y + 1. Outlines run counterclockwise by the numbers, holes clockwise, as
    GeoJSON has it: on a screen, where y grows downwards, it looks the other way round.

    Args:
        mask: [H, W] class ids
    """
    lines = np.concatenate([_boundaries(mask), _boundaries(mask.T)[..., ::-1]])
    faces = shapely.orient_polygons(shapely.get_parts(shapely.polygonize(shapely.linestrings(lines))))
    # A point within a face, rounded down, is a pixel of it: no boundary is between the two.
    columns, rows = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(np.int64).T
    polygons: dict[int, list[Polygon]] = {}
    for face, class_id in zip(faces, mask[rows, columns].tolist(), strict=True):
        rings = [_points(ring) for ring in (face.exterior, *face.interiors)]
        polygons.setdefault(class_id, []).append(rings)
    return dict(sorted(polygons.items()))


def _boundaries(mask: Array) -> NDArray[np.float64]:
    """All horizontal lines between different classes, and around the mask, cut where others end or cross: [N, 2, 2]."""
    ids = np.pad(mask.astype(np.int16), 1, constant_values=-1)
    level = ids[:-1, 1:-1] != ids[1:, 1:-1]  # [H + 1, W]
    upright = ids[1:-1, :-1] != ids[1:-1, 1:]  # [H, W + 1]
    crossed = np.zeros((level.shape[0], upright.shape[1]), dtype=bool)
    crossed[1:] |= upright
    crossed[:-1] |= upright
    before, after = np.pad(level, ((0, 0), (1, 0))), np.pad(level, ((0, 0), (0, 1)))
    starts, ends = after & (crossed | ~before), before & (crossed | ~after)
    points = [np.argwhere(where)[:, ::-1] for where in (starts, ends)]
    return np.stack(points, axis=1).astype(np.float64)


def _points(ring: shapely.LinearRing) -> Ring:
    points: Ring = shapely.get_coordinates(ring).astype(np.int64).tolist()
    return points
