"""How an image is cut into what the network sees, and how the logits are put together again: geometry alone.

An image becomes views (one per scale, and its mirror image), a view becomes windows (one, or many that slide
over it). Windows of one size go through the network together, whichever image or request they are of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from models.ops.upsample import Axis, Patch, Size, decide, resize_axis, resize_axis_cubic
from models.transforms import Preprocessing

Mode = Literal["whole", "slide"]
BelowCrop = Literal["shorten", "pad", "whole"]
Upsampling = Literal["twice", "once", "bicubic"]
Average = Literal["softmaxes", "logits"]
Span = tuple[int, int]  # along one axis, the end past it


@dataclass(frozen=True)
class Inference:
    """How a model looks at an image. The defaults are mmsegmentation's `test_cfg` and test-time augmentation.

    Attributes:
        mode: whole, or slide: windows of `crop`, every `stride`, whose logits are averaged where they overlap
        crop, stride: height and width, used by mode slide alone
        scales: factors on the usual input size; with more than one, or with a flip, views are averaged
        flip: take each scale's mirror image too
        below_crop: in mode slide, of a view with a side below the crop: windows are shorter along that side; or
            padded, below and on the right, with the mean (official CCNet); or the view is seen whole (official ANN)
        upsampling: of logits, bilinear to the view's size and from there to the image's; or, of a view that is seen
            whole, at once to the image's (official CCNet); or the second time bicubic (official ANN)
        average: of several views, what is averaged (both official codes: logits)
    """

    mode: Mode = "whole"
    crop: Size = (769, 769)
    stride: Size = (513, 513)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    below_crop: BelowCrop = "shorten"
    upsampling: Upsampling = "twice"
    average: Average = "softmaxes"

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the values make no sense; the message says which
        """
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; there are {', '.join(choices)}")
        if min(*self.crop, *self.stride) < 1:
            raise ValueError(f"crop {self.crop} and stride {self.stride} must be positive")
        if self.stride[0] > self.crop[0] or self.stride[1] > self.crop[1]:
            raise ValueError(f"stride {self.stride} beyond crop {self.crop} would leave gaps")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales are {self.scales}; at least one, all positive")


CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "below_crop": get_args(BelowCrop),
    "upsampling": get_args(Upsampling),
    "average": get_args(Average),
}
WHOLE = Inference()


class Window(NamedTuple):
    """A part of a view, in its pixels; bottom and right are past the end."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> Size:
        return self.bottom - self.top, self.right - self.left

    def cut(self, pixels: Tensor) -> Tensor:
        """Of an image [H, W, 3]: [h, w, 3], sharing its memory."""
        return pixels[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        size: to which the image is resized
        flipped: whether it is mirrored left to right after that
        windows: of the resized (and mirrored) image, all of one size
        padded: size that smaller windows are padded to before the network sees them
    """

    size: Size
    flipped: bool
    windows: tuple[Window, ...]
    padded: Size = (0, 0)

    @property
    def input_size(self) -> Size:
        """Of each pass."""
        height, width = self.windows[0].size
        return max(height, self.padded[0]), max(width, self.padded[1])


def list_views(original: Size, preprocessing: Preprocessing, inference: Inference) -> tuple[View, ...]:
    """All looks at an image of this size, in mmsegmentation's order: scale by scale, the mirror image second."""
    padded = inference.crop if inference.mode == "slide" and inference.below_crop == "pad" else (0, 0)
    return tuple(
        View(size, flipped, list_windows(size, inference), padded)
        for size in (preprocessing.input_size(original, scale) for scale in inference.scales)
        for flipped in ((False, True) if inference.flip else (False,))
    )


def count_passes(original: Size, preprocessing: Preprocessing, inference: Inference) -> int:
    """How many windows all views of an image of this size have together, without a list of them."""
    sizes = (preprocessing.input_size(original, scale) for scale in inference.scales)
    return (2 if inference.flip else 1) * sum(_count_windows(size, inference) for size in sizes)


def list_windows(size: Size, inference: Inference) -> tuple[Window, ...]:
    """The windows of a view, row by row. One over the edge is shifted back; a side below the crop is taken whole."""
    if _is_whole(size, inference):
        return (Window(0, 0, *size),)
    rows, columns = (_spans(*side) for side in zip(size, inference.crop, inference.stride, strict=True))
    return tuple(Window(top, left, bottom, right) for top, bottom in rows for left, right in columns)


def merge_views(
    logits: Sequence[Sequence[Tensor]],
    views: Sequence[View],
    original: Size,
    inference: Inference = WHOLE,
    *,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """The mask of an image from the logits of its views' windows.

    Args:
        logits: of each window of each view, [K, h, w] at the resolution that the network gave them
        inference: by which the views were listed
        align_corners: how logits are resized, fixed when the model was trained

    Returns:
        class ids [H, W] uint8, and the probability of each as uint8, 255 standing for 1
    """
    placed = [
        place_windows(parts, view, original, inference.upsampling, align_corners=align_corners)
        for parts, view in zip(logits, views, strict=True)
    ]
    if inference.average == "logits":
        # Then they are windows like any others.
        placed = [[_weighted(patch, 1 / len(placed)) for patches in placed for patch in patches]]
    return decide(placed)


def place_windows(
    logits: Sequence[Tensor], view: View, original: Size, upsampling: Upsampling = "twice", *, align_corners: bool
) -> list[Patch]:
    """Where the windows of a view lie in the image, and with what weight: where they overlap, their mean counts.

    Logits are resized to the view's size and from there to the image's, as mmsegmentation does: the two together
    are not one resize.
    """
    if upsampling == "once" and view.input_size == view.size:
        view = View(original, view.flipped, (Window(0, 0, *original),))
    device, cells = logits[0].device, logits[0].shape[1:]
    to_view = partial(resize_axis, align_corners=align_corners)
    to_image = resize_axis_cubic if upsampling == "bicubic" else to_view
    axes: list[dict[Span, Axis]] = []
    for axis, mirrored in ((0, False), (1, view.flipped)):
        spans = [(window[axis], window[axis + 2]) for window in view.windows]
        placed = _place(spans, cells[axis], to_view, view.input_size[axis], view.size[axis])
        axes.append(
            {
                span: Axis.of(to_image(matrix.flip(0) if mirrored else matrix, original[axis])).to(device)
                for span, matrix in placed.items()
            }
        )
    rows, columns = axes
    patches = [
        Patch(part, rows[window.top, window.bottom], columns[window.left, window.right])
        for part, window in zip(logits, view.windows, strict=True)
    ]
    # Where the view is far larger than the image, a window may lie between two of its pixels.
    return [patch for patch in patches if any(patch.rows.end) and any(patch.columns.end)]


def _place(
    spans: Sequence[Span], cells: int, resize: Callable[[Tensor, int], Tensor], given: int, length: int
) -> dict[Span, Tensor]:
    """Along one axis of a view: for each span, the weight of each of its cells at each position, [length, cells].

    Weights are divided by the number of spans that cover the position. The windows are a grid, so the number that cover
    a pixel is the product of both axes' numbers, and dividing along each axis averages them.

    Args:
        cells: of the logits, along this axis
        given: length of the network's input: the span and what it was padded with
        length: of the view
    """
    count = torch.zeros(length, 1)
    for start, end in set(spans):
        count[start:end] += 1
    placed = {}
    for start, end in set(spans):
        matrix = torch.zeros(length, cells)
        matrix[start:end] = resize(torch.eye(cells), given)[: end - start]
        placed[start, end] = matrix / count
    return placed


def _weighted(patch: Patch, weight: float) -> Patch:
    return patch._replace(rows=replace(patch.rows, matrix=patch.rows.matrix * weight))


def _count_windows(size: Size, inference: Inference) -> int:
    if _is_whole(size, inference):
        return 1
    return math.prod(_count(*side) for side in zip(size, inference.crop, inference.stride, strict=True))


def _is_whole(size: Size, inference: Inference) -> bool:
    """Whether a view of this size is seen at once."""
    is_small = size[0] < inference.crop[0] or size[1] < inference.crop[1]
    return inference.mode == "whole" or (is_small and inference.below_crop == "whole")


def _spans(length: int, crop: int, stride: int) -> list[Span]:
    ends = (min(index * stride + crop, length) for index in range(_count(length, crop, stride)))
    return [(max(end - crop, 0), end) for end in ends]


def _count(length: int, crop: int, stride: int) -> int:
    return max(length - crop + stride - 1, 0) // stride + 1
