"""An attention map as JSON, as an array and as a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.api.attention import AttentionMap, blocks_of, levels_of, steps_of, traces_of
from app.api.record import Record
from app.api.rendering import original
from app.api.schemas import (
    AttentionInfo,
    AttentionReply,
    BlockInfo,
    Cell,
    ClassPixels,
    ImageSize,
    WeightedCell,
)
from app.colormaps import COLORMAPS, ColormapName
from app.imaging import Array, ImageFormat, blend, colored, encode_rgb, mark, resize_map
from models import Trace

Norm = Literal["max", "log", "rank", "sum"]
MAX_GAIN = 100
DECADES = 4


@dataclass(frozen=True)
class Look:
    """How a map is drawn.

    Attributes:
        clip: percentile of the weights above 0 at which the colours end
        alpha: weight of the colours over the image; None for the colours alone
        is_smooth: between cells too
        at_map_size: one pixel for each cell; else the image's size
    """

    clip: float = 99.0
    norm: Norm = "max"
    colormap: ColormapName = "inferno"
    alpha: float | None = 0.6
    is_smooth: bool = True
    at_map_size: bool = False


def describe(record: Record) -> AttentionInfo:
    """Blocks, steps, levels, grids and classes that can be asked for."""
    width, height = record.size
    return AttentionInfo(
        id=record.id,
        model=record.spec.name,
        image=ImageSize(width=width, height=height),
        blocks=[_describe(traces_of(record, block)) for block in blocks_of(record)],
        classes=_classes(record),
    )


def to_reply(record: Record, found: AttentionMap, top: int, with_weights: bool) -> AttentionReply:
    rows, columns = found.weights.shape
    flat = found.weights.ravel()
    heaviest = np.argsort(-flat, kind="stable")[: min(top, np.count_nonzero(flat))]
    anchors = found.anchors
    x, y = found.point or (None, None)
    width, height = record.size
    return AttentionReply(
        id=record.id,
        model=record.spec.name,
        block=found.block,
        step=found.step,
        compose=found.compose,
        level=found.level,
        direction=found.direction,
        image=ImageSize(width=width, height=height),
        x=x,
        y=y,
        of_class=next((one for one in _classes(record) if one.id == found.class_id), None),
        cell=found.cell and Cell(row=found.cell[0], column=found.cell[1]),
        grid=ImageSize(width=columns, height=rows),
        sum=float(flat.sum()),
        max=float(flat.max()),
        entropy=found.entropy,
        on_cross=found.on_cross,
        gamma=found.gamma,
        anchors=anchors and {scale: anchor.tolist() for scale, anchor in anchors.items()},
        levels=anchors and {scale: float(anchor.sum()) for scale, anchor in anchors.items()},
        top=[
            WeightedCell(row=index // columns, column=index % columns, weight=float(flat[index]))
            for index in heaviest.tolist()
        ],
        weights=found.weights.tolist() if with_weights else None,
    )


def to_npy(found: AttentionMap) -> bytes:
    buffer = io.BytesIO()
    # A product may come column by column, which few readers but NumPy's know how to take.
    np.save(buffer, np.ascontiguousarray(found.weights))
    return buffer.getvalue()


def render_heat(record: Record, found: AttentionMap, look: Look, image_format: ImageFormat) -> bytes:
    """The map in colours; over the image with the point marked, unless alpha is None."""
    width, height = record.size
    levels = (normalized(found.weights, look.norm, look.clip) * 255).round().astype(np.float32)
    size = levels.shape if look.at_map_size else (height, width)
    heat = resize_map(levels, (size[0], size[1]), look.is_smooth)
    colors = colored(heat.round().clip(0, 255).astype(np.uint8), COLORMAPS[look.colormap])
    if look.alpha is None:
        return encode_rgb(colors, image_format)
    picture = blend(_ground(record, (size[0], size[1])), colors, look.alpha)
    if found.point is not None and not look.at_map_size:
        picture = mark(picture, found.point)
    return encode_rgb(picture, image_format)


def normalized(weights: NDArray[np.float64], norm: Norm, clip: float) -> NDArray[np.float64]:
    """Weights as 0 to 1.

    max: in proportion, all above the percentile as 1, since a few heavy cells would leave the rest black. The
        percentile is of the weights above zero: off a cross there are none, and these must not decide. Nor may it
        make weights look full that are nothing beside the largest: it ends at a share of that one.
    log: by the logarithm, from 10^-DECADES of the same end to that end
    rank: by the share of the positive weights that are no larger
    sum: by the share of the sum that lies on cells no heavier; those above 0.4 are the fewest that hold 60 %
    """
    positive = np.sort(weights[weights > 0])
    if not positive.size:
        return np.zeros_like(weights)
    if norm in ("rank", "sum"):
        shares = np.ones_like(positive) if norm == "rank" else positive
        running = np.concatenate([[0.0], shares.cumsum() / shares.sum()])
        below: NDArray[np.float64] = running[np.searchsorted(positive, weights, side="right")]
        return below.clip(0, 1)
    end = max(float(np.percentile(positive, clip)), float(positive[-1]) / MAX_GAIN)
    if norm == "max":
        return (weights / end).clip(0, 1)
    with np.errstate(divide="ignore"):
        return (1 + np.log10(weights / end) / DECADES).clip(0, 1)


def _ground(record: Record, size: tuple[int, int]) -> Array:
    image = original(record)
    if size == image.shape[:2]:
        return image
    channels = [resize_map(image[..., channel].astype(np.float32), size, True) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _classes(record: Record) -> list[ClassPixels]:
    names = record.spec.classes.names
    return [
        ClassPixels(id=index, name=names[index], pixels=int(record.areas[index]))
        for index in np.flatnonzero(record.areas).tolist()
    ]


def _describe(traces: list[Trace]) -> BlockInfo:
    rows, columns = traces[0].grid
    steps = steps_of(traces)
    return BlockInfo(
        block=traces[0].block,
        steps=steps,
        composes=["product", "rollout"] if "composed" in steps else [],
        levels=levels_of(traces[0]),
        grid=ImageSize(width=columns, height=rows),
    )
