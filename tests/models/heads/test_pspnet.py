from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads.pspnet import POOL_SCALES, Pool, PSPHead


@pytest.mark.parametrize("scale", POOL_SCALES)
@pytest.mark.parametrize(("height", "width"), [(12, 18), (7, 5), (1, 9), (1, 1)])
def test_pooling_is_adaptive(scale: int, height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width)
    torch.testing.assert_close(Pool(scale)(x), F.adaptive_avg_pool2d(x, scale))


@pytest.mark.parametrize("align_corners", [False, True])
def test_means_are_resized_as_the_model_was_trained(
    align_corners: bool, randomize: Callable[[nn.Module], None]
) -> None:
    head = PSPHead(6, 4, 5, align_corners=align_corners).eval()
    randomize(head)
    x = torch.randn(1, 6, 9, 7)
    levels = [
        F.interpolate(level[1](F.adaptive_avg_pool2d(x, scale)), (9, 7), mode="bilinear", align_corners=align_corners)
        for level, scale in zip(head.psp_modules, (1, 2, 3, 6), strict=True)
    ]
    context, traces = head({"c4": x})
    torch.testing.assert_close(context, head.bottleneck(torch.cat([x, *levels], 1)))
    assert traces == ()
