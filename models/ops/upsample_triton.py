"""The tail of a forward pass on CUDA: each pixel's classes are interpolated, compared and forgotten in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # pixels of a row that one program decides


def upsample_argmax_triton(
    logits: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """
    Args:
        logits: [K, h, w], of any strides and floating-point type
        rows, columns: per new position, the old ones that it is made of, int32, and their weights, float32, both
            [new, T], T a power of two

    Returns:
        class ids [H, W] uint8, and the softmax probability of each as uint8, 255 standing for 1
    """
    height, width = rows[0].shape[0], columns[0].shape[0]
    ids = torch.empty(height, width, dtype=torch.uint8, device=logits.device)
    confidence = torch.empty_like(ids)
    grid = (triton.cdiv(width, BLOCK), height)
    _decide[grid](
        logits,
        *rows,
        *columns,
        ids,
        confidence,
        *(logits.shape[0], width),
        *logits.stride(),
        TAPS=rows[0].shape[1],
        BLOCK=BLOCK,
    )
    return ids, confidence


# Cells are read one by one, and pixels so written: whether sixteen divides a size or an address is of no use. Triton
# would compile for either, and the first request of another size would wait for that.
@triton.jit(do_not_specialize_on_alignment=["logits", "width", "class_stride", "row_stride", "column_stride"])
def _decide(
    logits, row_index, row_weight, column_index, column_weight, ids, confidence,
    classes, width, class_stride, row_stride, column_stride,
    TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of a row's pixels, class by class: the softmax's sum is kept relative to the best score so far."""
    y = tl.program_id(1)
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    # All TAPS * TAPS cells of a pixel, each with its weight: [BLOCK, TAPS * TAPS].
    tap = tl.arange(0, TAPS * TAPS)
    row = tl.load(row_index + y * TAPS + tap // TAPS)
    vertical = tl.load(row_weight + y * TAPS + tap // TAPS)
    at = x[:, None] * TAPS + (tap % TAPS)[None, :]
    column = tl.load(column_index + at, mask=inside[:, None], other=0)
    weight = vertical[None, :] * tl.load(column_weight + at, mask=inside[:, None], other=0.0)
    cells = logits + row[None, :].to(tl.int64) * row_stride + column * column_stride
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(classes):
        value = tl.load(cells + tl.cast(k, tl.int64) * class_stride, mask=inside[:, None], other=0.0)
        score = tl.sum(value.to(tl.float32) * weight, axis=1)
        higher = tl.maximum(best, score)
        total = total * tl.exp(best - higher) + tl.exp(score - higher)
        winner = tl.where(score > best, k, winner)
        best = higher
    place = y.to(tl.int64) * width + x
    tl.store(ids + place, winner.to(tl.uint8), mask=inside)
    tl.store(confidence + place, (255.0 / total + 0.5).to(tl.uint8), mask=inside)
