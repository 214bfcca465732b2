from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.heads.fcn import FCNHead
from models.heads.gcnet import GCHead, GlobalContextBlock

Randomize = Callable[[nn.Module], None]


@pytest.mark.parametrize(("height", "width"), [(7, 5), (1, 9), (1, 1)])
def test_one_context_is_added_to_every_position(height: int, width: int, randomize: Randomize) -> None:
    block = GlobalContextBlock(16, 4).double()
    randomize(block)
    x = torch.randn(2, 16, height, width, dtype=torch.float64)
    added = block(x) - x
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    weights = block.conv_mask(x).flatten(1).softmax(1)
    context = (x.flatten(2) * weights[:, None]).sum(2)[:, :, None, None]
    torch.testing.assert_close(added[:, :, :1, :1], block.channel_add_conv(context))
    assert added.abs().max() > 0.01


def test_a_position_that_stands_out_is_looked_at() -> None:
    block = GlobalContextBlock(2, 2)
    nn.init.ones_(block.conv_mask.weight)
    block.channel_add_conv = nn.Identity()
    x = torch.zeros(1, 2, 3, 3)
    x[0, :, 1, 2] = 20.0
    torch.testing.assert_close((block(x) - x)[0, :, 0, 0], torch.tensor([20.0, 20.0]))


def test_a_fresh_block_leaves_a_plain_fcn_head() -> None:
    head = GCHead(12, 16, 5).eval()
    plain = FCNHead(12, 16, 5).eval()
    plain.load_state_dict(head.state_dict(), strict=False)
    features = {"c4": torch.randn(1, 12, 5, 4)}
    torch.testing.assert_close(head(features)[0], plain(features)[0])


def test_there_is_no_map_for_each_position() -> None:
    assert GCHead(12, 16, 5).eval()({"c4": torch.randn(1, 12, 5, 4)})[1] == ()


def test_inner_channels_are_a_quarter_unless_told() -> None:
    assert GCHead(12, 16, 5).gc_block.channel_add_conv[0].out_channels == 4
    assert GCHead(12, 16, 5, inner_channels=3).gc_block.channel_add_conv[0].out_channels == 3
