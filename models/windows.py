"""How an image is cut into what the network sees, and how the logits are put together again: geometry alone.

An image becomes views (one per scale, and its mirror image), a view becomes windows (one, or many that slide
over it). Windows of one size go through the network together, whichever image or request they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.upsample import Size, upsample_argmax
from models.transforms import Preprocessing

Mode = Literal["whole", "slide"]


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


def merge_windows(logits: Sequence[Tensor], view: View, *, align_corners: bool) -> Tensor:
    """Logits of a view's windows as one map.

    Args:
        logits: of each window, [K, h, w] at the resolution that the network gave them
        align_corners: how they are resized, fixed when the model was trained

    Returns:
        [K, h, w] as the network gave it for a view of one window, else [K, H, W] at the view's size, float32:
        the mean of the windows over each pixel
    """
    if len(view.windows) == 1:
        return logits[0]
    total = logits[0].new_zeros(logits[0].shape[0], *view.size, dtype=torch.float32)
    count = torch.zeros(view.size, device=total.device)
    for part, window in zip(logits, view.windows, strict=True):
        window.cut(total.permute(1, 2, 0)).permute(2, 0, 1).add_(_resize(part, window.size, align_corners))
        window.cut(count).add_(1)
    return total.div_(count)


def merge_views(
    logits: Sequence[Tensor], views: Sequence[View], original: Size, *, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The mask of an image from the logits of its views.

    Logits are resized to the view's size and from there to the image's, as mmsegmentation does: the two together
    are not one resize. Of several views the softmaxes are averaged, not the logits.

    Args:
        logits: of each view, as `merge_windows` gives them

    Returns:
        class ids [H, W] uint8, and the probability of each as uint8, 255 standing for 1
    """
    if len(views) == 1:
        return upsample_argmax(logits[0], views[0].size, original, align_corners=align_corners)
    total = view_probabilities(logits[0], views[0], original, align_corners=align_corners)
    for part, view in zip(logits[1:], views[1:], strict=True):
        total += view_probabilities(part, view, original, align_corners=align_corners)
    highest, ids = total.max(0)
    return ids.to(torch.uint8), highest.mul_(255 / len(views)).round_().to(torch.uint8)


def view_probabilities(logits: Tensor, view: View, original: Size, *, align_corners: bool) -> Tensor:
    """Softmax [K, H, W] at the image's size of one view's logits, mirrored back."""
    logits = _resize(logits, view.size, align_corners)
    if view.flipped:
        logits = logits.flip(2)
    return _resize(logits, original, align_corners).softmax(0)


def _spans(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = (min(index * stride + crop, length) for index in range(count))
    return [(max(end - crop, 0), end) for end in ends]


def _resize(logits: Tensor, size: Size, align_corners: bool) -> Tensor:
    """[K, h, w] to [K, *size], in float32."""
    if tuple(logits.shape[1:]) == size:
        return logits.float()
    return F.interpolate(logits.float()[None], size, mode="bilinear", align_corners=align_corners)[0]
