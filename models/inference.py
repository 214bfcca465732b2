"""An image to its mask, without a batch and without a server."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.segmentor import Segmentor
from models.transforms import Preprocessing, normalize, resize
from models.windows import WHOLE, Inference, View, list_views, merge_views


@torch.inference_mode()
def segment_image(
    segmentor: Segmentor, image: Tensor, preprocessing: Preprocessing, inference: Inference = WHOLE
) -> tuple[Tensor, Tensor]:
    """
    Args:
        segmentor: in eval mode, on any device
        image: [H, W, 3] uint8 RGB on the host

    Returns:
        class ids [H, W] uint8, and the softmax probability of each as uint8, 255 standing for 1, both on the host
    """
    original = image.shape[0], image.shape[1]
    views = list_views(original, preprocessing, inference)
    logits = [_view_logits(segmentor, image, view, preprocessing) for view in views]
    ids, confidence = merge_views(logits, views, original, inference, align_corners=segmentor.align_corners)
    return ids.cpu(), confidence.cpu()


def _view_logits(segmentor: Segmentor, image: Tensor, view: View, preprocessing: Preprocessing) -> list[Tensor]:
    device = next(segmentor.parameters()).device
    pixels = resize(image, view.size, antialias=preprocessing.antialias)
    pixels = (pixels.flip(1) if view.flipped else pixels).to(device)
    (height, width), (below, right) = view.windows[0].size, view.input_size
    # One window at a time, so that a large image needs no more memory than one of them.
    windows = (normalize(window.cut(pixels).unsqueeze(0), preprocessing) for window in view.windows)
    return [segmentor(F.pad(window, (0, right - width, 0, below - height))).logits[0] for window in windows]
