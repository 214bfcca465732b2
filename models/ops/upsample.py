"""Bilinear upsampling of logits and the argmax over classes, as one operation: the tail of every forward pass.

mmsegmentation resizes twice, from the head's grid to the network's input and from there to the
original image; so do we, because the two together are not one resize.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width

# Rows times columns times classes resized at a time: 16 MiB of float32.
BLOCK_ELEMENTS = 1 << 22


def upsample_argmax_reference(
    logits: Tensor, input_size: Size, original: Size, *, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The definition, written down; same arguments and result as `upsample_argmax`."""
    resized = F.interpolate(logits.float().unsqueeze(0), input_size, mode="bilinear", align_corners=align_corners)
    resized = F.interpolate(resized, original, mode="bilinear", align_corners=align_corners)
    probability, ids = resized.squeeze(0).softmax(0).max(0)
    return ids.to(torch.uint8), (probability * 255).round().to(torch.uint8)


def upsample_argmax(logits: Tensor, input_size: Size, original: Size, *, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Class ids and their softmax probability at the original size, in blocks of rows.

    Args:
        logits: [K, h, w], K at most 255
        input_size: of the network's input
        original: of the image

    Returns:
        class ids [H, W] uint8, and the probability of each [H, W] uint8, 255 standing for 1
    """
    resized = F.interpolate(logits.float().unsqueeze(0), input_size, mode="bilinear", align_corners=align_corners)[0]
    height, width = original
    rows = max(1, BLOCK_ELEMENTS // (width * logits.shape[0]))
    ids = torch.empty(original, dtype=torch.uint8, device=logits.device)
    confidence = torch.empty_like(ids)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        block = _resized_rows(resized, original, top, bottom, align_corners=align_corners)
        highest, winner = block.max(0)
        ids[top:bottom] = winner
        confidence[top:bottom] = (255 / (block - highest).exp_().sum(0)).round_()
    return ids, confidence


def _resized_rows(x: Tensor, size: Size, top: int, bottom: int, *, align_corners: bool) -> Tensor:
    """Rows `top` to `bottom` of x [K, h, w] resized to `size`: [K, bottom - top, W]."""
    if tuple(x.shape[1:]) == size:
        return x[:, top:bottom]
    position = torch.arange(top, bottom, device=x.device, dtype=torch.float32)
    if align_corners:
        position = position * ((x.shape[1] - 1) / max(1, size[0] - 1))
    else:
        position = ((position + 0.5) * (x.shape[1] / size[0]) - 0.5).clamp_(min=0)
    above = position.long()
    below = (above + 1).clamp_(max=x.shape[1] - 1)
    rows = torch.lerp(x[:, above], x[:, below], (position - above).unsqueeze(-1))
    # Resizing only the width: a height that stays as it is keeps its rows exactly.
    return F.interpolate(rows.unsqueeze(0), (bottom - top, size[1]), mode="bilinear", align_corners=align_corners)[0]
