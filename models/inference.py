"""An image to its mask, without a batch and without a server."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.upsample import Size, upsample_argmax
from models.segmentor import Segmentor
from models.transforms import Preprocessing, normalize, resize


@torch.inference_mode()
def segment_image(segmentor: Segmentor, image: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """The whole image at once, at a single scale.

    Args:
        segmentor: in eval mode, on any device
        image: [H, W, 3] uint8 RGB on the host

    Returns:
        class ids [H, W] uint8, and the softmax probability of each as uint8, 255 standing for 1, both on the host
    """
    original = image.shape[0], image.shape[1]
    input_size = preprocessing.input_size(original)
    logits = _logits(segmentor, image, input_size, preprocessing)
    ids, confidence = upsample_argmax(logits[0], input_size, original, align_corners=segmentor.align_corners)
    return ids.cpu(), confidence.cpu()


@torch.inference_mode()
def segment_augmented(
    segmentor: Segmentor, image: Tensor, preprocessing: Preprocessing, scales: Sequence[float], *, flip: bool
) -> Tensor:
    """Test-time augmentation as in mmsegmentation: the mean of the softmax over scales and mirror images.

    Args:
        scales: factors on the network's usual input size
        flip: take each scale's mirror image too

    Returns:
        class ids [H, W] uint8 on the host
    """
    original = image.shape[0], image.shape[1]
    total = torch.zeros(())
    for scale in scales:
        size = preprocessing.input_size(original, scale)
        for mirrored in (False, True) if flip else (False,):
            logits = _logits(segmentor, image.flip(1) if mirrored else image, size, preprocessing)
            for target in (size, original):
                logits = F.interpolate(logits, target, mode="bilinear", align_corners=segmentor.align_corners)
            total = total.to(logits.device) + (logits.flip(3) if mirrored else logits).softmax(1)
    return total.argmax(1)[0].to(torch.uint8).cpu()


def _logits(segmentor: Segmentor, image: Tensor, size: Size, preprocessing: Preprocessing) -> Tensor:
    """[1, K, h, w] of one image resized to `size`."""
    device = next(segmentor.parameters()).device
    batch = normalize(resize(image, size).unsqueeze(0).to(device), preprocessing)
    logits: Tensor = segmentor(batch).logits
    return logits.float()
