"""A record's attention: picks the block, asks the models for the map, renders it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.api.record import Record
from app.api.rendering import original
from app.api.schemas import AttentionInfo, AttentionReply, BlockInfo, Cell, ImageSize, WeightedCell
from app.colormaps import COLORMAPS, ColormapName
from app.errors import InvalidParameter
from app.imaging import ImageFormat, blend, encode_rgb, mark, resize_map
from models import Trace, attention_maps

COMPOSED = "composed"
TOP = 10
MAX_GAIN = 100


@dataclass(frozen=True)
class AttentionMap:
    """
    Attributes:
        point: (x, y) in the image
        cell: (row, column) in the block's grid
        weights: [h, w] on that grid
        step, level: what was chosen, None where the block has no such choice
        anchors: of a pyramid block, weights by pool scale
    """

    block: str
    point: tuple[int, int]
    cell: tuple[int, int]
    weights: NDArray[np.float64]
    step: str | None = None
    level: str | None = None
    anchors: Mapping[str, NDArray[np.float64]] | None = None

    @property
    def on_cross(self) -> float:
        """Share of the weight on the cell's own row and column."""
        row, column = self.cell
        return float(self.weights[row].sum() + self.weights[:, column].sum() - self.weights[row, column])

    @property
    def entropy(self) -> float:
        """In bits: log2 of how many cells are looked at, were all of them looked at alike."""
        positive = self.weights[self.weights > 0]
        return float(-(positive * np.log2(positive)).sum())


def attention_map(
    record: Record, point: tuple[int, int], block: str | None, step: str | None, level: str
) -> AttentionMap:
    """What the pixel at `point` (x, y) looked at.

    Raises:
        InvalidParameter: the point is outside the image, or the result has no such block, step or level
    """
    traces = _traces(record, block)
    cell = _cell(record, point, traces[0].grid)
    chosen = _step(traces, step)
    _check_level(traces[0], level)
    if traces[0].pool_scales:
        return _pyramid_map(traces[0], point, cell, level)
    if chosen == COMPOSED:
        weights = attention_maps.composed_criss_cross_map(traces[0], traces[1], cell)
    elif traces[0].block == "cca":
        weights = attention_maps.criss_cross_map(traces[int(chosen or 1) - 1], cell)
    else:
        weights = attention_maps.dense_map(traces[0], cell)
    return AttentionMap(traces[0].block, point, cell, weights.numpy(), step=chosen)


def _cell(record: Record, point: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    width, height = record.size
    for name, value, limit in zip(("x", "y"), point, (width, height), strict=True):
        if not 0 <= value < limit:
            raise InvalidParameter(
                f"{name} is {value}, outside the image of {width}x{height}", limit=limit - 1, actual=value
            )
    return attention_maps.cell_of(*point, width, height, grid)


def _pyramid_map(trace: Trace, point: tuple[int, int], cell: tuple[int, int], level: str) -> AttentionMap:
    anchors = attention_maps.anchor_weights(trace, cell)
    shown = anchors if level == "all" else {int(level): anchors[int(level)]}
    weights = attention_maps.back_projected_map(shown, trace.grid)
    by_scale = {str(scale): anchor.numpy() for scale, anchor in anchors.items()}
    return AttentionMap(trace.block, point, cell, weights.numpy(), level=level, anchors=by_scale)


def describe(record: Record) -> AttentionInfo:
    """Blocks, steps, levels and grids that can be asked for."""
    width, height = record.size
    return AttentionInfo(
        id=record.id,
        model=record.spec.name,
        image=ImageSize(width=width, height=height),
        blocks=[_describe(_traces(record, block)) for block in _blocks(record)],
    )


def to_reply(record: Record, found: AttentionMap) -> AttentionReply:
    rows, columns = found.weights.shape
    heaviest = np.argsort(found.weights, axis=None)[::-1][:TOP]
    anchors = found.anchors
    return AttentionReply(
        id=record.id,
        model=record.spec.name,
        block=found.block,
        step=found.step,
        level=found.level,
        x=found.point[0],
        y=found.point[1],
        cell=Cell(row=found.cell[0], column=found.cell[1]),
        grid=ImageSize(width=columns, height=rows),
        sum=float(found.weights.sum()),
        max=float(found.weights.max()),
        entropy=found.entropy,
        on_cross=found.on_cross,
        anchors=anchors and {scale: anchor.tolist() for scale, anchor in anchors.items()},
        levels=anchors and {scale: float(anchor.sum()) for scale, anchor in anchors.items()},
        top=[
            WeightedCell(row=index // columns, column=index % columns, weight=float(found.weights.flat[index]))
            for index in heaviest.tolist()
        ],
        weights=found.weights.tolist(),
    )


def to_npy(found: AttentionMap) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, found.weights)
    return buffer.getvalue()


def render_heat(
    record: Record,
    found: AttentionMap,
    clip: float,
    colormap: ColormapName,
    alpha: float | None,
    image_format: ImageFormat,
) -> bytes:
    """The map in colours at the image's size; over the image with the point marked, unless alpha is None."""
    width, height = record.size
    heat = resize_map(_normalized(found.weights, clip), (height, width))
    colors = COLORMAPS[colormap][(heat.clip(0, 1) * 255).round().astype(np.uint8)]
    if alpha is None:
        return encode_rgb(colors, image_format)
    return encode_rgb(mark(blend(original(record), colors, alpha), found.point), image_format)


def _normalized(weights: NDArray[np.float64], clip: float) -> NDArray[np.float32]:
    """Weights as 0 to 1, all above the percentile as 1, since a few heavy cells would leave the rest black.

    The percentile is of the weights above zero: off a cross there are none, and these must not decide. Nor may
    it make weights look full that are nothing beside the largest: it ends at a share of that one.
    """
    positive = weights[weights > 0]
    if not positive.size:
        return weights.astype(np.float32)
    ceiling = max(float(np.percentile(positive, clip)), float(positive.max()) / MAX_GAIN)
    return (weights / ceiling).clip(0, 1).astype(np.float32)


def _blocks(record: Record) -> list[str]:
    traces = record.segmentation.traces
    if not traces:
        raise InvalidParameter(
            f"result {record.id} has no attention: it was made with attention=false, or by a model without any"
        )
    return list(dict.fromkeys(trace.block for trace in traces))


def _traces(record: Record, block: str | None) -> list[Trace]:
    """The traces of one block in order of its steps; without a name, of the last block."""
    blocks = _blocks(record)
    if block is not None and block not in blocks:
        raise InvalidParameter(f"the model has no block {block!r}; it has {', '.join(blocks)}")
    return [trace for trace in record.segmentation.traces if trace.block == (block or blocks[-1])]


def _steps(traces: list[Trace]) -> list[str]:
    """Of criss-cross attention, the one block that may run more than once."""
    if traces[0].block != "cca":
        return []
    return [str(trace.step) for trace in traces] + [COMPOSED] * (len(traces) == 2)


def _step(traces: list[Trace], step: str | None) -> str | None:
    steps = _steps(traces)
    if step is not None and step not in steps:
        raise InvalidParameter(f"the block has no step {step!r}; it has {', '.join(steps) or 'only one'}")
    return step or (steps[-1] if steps else None)


def _levels(trace: Trace) -> list[str]:
    return ["all", *map(str, trace.pool_scales)] if trace.pool_scales else []


def _check_level(trace: Trace, level: str) -> None:
    levels = _levels(trace)
    if level not in ("all", *levels):
        raise InvalidParameter(f"the block has no level {level!r}; it has {', '.join(levels) or 'none'}")


def _describe(traces: list[Trace]) -> BlockInfo:
    rows, columns = traces[0].grid
    return BlockInfo(
        block=traces[0].block,
        steps=_steps(traces),
        levels=_levels(traces[0]),
        grid=ImageSize(width=columns, height=rows),
    )
