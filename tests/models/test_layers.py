from __future__ import annotations

import pytest
import torch
from torch import nn

from models.layers import ConvModule, Scale


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 2), (3, 4), (5, 3)])
def test_convolution_keeps_the_size_at_every_dilation(kernel_size: int, dilation: int) -> None:
    layer = ConvModule(3, 4, kernel_size, dilation=dilation).eval()
    assert layer(torch.randn(2, 3, 7, 5)).shape == (2, 4, 7, 5)


def test_names_are_mmsegmentations_and_the_norm_is_the_bias() -> None:
    keys = set(ConvModule(3, 4).state_dict())
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert keys == {"conv.weight"} | {f"bn.{name}" for name in norm}


def test_order_is_convolution_norm_activation() -> None:
    layer = ConvModule(3, 4).eval()
    nn.init.constant_(layer.bn.bias, -0.1)
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(layer(x), layer.bn(layer.conv(x)).relu())
    assert ConvModule(3, 4, activation=nn.Identity()).eval()(x).min() < 0


def test_scale_is_one_number_that_starts_at_0() -> None:
    scale = Scale()
    assert {name: tensor.tolist() for name, tensor in scale.state_dict().items()} == {"scale": 0.0}
    nn.init.constant_(scale.scale, 2.5)
    assert scale(torch.tensor([1.0, -2.0])).tolist() == [2.5, -5.0]
