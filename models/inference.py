"""An image to its mask, without a batch and without a server."""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.upsample import upsample_argmax
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
    device = next(segmentor.parameters()).device
    batch = normalize(resize(image, input_size).unsqueeze(0).to(device), preprocessing)
    logits = segmentor(batch).logits[0]
    ids, confidence = upsample_argmax(logits, input_size, original, align_corners=segmentor.align_corners)
    return ids.cpu(), confidence.cpu()
