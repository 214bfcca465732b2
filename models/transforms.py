"""Images to network input; `ops.upsample` undoes the geometry on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

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
        bgr: the network takes blue first, as the papers' own code has it; mean and std are in RGB all the same
        antialias: smooth where an image shrinks; else bilinear as OpenCV does it, to the last bit
        multiple: each side of the input is rounded to a multiple of this. It is the network's stride if it was trained
            on such sizes alone, since at other sizes its maps cover a little more than the image; else 1
    """

    scale: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    multiple: int = 1
    bgr: bool = False
    antialias: bool = True

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the values make no sense; the message says which
        """
        if min(self.scale) < 1:
            raise ValueError(f"scale is {self.scale}; both sides must be positive")
        if not all(isfinite(value) for value in (*self.mean, *self.std)) or 0 in self.std:
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite, and no std 0")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}; it must be positive")

    def input_size(self, original: Size, factor: float = 1.0) -> Size:
        """Size of the network's input for an image of this size: mmsegmentation's keep-ratio rule.

        Args:
            factor: on `scale`, whose sides are then cut to whole pixels, as in mmsegmentation's test-time augmentation
        """
        height, width = original
        long_side, short_side = (max(1, int(side * factor)) for side in (max(self.scale), min(self.scale)))
        ratio = min(long_side / max(height, width), short_side / min(height, width))
        return self._rounded(height * ratio), self._rounded(width * ratio)

    def _rounded(self, side: float) -> int:
        return max(1, int(side / self.multiple + 0.5)) * self.multiple


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def resize(image: Tensor, size: Size, *, antialias: bool = True) -> Tensor:
    """Resize an RGB image bilinearly.

    Args:
        image: [H, W, 3] uint8
        antialias: smooth it when it shrinks, so that thin things don't alias away; else as OpenCV does

    Returns:
        [h, w, 3] uint8; the same tensor if the size is right already
    """
    if tuple(image.shape[:2]) == size:
        return image
    if not antialias:
        return resize_like_opencv(image, size)
    # Without a batch axis torch does not see that channels come last, and copies them to planes first.
    batch = image.unsqueeze(0).permute(0, 3, 1, 2)
    resized = F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).contiguous()


def pad(image: Tensor, size: Size) -> Tensor:
    """An image [h, w, 3] in the upper left corner of one of a larger size, black elsewhere."""
    (height, width), padded = image.shape[:2], image.new_zeros(*size, image.shape[2])
    padded[:height, :width] = image
    return padded


def resize_like_opencv(image: Tensor, size: Size) -> Tensor:
    """What `cv2.resize` with INTER_LINEAR makes of 8-bit values, in its fixed-point arithmetic.

    Weights have 11 bits; a row is resized first, and loses 4 bits before the columns are.

    Args:
        image: [H, W, C] uint8

    Returns:
        [h, w, C] uint8
    """
    above, below, upper, lower = _fixed_point_weights(image.shape[0], size[0])
    left, right, near, far = _fixed_point_weights(image.shape[1], size[1], whole_at_edges=True)
    # Only the rows that count are resized, each once: at most two for each new one.
    rows, index = torch.cat([above, below]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    source, channels = image.index_select(0, rows), image.shape[2]
    values = _weighted(source.index_select(1, left).flatten(1), near.repeat_interleave(channels))
    values += _weighted(source.index_select(1, right).flatten(1), far.repeat_interleave(channels))
    values >>= 4
    total = _weighted(values.index_select(0, index[: size[0]]), upper[:, None]) >> 16
    total += _weighted(values.index_select(0, index[size[0] :]), lower[:, None]) >> 16
    return ((total + 2) >> 2).to(torch.uint8).view(*size, channels)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    return values.int().mul_(weights)


def _fixed_point_weights(old: int, new: int, *, whole_at_edges: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per new position: the two old ones it lies between, and their weights times 2048.

    Args:
        whole_at_edges: a new position beyond the outermost old one takes that with its whole weight; else it takes it
            twice, with both weights, which differs only in rounding
    """
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    before = position.floor()
    fraction = position - before
    if whole_at_edges:
        fraction = fraction.masked_fill((before < 0) | (before >= old - 1), 0)
    # Rounded half to even, like OpenCV's cvRound.
    weights = ((1 - fraction) * 2048).round().int(), (fraction * 2048).round().int()
    return before.long().clamp(0, old - 1), (before + 1).long().clamp(0, old - 1), *weights


def normalize(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of images as the network takes them, on the device they are on.

    Args:
        images: [B, H, W, 3] uint8

    Returns:
        [B, 3, H, W] of `dtype`, channels-last in memory, which costs no copy from images
    """
    # A whole row at a time: along an axis of three channels alone torch would take seven times as long.
    width = images.shape[2]
    # A copy that blocks would wait until the GPU has done all that it was given before.
    mean, std = (
        torch.tensor(values).repeat(width).to(images.device, non_blocking=True)
        for values in (preprocessing.mean, preprocessing.std)
    )
    normalized = images.flatten(2).float().sub_(mean).div_(std).to(dtype).view(images.shape)
    return (normalized.flip(3) if preprocessing.bgr else normalized).permute(0, 3, 1, 2)


def blank_padding(batch: Tensor, insides: Sequence[Size | None]) -> None:
    """Fill what `pad` added to the images of a normalised batch [B, 3, H, W] with 0, which is the mean; in place.

    Args:
        insides: size that each had before, None if it was not padded
    """
    for image, inside in zip(batch, insides, strict=True):
        if inside is not None:
            image[:, inside[0] :] = 0
            image[:, :, inside[1] :] = 0
