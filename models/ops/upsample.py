"""Bilinear upsampling of logits and the argmax over classes, as one operation: the tail of every forward pass.

mmsegmentation resizes twice, from the head's grid to the network's input and from there to the
original image; so do we, because the two together are not one resize. But both are linear, and along
each axis alone, so that together they are one matrix an axis: the map is `rows @ logits @ columns.T`.
That holds too for windows that are averaged and for a mirror image, which are matrices like any other.
No map of the image's size is ever held: rows are made, decided and forgotten a block at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.launching import can_launch
from models.ops.scripting import scripted

Size = tuple[int, int]  # height, width
Taps = tuple[Tensor, Tensor]

# Elements of a block of rows that is decided at once. On a CPU this is for each thread: 512 KiB of float32, which a
# core's own cache holds. On CUDA it fills the device.
BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 24}
MIN_ROWS = 4  # of a block: products of a row or two have too little to share among threads
# Elements that are resized to the whole width ahead of the blocks that are made from them: 16 MiB of float32.
CHUNK_ELEMENTS = 1 << 22
# New columns made by one product, from the few old ones that they depend on: in a product of all, most factors are 0.
BAND_COLUMNS = 128
# Elements of the largest matrix that is kept for the next image: 4 MiB of float32, such as 8192 pixels from 128 cells.
KEPT_ELEMENTS = 1 << 20
# Cells along an axis that a pixel depends on after two bilinear resizes, unless the first of them shrinks.
TAPS = 4


@dataclass(frozen=True)
class Axis:
    """The linear map from the cells along one axis of a part ("old") to the positions of the whole ("new").

    Attributes:
        matrix: [new, old] float32, zero except in a band
        start, end: for each new position, the range of old cells that it depends on; if there are none, `end` is 0 and
            `start` is beyond all of them
    """

    matrix: Tensor
    start: list[int]
    end: list[int]

    @classmethod
    def of(cls, matrix: Tensor) -> Self:
        used = matrix != 0
        place = torch.arange(matrix.shape[1], dtype=torch.int32)  # int64 takes three times as long
        end = (used * (place + 1)).amax(1)
        start = matrix.shape[1] - (used * (matrix.shape[1] - place)).amax(1)
        return cls(matrix, start.tolist(), end.tolist())

    def to(self, device: torch.device) -> Self:
        return replace(self, matrix=self.matrix.to(device))

    @cached_property
    def taps(self) -> Taps | None:
        """TAPS old positions for each new one, int32, and their weights, both [new, TAPS]; None if TAPS are too few."""
        start, end = (torch.tensor(bound, device=self.matrix.device)[:, None] for bound in (self.start, self.end))
        if (end - start).max() > TAPS:
            return None
        index = start + torch.arange(TAPS, device=self.matrix.device)
        inside = index.clamp(max=self.matrix.shape[1] - 1)
        return inside.int(), self.matrix.gather(1, inside) * (index < end)

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Of the new positions from `first` to before `last`: the old ones they are made of; (0, 0) for none."""
        end = max(self.end[first:last])
        return (min(self.start[first:last]), end) if end else (0, 0)


class Patch(NamedTuple):
    """What one pass gives to the whole map: `rows @ logits @ columns.T`."""

    logits: Tensor  # [K, h, w]
    rows: Axis  # h to the height of the whole
    columns: Axis  # w to its width


def resize_axis(signal: Tensor, length: int, *, align_corners: bool) -> Tensor:
    """Resize the first axis of a matrix [old, n] linearly: [length, n]."""
    if signal.shape[0] == length:
        return signal
    return F.interpolate(signal.T[None], length, mode="linear", align_corners=align_corners)[0].T


def resize_axis_cubic(signal: Tensor, length: int) -> Tensor:
    """Resize the first axis of a matrix [old, n] with OpenCV's INTER_CUBIC: [length, n]."""
    if signal.shape[0] == length:
        return signal
    # torch has no cubic resize of one axis alone; along the other, whose size stays, this changes nothing.
    size = length, signal.shape[1]
    return F.interpolate(signal[None, None], size, mode="bicubic", align_corners=False)[0, 0]


def upsample_argmax_reference(
    logits: Tensor, input_size: Size, original: Size, *, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The definition, written down; same arguments and result as `upsample_argmax`."""
    resized = F.interpolate(logits.float().unsqueeze(0), input_size, mode="bilinear", align_corners=align_corners)
    resized = F.interpolate(resized, original, mode="bilinear", align_corners=align_corners)
    probability, ids = resized.squeeze(0).softmax(0).max(0)
    return ids.to(torch.uint8), (probability * 255).round().to(torch.uint8)


def upsample_argmax(logits: Tensor, input_size: Size, original: Size, *, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Class ids and their softmax probability at the original size.

    Args:
        logits: [K, h, w], K at most 255
        input_size: of the network's input
        original: of the image

    Returns:
        class ids [H, W] uint8, and the probability of each [H, W] uint8, 255 standing for 1
    """
    height, width = (
        _twice(*lengths, align_corners, logits.device)
        for lengths in zip(logits.shape[1:], input_size, original, strict=True)
    )
    kernel = _kernel() if logits.device.type == "cuda" else None
    if kernel is not None and height.taps is not None and width.taps is not None:
        return kernel(logits, height.taps, width.taps)
    return decide([[Patch(logits, height, width)]])


@cache
def _kernel() -> Callable[[Tensor, Taps, Taps], tuple[Tensor, Tensor]] | None:
    if not can_launch():
        return None
    from models.ops.upsample_triton import upsample_argmax_triton

    return upsample_argmax_triton


def _twice(old: int, between: int, new: int, align_corners: bool, device: torch.device) -> Axis:
    # A panorama's matrices have tens of megabytes, too much to keep.
    make = _kept if old * new <= KEPT_ELEMENTS else _made
    return make(old, between, new, align_corners, device)


def _made(old: int, between: int, new: int, align_corners: bool, device: torch.device) -> Axis:
    matrix = torch.eye(old)
    for length in (between, new):
        matrix = resize_axis(matrix, length, align_corners=align_corners)
    return Axis.of(matrix).to(device)


# Making both axes takes a tenth as long as all the rest, and the next image is mostly of the same size.
_kept = lru_cache(maxsize=8)(_made)


def decide(views: Sequence[Sequence[Patch]]) -> tuple[Tensor, Tensor]:
    """Class ids and their probability from one or more views of an image, each the sum of its patches.

    Of several views the softmaxes are averaged, not the logits.

    Returns:
        as `upsample_argmax`
    """
    logits, rows, columns = views[0][0]
    height, width, classes = len(rows.start), len(columns.start), logits.shape[0]
    ids = torch.empty(height, width, dtype=torch.uint8, device=logits.device)
    confidence = torch.empty_like(ids)
    wide = sum(patch.logits[..., 0].numel() for view in views for patch in view) * width
    threads = torch.get_num_threads() if logits.device.type == "cpu" else 1
    block = max(MIN_ROWS, threads * BLOCK_ELEMENTS[logits.device.type] // (width * classes))
    decide_rows = _decide_rows_scripted if logits.device.type == "cpu" else _decide_rows
    for above, below in _ranges(0, height, max(block, CHUNK_ELEMENTS * height // wide)):
        parts = list(_ranges(above, below, block))
        widened = [[_widen(patch, parts) for patch in view] for view in views]
        decide_rows(widened, parts, ids, confidence)
    return ids, confidence


class _Widened(NamedTuple):
    """Some rows of a patch, resized along their width alone."""

    values: Tensor  # [K, rows, right - left]
    matrix: Tensor  # the patch's `rows.matrix`
    reach: list[tuple[int, int]]  # for each block of rows of the whole, the range of patch rows it depends on
    first: int  # the first row of the patch that is in `values`
    left: int  # the first column of the whole that the patch covers


def _widen(patch: Patch, parts: list[tuple[int, int]]) -> _Widened:
    """What these blocks of the whole's rows are made of."""
    first, last = patch.rows.reach(parts[0][0], parts[-1][1])
    covered = [column for column, end in enumerate(patch.columns.end) if end]
    left, right = covered[0], covered[-1] + 1
    narrow = patch.logits[:, first:last].float()
    wide = narrow.new_empty(*narrow.shape[:2], right - left)
    for begin, end in _ranges(left, right, BAND_COLUMNS):
        start, stop = patch.columns.reach(begin, end)
        columns = patch.columns.matrix[begin:end, start:stop]
        torch.matmul(narrow[..., start:stop], columns.T, out=wide[..., begin - left : end - left])
    return _Widened(wide, patch.rows.matrix, [patch.rows.reach(*part) for part in parts], first, left)


def _decide_rows(views: list[list[_Widened]], parts: list[tuple[int, int]], ids: Tensor, confidence: Tensor) -> None:
    """Write these blocks of rows of `decide`'s result."""
    classes = views[0][0].values.shape[0]
    # Of the classes that reach the maximum the first wins: the one of the highest rank.
    rank = torch.arange(classes - 1.0, -1.0, -1.0, device=ids.device).unsqueeze(1).unsqueeze(1)
    for index, part in enumerate(parts):
        top, bottom = part
        probability = _rows(views[0], index, part, ids.shape[1]).softmax(0)
        for view in views[1:]:
            probability += _rows(view, index, part, ids.shape[1]).softmax(0)
        if len(views) > 1:
            probability /= len(views)
        highest = probability.amax(0)
        # Into numbers: a comparison that gives booleans takes torch one element at a time.
        is_best = torch.eq(probability, highest, out=probability)
        ids[top:bottom] = classes - 1 - is_best.mul_(rank).amax(0)
        confidence[top:bottom] = highest.mul_(255).round_()


def _rows(patches: list[_Widened], index: int, part: tuple[int, int], width: int) -> Tensor:
    """A block of rows of the whole map: [K, bottom - top, W]."""
    if len(patches) == 1:
        return _high(patches[0], index, part)
    values = patches[0].values
    total = values.new_zeros([values.shape[0], part[1] - part[0], width])
    for patch in patches:
        total[:, :, patch.left : patch.left + patch.values.shape[2]] += _high(patch, index, part)
    return total


def _high(patch: _Widened, index: int, part: tuple[int, int]) -> Tensor:
    first, last = patch.reach[index]
    used = patch.values[:, first - patch.first : last - patch.first]
    return patch.matrix[part[0] : part[1], first:last] @ used


_decide_rows_scripted = scripted(_decide_rows)


def _ranges(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + step, stop)) for first in range(start, stop, step))
