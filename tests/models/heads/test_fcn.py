from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.heads.fcn import FCNHead


@pytest.mark.parametrize(("height", "width"), [(7, 5), (1, 9), (1, 1)])
def test_context_and_logits_keep_the_grid(height: int, width: int) -> None:
    head = FCNHead(12, 8, 5).eval()
    context, traces = head({"c4": torch.randn(2, 12, height, width)})
    assert context.shape == (2, 8, height, width)
    assert head.classify(context).shape == (2, 5, height, width)
    assert traces == ()


def test_input_comes_first_in_the_concatenation(randomize: Callable[[nn.Module], None]) -> None:
    head = FCNHead(12, 8, 5).eval()
    randomize(head)
    x = torch.randn(1, 12, 4, 4)
    with torch.no_grad():
        before = head({"c4": x})[0]
        head.conv_cat.conv.weight[:, 12:] = 0
        head.convs[1].conv.weight.normal_()
        input_only = head({"c4": x})[0]
        head.convs[1].conv.weight.normal_()
    assert not torch.allclose(input_only, before)
    assert torch.equal(head({"c4": x})[0], input_only)


def test_classifier_reads_the_decoders_channels() -> None:
    head = FCNHead(12, 8, 5, classifier_channels=6).eval()
    assert head.classify(torch.randn(1, 6, 4, 4)).shape == (1, 5, 4, 4)


def test_dropout_is_for_training_only() -> None:
    head = FCNHead(12, 8, 5)
    context = torch.randn(1, 8, 4, 4)
    assert torch.equal(head.eval().classify(context), head.classify(context))
    head.train()
    assert any(not torch.equal(head.classify(context), head.classify(context)) for _ in range(20))
