"""How sure a mask is, where two ways to it may round apart."""

import torch.nn.functional as F
from torch import Tensor

from models.ops.upsample import Size


def margins(logits: Tensor, input_size: Size, original: Size, align_corners: bool) -> Tensor:
    """How far the best class is ahead of the second, per pixel."""
    resized = F.interpolate(logits[None], input_size, mode="bilinear", align_corners=align_corners)
    resized = F.interpolate(resized, original, mode="bilinear", align_corners=align_corners)
    best, second = resized[0].topk(2, dim=0).values
    return best - second
