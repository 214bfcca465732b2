"""How an image is cut into what the network sees, and how the logits are put together again: geometry alone.

An image becomes views (one per scale, and its mirror image), a view becomes windows (one, or many that slide
over it). Windows of one size go through the network together, whichever image or request they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.ops.upsample import Axis, Patch, Size, decide, resize_axis
from models.transforms import Preprocessing

Mode = Literal["whole", "slide"]
Span = tuple[int, int]  # along one axis, the end past it


@dataclass(frozen=True)
class Inference:
    """How a model looks at an image: mmsegmentation's `test_cfg` and its test-time augmentation.

    Attributes:
        mode: whole, or slide: windows of `crop`, every `stride`, whose logits are averaged where they overlap
        crop, stride: height and width, used by mode slide alone
        scales: factors on the usual input size; with more than one, or with a flip, softmaxes are averaged
        flip: take each scale's mirror image too
    """

    mode: Mode = "whole"
    crop: Size = (769, 769)
    stride: Size = (513, 513)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the values make no sense; the message says which
        """
        if self.mode not in ("whole", "slide"):
            raise ValueError(f"mode is {self.mode!r}; there are whole and slide")
        if min(*self.crop, *self.stride) < 1:
            raise ValueError(f"crop {self.crop} and stride {self.stride} must be positive")
        if self.stride[0] > self.crop[0] or self.stride[1] > self.crop[1]:
            raise ValueError(f"stride {self.stride} beyond crop {self.crop} would leave gaps")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales are {self.scales}; at least one, all positive")


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
    """

    size: Size
    flipped: bool
    windows: tuple[Window, ...]


def list_views(original: Size, preprocessing: Preprocessing, inference: Inference) -> tuple[View, ...]:
    """All looks at an image of this size, in mmsegmentation's order: scale by scale, the mirror image second."""
    return tuple(
        View(size, flipped, list_windows(size, inference))
        for size in (preprocessing.input_size(original, scale) for scale in inference.scales)
        for flipped in ((False, True) if inference.flip else (False,))
    )


def list_windows(size: Size, inference: Inference) -> tuple[Window, ...]:
    """The windows of a view, row by row. One over the edge is shifted back; a side below the crop is taken whole."""
    if inference.mode == "whole":
        return (Window(0, 0, *size),)
    rows, columns = (_spans(*side) for side in zip(size, inference.crop, inference.stride, strict=True))
    return tuple(Window(top, left, bottom, right) for top, bottom in rows for left, right in columns)


def merge_views(
    logits: Sequence[Sequence[Tensor]], views: Sequence[View], original: Size, *, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The mask of an image from the logits of its views' windows.

    Logits are resized to the view's size and from there to the image's, as mmsegmentation does: the two together
    are not one resize. Of several views the softmaxes are averaged, not the logits.

    Args:
        logits: of each window of each view, [K, h, w] at the resolution that the network gave them
        align_corners: how they are resized, fixed when the model was trained

    Returns:
        class ids [H, W] uint8, and the probability of each as uint8, 255 standing for 1
    """
    return decide(
        [
            place_windows(parts, view, original, align_corners=align_corners)
            for parts, view in zip(logits, views, strict=True)
        ]
    )


def place_windows(logits: Sequence[Tensor], view: View, original: Size, *, align_corners: bool) -> list[Patch]:
    """Where the windows of a view lie in the image, and with what weight: where they overlap, their mean counts."""
    device, (height, width) = logits[0].device, logits[0].shape[1:]
    rows = _place(
        [(window.top, window.bottom) for window in view.windows], height, view.size[0], original[0], align_corners
    )
    columns = _place(
        [(window.left, window.right) for window in view.windows],
        *(width, view.size[1], original[1], align_corners),
        flipped=view.flipped,
    )
    rows, columns = ({span: axis.to(device) for span, axis in axes.items()} for axes in (rows, columns))
    return [
        Patch(part, rows[window.top, window.bottom], columns[window.left, window.right])
        for part, window in zip(logits, view.windows, strict=True)
    ]


def _place(
    spans: Sequence[Span], old: int, between: int, new: int, align_corners: bool, *, flipped: bool = False
) -> dict[Span, Axis]:
    """Along one axis, by span of a view `between` long: how its `old` cells become part of `new` pixels.

    The windows are a grid, so how many of them cover a pixel is so many rows of them times so many columns.
    """
    count = torch.zeros(between, 1)
    for start, end in set(spans):
        count[start:end] += 1
    axes = {}
    for start, end in set(spans):
        placed = torch.zeros(between, old)
        placed[start:end] = resize_axis(torch.eye(old), end - start, align_corners=align_corners)
        placed /= count
        axes[start, end] = Axis.of(resize_axis(placed.flip(0) if flipped else placed, new, align_corners=align_corners))
    return axes


def _spans(length: int, crop: int, stride: int) -> list[Span]:
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = (min(index * stride + crop, length) for index in range(count))
    return [(max(end - crop, 0), end) for end in ends]
