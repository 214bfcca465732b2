"""Images to network input; `ops.upsample` undoes the geometry on the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.upsample import Size


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images, fixed when it was trained.

    Attributes:
        scale: (long side, short side) that an image is resized to fit, keeping its ratio
        mean, std: per RGB channel, of values 0 to 255
        multiple: of which each side of the input is one; the network's stride, where it was trained on such sizes
            alone, since on others its maps cover a little more than the image
    """

    scale: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    multiple: int = 1

    def input_size(self, original: Size, factor: float = 1.0) -> Size:
        """Size of the network's input for an image of this size: mmsegmentation's keep-ratio rule, times a factor."""
        height, width = original
        factor *= min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))
        return self._rounded(height * factor), self._rounded(width * factor)

    def _rounded(self, side: float) -> int:
        return max(1, int(side / self.multiple + 0.5)) * self.multiple


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def resize(image: Tensor, size: Size) -> Tensor:
    """Resize an RGB image, smoothed when it shrinks so that thin things don't alias away.

    Args:
        image: [H, W, 3] uint8

    Returns:
        [h, w, 3] uint8; the same tensor if the size is right already
    """
    if tuple(image.shape[:2]) == size:
        return image
    planes = image.permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).contiguous()


def normalize(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of images as the network takes them, on the device they are on.

    Args:
        images: [B, H, W, 3] uint8

    Returns:
        [B, 3, H, W] of `dtype`, channels-last in memory, which costs no copy from images
    """
    mean = torch.tensor(preprocessing.mean, device=images.device)
    std = torch.tensor(preprocessing.std, device=images.device)
    return ((images.float() - mean) / std).to(dtype).permute(0, 3, 1, 2)
